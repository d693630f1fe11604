"""What the mini suites make for themselves: the world, and on it CLIP, the experts, their labels,
CLIP-FT and CLIPTeX."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from backbones.cliptex.data.augment import AXES
from backbones.cliptex.labels.labeller import LabelSettings
from backbones.cliptex.labels.store import MANIFEST, LabelStore
from backbones.cliptex.training.recipes import Recipe, find_recipe
from benchmark.execution import Executor
from benchmark.mini import datasets
from benchmark.mini.config import CONFIGS, WorldConfig, chunks_of
from benchmark.mini.world import build_world, is_complete
from benchmark.stages.experts import ExpertTraining, expert_stage
from benchmark.stages.graph import Runner, Stage, find_results
from benchmark.stages.labels import LabelRequest, label_stage
from benchmark.stages.weights import TrainedWeights, TrainingInputs, find_weights, train_stage
from benchmark.suites.mini import SIZES, SUBSETS, TRAINED
from benchmark.suites.registry import (
    BackboneSource,
    PreviewStage,
    Stages,
    SuiteArtifacts,
    SuitePreview,
    SuiteTraining,
)
from common.files import content_key, home
from common.locks import mark_in_use
from reports.mlflow.run import Tracker


async def artifacts(stages: Stages, names: Sequence[str], seeds: Sequence[int]) -> SuiteArtifacts:
    """The world's datasets, and what trains the requested weights that the suite knows."""
    world = await build_world(CONFIGS[stages.suite], stages.executor)
    pipeline = MiniPipeline(stages.suite, world, stages.experiment, stages.executor)
    trainings = {key: partial(pipeline.backbone, *key) for key in _trained(names, seeds)}
    return SuiteArtifacts(_datasets(world), trainings)


async def training(stages: Stages, seed: int) -> SuiteTraining:
    """What a sweep trains on: the world's pairs, their labels and the pre-trained CLIP."""
    world = await build_world(CONFIGS[stages.suite], stages.executor)
    pipeline = MiniPipeline(stages.suite, world, stages.experiment, stages.executor)
    clip, labels = await asyncio.gather(
        pipeline.runner.run(pipeline.weights("clip", seed)), pipeline.runner.run(pipeline.labels)
    )
    return SuiteTraining(
        _datasets(world),
        str(clip.path),
        str(world / "pairs"),
        labels.root,
        lambda recipe, store: _weights_path(world, recipe, str(clip.path), store),
    )


def preview(suite: str, names: Sequence[str], seeds: Sequence[int]) -> SuitePreview:
    """Which stages' results exist."""
    config = CONFIGS[suite]
    pipeline = MiniPipeline(suite, home() / "mini" / config.key(), config=config)
    weights = {key: pipeline.weights(*key) for key in _trained(names, seeds)}
    results = find_results([pipeline.world, *weights.values()])
    previews = [
        PreviewStage(stage.title, stage.kind, stage.units, result is not None)
        for stage, result in results.items()
    ]
    configs: dict[tuple[str, int], Mapping[str, Any] | None] = {}
    for key, stage in weights.items():
        result = results[stage]
        configs[key] = None if result is None else _backbone_config(*key, result.path)
    world = results[pipeline.world]
    return SuitePreview(previews, None if world is None else _datasets(world), configs)


class MiniPipeline:
    """The stages of a mini suite on the world at ``root``.

    Args:
        experiment, executor: where the stages log and run; not needed to look for results.
        config: of the world; None if it exists.
    """

    def __init__(
        self,
        suite: str,
        root: Path,
        experiment: str = "",
        executor: Executor | None = None,
        config: WorldConfig | None = None,
    ) -> None:
        self.sizes, self.root = SIZES[suite], root
        self.experiment, self.executor = experiment, executor
        self.tracker = Tracker(experiment) if experiment else None
        self.runner = Runner()
        self.world = Stage(
            "render the mini world",
            "render",
            find=lambda: root if config is None or is_complete(root, config) else None,
            make=self._existing_world,
            units=len(chunks_of(config)) if config else 1,
        )
        # the longest first, so that no core is alone with it in the end
        longest_first = sorted(self.sizes.experts, key=lambda name: -self._settings(name)["epochs"])
        self.experts = tuple(map(self._expert, longest_first))
        self.labels = Stage(
            "label the pairs",
            "label",
            find=lambda *experts: self._find_labels(),
            make=lambda *experts: self._make_labels(),
            needs=self.experts,
            units=-(-config.pairs // config.shard_size) if config else 1,
        )
        self.weights = cache(self._weights)

    async def backbone(self, name: str, seed: int) -> BackboneSource:
        """A backbone's weights, trained or found, with what they cost. Only those that learn from
        experts wait for experts and labels."""
        weights = await self.runner.run(self.weights(name, seed))
        cost = dict(weights.train_cost)
        if name in SUBSETS:
            labels = await self.runner.run(self.labels)
            experts = [await self.runner.run(stage) for stage in self.experts]
            for kind in ("seconds", "flops"):
                cost[f"label_{kind}"] = labels.manifest["cost"][kind]
                cost[f"experts_{kind}"] = sum(expert[kind] for expert in experts)
        return BackboneSource(_backbone_config(name, seed, weights.path), weights.run, cost)

    async def _existing_world(self) -> Path:
        return self.root

    def _settings(self, expert: str) -> Mapping[str, Any]:
        return self.sizes.experts[expert]

    def _expert_folder(self, name: str) -> Path:
        key = content_key([AXES, self._settings(name)], 8)
        return home() / "experts" / f"{self.root.name}-{name}-{key}"

    def _expert(self, name: str) -> Stage:
        inputs = ExpertTraining(
            name,
            self.root / "expert",
            self._expert_folder(name),
            self._settings(name),
            experiment=self.experiment,
        )

        async def make(world: Path) -> dict[str, Any]:
            mark_in_use(inputs.out)
            return inputs.find() or await expert_stage(inputs, self._executor, priority=3)

        find = lambda world: inputs.find()
        return Stage(f"train expert {name}", "expert", find, make, needs=(self.world,))

    @property
    def _executor(self) -> Executor:
        assert self.executor is not None
        return self.executor

    def _label_request(self) -> LabelRequest:
        return LabelRequest(
            pairs=str(self.root / "pairs"),
            experts=tuple(f"{name}={self._expert_folder(name)}" for name in self.sizes.experts),
            name=self.root.name,
            settings=LabelSettings(input_side=0, label_side=0),
            batch_size=128,
            experiment=self.experiment,
            priority=3,
        )

    def _find_labels(self) -> LabelStore | None:
        _, writer = self._label_request().open(keep=False)
        return LabelStore(writer.root) if (writer.root / MANIFEST).is_file() else None

    async def _make_labels(self) -> LabelStore:
        labels = await label_stage(self._label_request(), self._executor)
        mark_in_use(labels.root)
        return labels

    def _weights(self, name: str, seed: int) -> Stage:
        """CLIP is pre-trained on the captions; all others start from it."""
        sizes, priority = self.sizes, 3
        settings: Mapping[str, Any] = sizes.clip
        needs: tuple[Stage, ...] = (self.world,)
        if name == "clip-ft":
            settings, needs, priority = sizes.tune, (self.weights("clip", seed),), 1
        elif name != "clip":
            settings = {**sizes.tune, **sizes.lambdas}
            needs, priority = (self.weights("clip", seed), self.labels), 2
        recipe = find_recipe(name).changed({**settings, "seed": seed})

        def inputs(first: Any, labels: LabelStore | None = None) -> TrainingInputs:
            init = self.sizes.init if name == "clip" else str(first.path)
            return TrainingInputs(
                recipe,
                init,
                str(self.root / "pairs"),
                _weights_path(self.root, recipe, init, labels),
                (labels.root,) if labels else (),
                experiment=self.experiment,
            )

        async def make(*results: Any) -> TrainedWeights:
            training = inputs(*results)
            mark_in_use(training.out)
            weights = find_weights(training, self.tracker)
            return weights or await train_stage(training, self._executor, priority)

        find = lambda *results: find_weights(inputs(*results), None)
        return Stage(f"train {name} · seed {seed}", "train", find, make, needs)


def _trained(names: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    return [(name, seed) for seed in seeds for name in TRAINED if name in names]


def _datasets(world: Path) -> dict[str, Path]:
    return {spec.name: world / spec.folder for spec in datasets.TASKS}


def _backbone_config(name: str, seed: int, path: Path) -> dict[str, Any]:
    return {"name": name, "weights": str(path), "seed": seed, "any_architecture": True}


def _weights_path(world: Path, recipe: Recipe, init: str, labels: LabelStore | None) -> Path:
    identity = {
        "recipe": recipe.identity(),
        "init": Path(init).name,
        "labels": labels.identity if labels else "",
    }
    name = f"{world.name}-{recipe.name}-s{recipe.seed}-{content_key(identity, 8)}.safetensors"
    return home() / "weights" / name
