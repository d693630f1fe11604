"""What the mini suites create: the world, CLIP, experts, their labels, CLIP-FT and CLIPTeX."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from backbones.cliptex.data.augment import AXES
from backbones.cliptex.labels.labeller import LabelSettings
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.training.recipes import Recipe, find_recipe
from benchmark.mini import datasets
from benchmark.mini.config import CONFIGS, chunks_of
from benchmark.mini.world import build_world, is_complete
from benchmark.stages.experts import ExpertTraining, expert_stage
from benchmark.stages.labels import LabelRequest, label_stage
from benchmark.stages.weights import TrainedWeights, TrainingInputs, find_weights, train_stage
from benchmark.suites.mini import SIZES, SUBSETS, TRAINED, Sizes
from benchmark.suites.registry import (
    MadeBackbone,
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
    """The world's datasets, and what trains the requested backbones, each part once."""
    world = await build_world(CONFIGS[stages.suite], stages.executor)
    maker = _Builder(stages, world)
    return SuiteArtifacts(
        _datasets(world), {key: partial(maker.backbone, *key) for key in _requested(names, seeds)}
    )


async def training(stages: Stages, seed: int) -> SuiteTraining:
    """What a sweep trains on: the world's pairs, their labels, and the pre-trained CLIP."""
    world = await build_world(CONFIGS[stages.suite], stages.executor)
    maker = _Builder(stages, world)
    clip, (labels, _) = await asyncio.gather(maker.clip(seed), maker.labels())
    return SuiteTraining(
        _datasets(world),
        str(clip.path),
        str(world / "pairs"),
        labels,
        lambda recipe, used: _weights_path(world, recipe, str(clip.path), used),
    )


def preview(suite: str, names: Sequence[str], seeds: Sequence[int]) -> SuitePreview:
    """Which artifacts exist; weights exist only if their labels and initial weights do."""
    config, sizes = CONFIGS[suite], SIZES[suite]
    world = home() / "mini" / config.key()
    has_world = is_complete(world, config)
    stages = [PreviewStage("render the mini world", "render", len(chunks_of(config)), has_world)]
    requested = _requested(names, seeds)
    clips = {
        seed: _weights_path(world, _recipe("clip", sizes.clip, seed), sizes.init, None)
        for _, seed in requested
    }
    labels: LabelStore | None = None
    if any(name in SUBSETS for name, _ in requested):
        for name, settings in sizes.experts.items():
            trained = (_expert_folder(world, name, settings) / "expert.json").is_file()
            stages.append(PreviewStage(f"train expert {name}", "expert", 1, trained))
        stores = sorted(
            (home() / "labels").glob(f"{world.name}-*/manifest.json"),
            key=lambda path: path.stat().st_mtime,
        )
        if stores and all(stage.available for stage in stages[1:]):
            labels = LabelStore(stores[-1].parent)
        shards = -(-config.pairs // config.shard_size)
        stages.append(PreviewStage("label the pairs", "label", shards, labels is not None))
    stages += [
        PreviewStage(f"train clip · seed {s}", "train", 1, path.is_file(), s)
        for s, path in clips.items()
    ]
    backbones: dict[tuple[str, int], Mapping[str, Any] | None] = {}
    for name, seed in requested:
        path, used = clips[seed], labels if name in SUBSETS else None
        available = path.is_file() and (used is not None or name not in SUBSETS)
        if name != "clip":
            path = _weights_path(world, _tuned(sizes, name, seed), str(path), used)
            available = available and path.is_file()
            stages.append(PreviewStage(f"train {name} · seed {seed}", "train", 1, available, seed))
        backbones[name, seed] = _config(name, seed, path) if available else None
    return SuitePreview(stages, _datasets(world) if has_world else None, backbones)


def _requested(names: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    return [(name, seed) for seed in seeds for name in TRAINED if name in names]


def _datasets(world: Path) -> dict[str, Path]:
    return {spec.name: world / spec.folder for spec in datasets.TASKS}


def _config(name: str, seed: int, path: Path) -> dict[str, Any]:
    return {"name": name, "weights": str(path), "seed": seed, "any_architecture": True}


class _Builder:
    """Creates each artifact once for all backbones; long ones first, so that no core idles."""

    def __init__(self, stages: Stages, world: Path) -> None:
        self.stages, self.world, self.sizes = stages, world, SIZES[stages.suite]
        self.tracker = Tracker(stages.experiment)
        self._started: dict[str, asyncio.Task[Any]] = {}

    async def once(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """The result of ``make``, which is called once for ``name``."""
        if name not in self._started:
            self._started[name] = asyncio.ensure_future(make())
        return await self._started[name]

    async def backbone(self, name: str, seed: int) -> MadeBackbone:
        """The weights of a backbone; clip-ft waits for neither experts nor labels."""
        pretrained = self.once(f"clip {seed}", lambda: self.clip(seed))
        cost: dict[str, float] = {}
        if name == "clip":
            weights = await pretrained
        elif name in SUBSETS:
            clip, (labels, cost) = await asyncio.gather(
                pretrained, self.once("labels", self.labels)
            )
            weights = await self._train(
                _tuned(self.sizes, name, seed), str(clip.path), labels, priority=2
            )
        else:
            clip = await pretrained
            weights = await self._train(
                _tuned(self.sizes, name, seed), str(clip.path), None, priority=1
            )
        config = _config(name, seed, weights.path)
        return MadeBackbone(config, weights.run, {**weights.train_cost, **cost})

    async def clip(self, seed: int) -> TrainedWeights:
        """CLIP pre-trained on the captions."""
        return await self._train(
            _recipe("clip", self.sizes.clip, seed), self.sizes.init, None, priority=3
        )

    async def labels(self) -> tuple[Path, dict[str, float]]:
        """The store of the experts' labels, and the cost of experts and labels."""
        stages, experts = self.stages, self.sizes.experts
        longest = sorted(experts, key=lambda name: -experts[name]["epochs"])
        expert_costs = await asyncio.gather(*map(self._expert, longest))
        expert_folders = tuple(
            f"{name}={_expert_folder(self.world, name, settings)}"
            for name, settings in experts.items()
        )
        request = LabelRequest(
            pairs=str(self.world / "pairs"),
            experts=expert_folders,
            out=None,
            name=self.world.name,
            settings=LabelSettings(input_side=0, label_side=0),
            batch_size=128,
            experiment=stages.experiment,
            priority=3,
        )
        store = await label_stage(request, stages.executor)
        cost = {f"label_{kind}": store.manifest["cost"][kind] for kind in ("seconds", "flops")}
        cost |= {
            f"experts_{kind}": sum(each[kind] for each in expert_costs)
            for kind in ("seconds", "flops")
        }
        mark_in_use(store.root)
        return store.root, cost

    async def _expert(self, name: str) -> dict[str, Any]:
        stages, settings = self.stages, self.sizes.experts[name]
        out = _expert_folder(self.world, name, settings)
        mark_in_use(out)
        if (out / "expert.json").is_file():
            return json.loads((out / "expert.json").read_text(encoding="utf-8"))
        inputs = ExpertTraining(
            name, self.world / "expert", out, settings, experiment=stages.experiment
        )
        return await expert_stage(inputs, stages.executor, priority=3)

    async def _train(
        self, recipe: Recipe, init: str, labels: Path | None, priority: int
    ) -> TrainedWeights:
        stages = self.stages
        out = _weights_path(self.world, recipe, init, LabelStore(labels) if labels else None)
        mark_in_use(out)
        inputs = TrainingInputs(
            recipe,
            init,
            str(self.world / "pairs"),
            out,
            (labels,) if labels else (),
            experiment=stages.experiment,
        )
        return find_weights(inputs, self.tracker) or await train_stage(
            inputs, stages.executor, priority
        )


def _recipe(name: str, settings: Mapping[str, Any], seed: int) -> Recipe:
    return find_recipe(name).changed({**settings, "seed": seed})


def _tuned(sizes: Sizes, name: str, seed: int) -> Recipe:
    """The recipe of clip-ft, cliptex or cliptex with fewer experts."""
    return _recipe(name, {**sizes.tune, **(sizes.lambdas if name in SUBSETS else {})}, seed)


def _expert_folder(world: Path, name: str, settings: Mapping[str, Any]) -> Path:
    return home() / "experts" / f"{world.name}-{name}-{content_key([AXES, settings], 8)}"


def _weights_path(world: Path, recipe: Recipe, init: str, labels: LabelStore | None) -> Path:
    inputs = {
        "recipe": recipe.identity(),
        "init": Path(init).name,
        "labels": labels.identity if labels else "",
    }
    return (
        home()
        / "weights"
        / f"{world.name}-{recipe.name}-s{recipe.seed}-{content_key(inputs, 8)}.safetensors"
    )
