"""What the mini suites make for themselves: the world, and on it CLIP, the experts, their labels,
CLIP-FT and CLIPTeX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from backbones.base import Backbone
from backbones.cliptex.data.dataset import Labels
from backbones.cliptex.experts.training import VERSION as EXPERT_VERSION
from backbones.cliptex.labels.labeller import VERSION as LABEL_VERSION
from backbones.cliptex.labels.labeller import LabelSettings
from backbones.cliptex.labels.store import MANIFEST, LabelStore
from backbones.cliptex.training.models import load_pretrained_clip
from backbones.cliptex.training.recipes import Recipe, find_recipe
from benchmark.execution import Executor
from benchmark.mini import datasets
from benchmark.mini.config import CONFIGS
from benchmark.mini.world import build_world, is_complete
from benchmark.stages.experts import ExpertTraining, expert_stage
from benchmark.stages.graph import Stage
from benchmark.stages.labels import LabelRequest, label_stage
from benchmark.stages.weights import (
    TrainedWeights,
    TrainingInputs,
    find_weights,
    open_labels,
    train_stage,
)
from benchmark.suites.mini_manual import SHARE, write_manual_labels
from benchmark.suites.mini_sizes import LABELLED, SIZES, TRAINED
from benchmark.suites.registry import BackboneSource, SuiteArtifacts, SuiteTraining
from cliptex_common.dense_maps.geometry import AXES
from cliptex_common.files import content_key, home
from cliptex_common.locks import mark_in_use
from reports.mlflow.run import Tracker


class MiniPipeline:
    """The stages of a mini suite, which log to ``experiment``; creates nothing itself."""

    def __init__(self, suite: str, experiment: str) -> None:
        self.config = config = CONFIGS[suite]
        self.sizes, self.experiment = SIZES[suite], experiment
        self.root = home() / "mini" / config.key()
        self.pairs = str(self.root / "pairs")
        self.data = {spec.name: self.root / spec.folder for spec in datasets.TASKS}
        self.world = Stage(
            "render the mini world",
            find=lambda: self.root if is_complete(self.root, config) else None,
            make=partial(build_world, config),
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
        )
        key = content_key([self.root.name, SHARE, LABEL_VERSION], 8)
        self.manual = home() / "labels" / f"{self.root.name}-manual-{key}"
        self.manual_labels = Stage(
            "draw manual labels",
            find=lambda _: self._find_manual(),
            make=self._draw_manual,
            needs=(self.world,),
        )
        self.backbone = cache(self._backbone_stage)

    def artifacts(self, names: Sequence[str], seeds: Sequence[int]) -> SuiteArtifacts:
        """The world's datasets, and the stages of those backbones that the suite trains."""
        trained = [(name, seed) for seed in seeds for name in TRAINED if name in names]
        stages = {key: self.backbone(*key) for key in trained}
        return SuiteArtifacts(self.data, [self.world], stages, self._architecture)

    def _architecture(self) -> Backbone:
        settings = self.sizes.clip
        return load_pretrained_clip(
            "random", settings["model"], image_size=settings.get("image_size", 0)
        )

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
        folder = f"{self.root.name}-{name}-{content_key([AXES, EXPERT_VERSION, settings], 8)}"
        out = home() / "experts" / folder
        return ExpertTraining(name, self.root / "expert", out, settings, experiment=self.experiment)

    def _expert_stage(self, training: ExpertTraining) -> Stage:
        async def make(executor: Executor, world: Path) -> dict[str, Any]:
            mark_in_use(training.out)
            return training.find() or await expert_stage(training, executor, priority=3)

        title = f"train expert {training.name}"
        return Stage(title, lambda _: training.find(), make, (self.world,))

    def _find_labels(self, *experts: Any) -> LabelStore | None:
        _, writer = self.request.open(keep=False)
        return LabelStore(writer.root) if (writer.root / MANIFEST).is_file() else None

    async def _make_labels(self, executor: Executor, *experts: Any) -> LabelStore:
        labels = await label_stage(self.request, executor)
        mark_in_use(labels.root)
        return labels

    def _find_manual(self) -> LabelStore | None:
        return LabelStore(self.manual) if (self.manual / MANIFEST).is_file() else None

    async def _draw_manual(self, executor: Executor, world: Path) -> LabelStore:
        mark_in_use(self.manual)
        if not self._find_manual():
            arguments = self.config, self.pairs, self.manual
            await executor.run(
                "manual", write_manual_labels, *arguments, name="manual labels", priority=3
            )
        return LabelStore(self.manual)

    def _needs(self, name: str, seed: int) -> tuple[Stage, ...]:
        """CLIP is pre-trained on the captions; all others start from it. Only those that learn from
        experts wait for experts and labels."""
        if name == "clip":
            return (self.world,)
        clip, pseudo = self.backbone("clip", seed), (self.labels, *self.experts)
        needs = {
            "clip-ft": (),
            "cliptex-manual": (self.manual_labels,),
            "cliptex-both": (self.manual_labels, *pseudo),
        }
        return (clip, *needs.get(name, pseudo))

    def _backbone_stage(self, name: str, seed: int) -> Stage:
        needs, settings = self._needs(name, seed), self.sizes.clip
        priority = {"clip": 3, "clip-ft": 1}.get(name, 2)
        if name != "clip":
            settings = self.sizes.tune
        if len(needs) > 1:
            settings = {**settings, **self.sizes.lambdas}
        recipe = find_recipe("cliptex" if name in LABELLED else name)
        recipe = recipe.changed({**settings, "name": name, "seed": seed})

        def inputs(first: Any, *labels_and_experts: Any) -> TrainingInputs:
            init = self.sizes.init if name == "clip" else first.create_arguments["weights"]
            stores = [each for each in labels_and_experts if isinstance(each, LabelStore)]
            labels = tuple(store.root for store in stores)
            path = self._weights_path(recipe, init, open_labels(labels))
            return TrainingInputs(
                recipe, init, self.pairs, path, labels, experiment=self.experiment
            )

        def source(weights: TrainedWeights, *labels_and_experts: Any) -> BackboneSource:
            cost = Counter(weights.train_cost)
            for each in labels_and_experts:
                is_store = isinstance(each, LabelStore)
                of, values = ("label", each.manifest["cost"]) if is_store else ("experts", each)
                cost.update({f"{of}_{kind}": values[kind] for kind in ("seconds", "flops")})
            path = str(weights.path)
            arguments = {"name": name, "weights": path, "seed": seed, "any_architecture": True}
            return BackboneSource(arguments, weights.run, dict(cost))

        def find(*results: Any) -> BackboneSource | None:
            weights = find_weights(inputs(*results), None)
            return source(weights, *results[1:]) if weights else None

        async def make(executor: Executor, *results: Any) -> BackboneSource:
            training = inputs(*results)
            mark_in_use(training.out)
            weights = find_weights(training, Tracker(self.experiment))
            weights = weights or await train_stage(training, executor, priority)
            return source(weights, *results[1:])

        return Stage(f"train {name} · seed {seed}", find, make, needs)

    def _weights_path(self, recipe: Recipe, init: str, labels: Labels | None) -> Path:
        identity = {
            "recipe": recipe.identity(),
            "init": Path(init).name,
            "labels": labels.identity if labels else "",
        }
        key = content_key(identity, 8)
        name = f"{self.root.name}-{recipe.name}-s{recipe.seed}-{key}.safetensors"
        return home() / "weights" / name
