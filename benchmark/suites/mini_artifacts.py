"""What the mini suites make for themselves: the world, and on it CLIP, the experts, their labels,
CLIP-FT and CLIPTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from backbones.cliptex.data.augment import AXES
from backbones.cliptex.labels.labeller import LabelSettings
from backbones.cliptex.labels.store import MANIFEST, LabelStore
from backbones.cliptex.training.recipes import Recipe, find_recipe
from benchmark.execution import Executor
from benchmark.execution.estimate import unit_type
from benchmark.mini import datasets
from benchmark.mini.config import CONFIGS, chunks_of
from benchmark.mini.world import build_world, is_complete
from benchmark.stages.experts import ExpertTraining, expert_stage
from benchmark.stages.graph import Stage
from benchmark.stages.labels import LabelRequest, label_stage
from benchmark.stages.weights import TrainedWeights, TrainingInputs, find_weights, train_stage
from benchmark.suites.mini_sizes import SIZES, TRAINED
from benchmark.suites.registry import BackboneSource, SuiteArtifacts, SuiteTraining
from common.files import content_key, home
from common.locks import mark_in_use
from reports.mlflow.run import Tracker


class MiniPipeline:
    """The stages of a mini suite, which log to ``experiment``; creates nothing itself."""

    def __init__(self, suite: str, experiment: str) -> None:
        config = CONFIGS[suite]
        self.sizes, self.experiment = SIZES[suite], experiment
        self.root = home() / "mini" / config.key()
        self.pairs = str(self.root / "pairs")
        self.data = {spec.name: self.root / spec.folder for spec in datasets.TASKS}
        self.world = Stage(
            "render the mini world",
            find=lambda: self.root if is_complete(self.root, config) else None,
            make=partial(build_world, config),
            units=len(chunks_of(config)),
        )
        trainings = [self._expert_training(*item) for item in self.sizes.experts.items()]
        self.experts = tuple(map(self._expert_stage, trainings))
        self.request = LabelRequest(
            pairs=self.pairs,
            experts=tuple(f"{training.name}={training.out}" for training in trainings),
            name=self.root.name,
            settings=LabelSettings(input_side=0, label_side=0),
            batch_size=128,
            experiment=experiment,
            priority=3,
        )
        self.labels = Stage(
            "label the pairs",
            find=self._find_labels,
            make=self._make_labels,
            needs=self.experts,
            units=-(-config.pairs // config.shard_size),
            unit_type="label",
        )
        self.backbone = cache(self._backbone_stage)

    def artifacts(self, names: Sequence[str], seeds: Sequence[int]) -> SuiteArtifacts:
        """The world's datasets, and the stages of those backbones that the suite trains."""
        trained = [(name, seed) for seed in seeds for name in TRAINED if name in names]
        stages = {key: self.backbone(*key) for key in trained}
        return SuiteArtifacts(self.data, [self.world], stages)

    def training(self, seed: int) -> Stage:
        """What a sweep trains on."""

        async def make(_: Executor, clip: BackboneSource, labels: LabelStore) -> SuiteTraining:
            init = clip.create_arguments["weights"]

            def weights(recipe: Recipe, store: LabelStore | None) -> Path:
                return self._weights_path(recipe, init, store)

            return SuiteTraining(self.data, init, self.pairs, labels.root, weights)

        needs = (self.backbone("clip", seed), self.labels)
        return Stage("prepare a sweep", find=lambda *_: None, make=make, needs=needs)

    def _expert_training(self, name: str, settings: Mapping[str, Any]) -> ExpertTraining:
        folder = f"{self.root.name}-{name}-{content_key([AXES, settings], 8)}"
        out = home() / "experts" / folder
        return ExpertTraining(name, self.root / "expert", out, settings, experiment=self.experiment)

    def _expert_stage(self, training: ExpertTraining) -> Stage:
        async def make(executor: Executor, world: Path) -> dict[str, Any]:
            mark_in_use(training.out)
            return training.find() or await expert_stage(training, executor, priority=3)

        title = f"train expert {training.name}"
        type_ = unit_type("expert", f"expert {training.name}")
        return Stage(title, lambda _: training.find(), make, (self.world,), unit_type=type_)

    def _find_labels(self, *experts: Any) -> LabelStore | None:
        _, writer = self.request.open(keep=False)
        return LabelStore(writer.root) if (writer.root / MANIFEST).is_file() else None

    async def _make_labels(self, executor: Executor, *experts: Any) -> LabelStore:
        labels = await label_stage(self.request, executor)
        mark_in_use(labels.root)
        return labels

    def _backbone_stage(self, name: str, seed: int) -> Stage:
        """CLIP is pre-trained on the captions; all others start from it. Only those that learn from
        experts wait for experts and labels."""
        needs: tuple[Stage, ...] = (self.world,)
        settings, priority = self.sizes.clip, 3
        if name == "clip-ft":
            needs = (self.backbone("clip", seed),)
            settings, priority = self.sizes.tune, 1
        elif name != "clip":
            needs = (self.backbone("clip", seed), self.labels, *self.experts)
            settings, priority = {**self.sizes.tune, **self.sizes.lambdas}, 2
        recipe = find_recipe(name).changed({**settings, "seed": seed})

        def inputs(first: Any, labels: LabelStore | None = None, *_: Any) -> TrainingInputs:
            init = self.sizes.init if name == "clip" else first.create_arguments["weights"]
            return TrainingInputs(
                recipe,
                init,
                self.pairs,
                self._weights_path(recipe, init, labels),
                (labels.root,) if labels else (),
                experiment=self.experiment,
            )

        def source(weights: TrainedWeights, labels: Any = None, *experts: Any) -> BackboneSource:
            cost = dict(weights.train_cost)
            for kind in ("seconds", "flops") if labels else ():
                cost[f"label_{kind}"] = labels.manifest["cost"][kind]
                cost[f"experts_{kind}"] = sum(expert[kind] for expert in experts)
            path = str(weights.path)
            arguments = {"name": name, "weights": path, "seed": seed, "any_architecture": True}
            return BackboneSource(arguments, weights.run, cost)

        def find(*results: Any) -> BackboneSource | None:
            weights = find_weights(inputs(*results), None)
            return source(weights, *results[1:]) if weights else None

        async def make(executor: Executor, *results: Any) -> BackboneSource:
            training = inputs(*results)
            mark_in_use(training.out)
            weights = find_weights(training, Tracker(self.experiment))
            weights = weights or await train_stage(training, executor, priority)
            return source(weights, *results[1:])

        title = f"train {name} · seed {seed}"
        return Stage(title, find, make, needs, unit_type=unit_type("train", title))

    def _weights_path(self, recipe: Recipe, init: str, labels: LabelStore | None) -> Path:
        identity = {
            "recipe": recipe.identity(),
            "init": Path(init).name,
            "labels": labels.identity if labels else "",
        }
        key = content_key(identity, 8)
        name = f"{self.root.name}-{recipe.name}-s{recipe.seed}-{key}.safetensors"
        return home() / "weights" / name
