"""What the mini suites make for themselves: the world, and on it CLIP, the experts, their labels, CLIP-FT and CLIPTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.cliptex.augment import AXES
from backbones.cliptex.label import LabelSettings
from backbones.cliptex.labels import LabelStore
from backbones.cliptex.pairs import PairSource, open_pairs
from backbones.cliptex.recipes import SUBSETS, Recipe, find_recipe
from backbones.files import content_key, home
from benchmark.mini.world import CONFIGS, build_world
from benchmark.progress import Bar
from benchmark.stages import expert_stage, label_stage, train_stage
from benchmark.suites import Ground, Provision
from reports.tracking import Tracker

if TYPE_CHECKING:
    from benchmark.run import Options

DATASETS = ("mini-seg", "mini-det", "mini-depth", "mini-normal", "mini-class", "mini-retrieval")
MADE = ("clip", "clip-ft", *SUBSETS)


@dataclass(frozen=True)
class Sizes:
    """How much is trained in a mini suite.

    Attributes:
        clip: changes to the recipe that pre-trains CLIP on captions.
        init: what that starts from, see ``backbones.cliptex.models.load_start``.
        tune: changes to the recipes that fine-tune it; the same for clip-ft and cliptex, so that both see the same
            pairs in the same order for the same number of steps.
        lambdas: further changes to cliptex alone: its λs, where they are not the recipe's.
        experts: expert → changes to its settings.
    """

    clip: Mapping[str, Any]
    init: str
    tune: Mapping[str, Any]
    lambdas: Mapping[str, Any]
    experts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_EXPERT = {"size": 64, "batch_size": 32, "colour": 0.3, "crop_scale": (0.6, 1.0)}
EXPERTS: dict[str, dict[str, Any]] = {
    # a U-Net stands for Mask R-CNN, which is too slow to train at this size (23 images a second of CPU)
    "unet": {**_EXPERT, "width": 24, "stride": 4, "epochs": 5.0, "lr": 3e-3, "balance": 0.5},
    "dpt": {**_EXPERT, "encoder": "tf_efficientnet_lite0", "fusion": 16, "epochs": 2.5, "lr": 2e-3},
    "nll-angmf": {**_EXPERT, "width": 24, "stride": 4, "epochs": 2.5, "lr": 2e-3},
}
SIZES = {
    "mini": Sizes(
        clip={"model": "mini", "epochs": 1.5, "batch_size": 64, "lr": 1e-3, "warmup": 0.1, "val_pairs": 400},
        init="imagenet",
        tune={
            "epochs": 2.5,
            "batch_size": 64,
            "lr": 1e-3,
            "warmup": 0.1,
            "val_pairs": 400,
            "head_lr": 3.0,
            "head_width": 64,
            "label_size": 32,
        },
        # the paper's 0.1 belongs to its own losses and data; here, as in its search, everything starts at 1
        lambdas={"lambda_seg": 1.0},
        experts=EXPERTS,
    ),
    "smoke": Sizes(
        clip={"model": "tiny", "epochs": 1.0, "batch_size": 32, "lr": 1e-3, "image_size": 64},
        init="random",
        tune={"epochs": 1.0, "batch_size": 32, "lr": 3e-4},
        lambdas={},
        experts={name: {**settings, "epochs": 0.5} for name, settings in EXPERTS.items()},
    ),
}


# what a sweep repeats is shorter; what it shares (world, CLIP, experts, labels) is mini's own
SIZES["sweep"] = replace(SIZES["mini"], tune={**SIZES["mini"].tune, "epochs": 1.0})


def provide(
    options: Options, names: Sequence[str], seeds: Sequence[int], tracker: Tracker | None, bar: Bar
) -> Provision:
    """The world's datasets, and the weights of those of clip, clip-ft, cliptex and cliptex with fewer experts that are
    asked for; nothing is made twice."""
    from probes.registry import DATASETS as KNOWN

    config, sizes = CONFIGS[options.suite], SIZES[options.suite]
    world = build_world(config, workers=max(1, options.workers), progress=bar)
    data: dict[str, Path] = {name: world / KNOWN[name].folder for name in DATASETS}
    wanted = [name for name in MADE if name in names and options.weights is None]
    if not wanted:
        return Provision(data=data)

    pairs = open_pairs(str(world / "pairs"), bar)
    labels: LabelStore | None = None
    label_cost: dict[str, float] = {}
    if any(name in SUBSETS for name in wanted):
        labels, label_cost = make_labels(tracker, options, world, pairs, sizes, bar)
    backbones, runs, costs = {}, {}, {}
    for seed in seeds:
        weights, run, cost = _train(tracker, options, "clip", sizes.clip, sizes.init, pairs, None, world, seed, bar)
        made = {"clip": (weights, run, cost)}
        for name in wanted:
            if name != "clip":
                changes = {**sizes.tune, **(sizes.lambdas if name in SUBSETS else {})}
                made[name] = _train(tracker, options, name, changes, str(weights), pairs, labels, world, seed, bar)
        for name in wanted:
            path, run, cost = made[name]
            backbones[name, seed] = {"name": name, "weights": str(path), "seed": seed, "any_architecture": True}
            runs[name, seed] = run
            costs[name, seed] = {**cost, **(label_cost if name in SUBSETS else {})}
    return Provision(data, backbones, runs, costs)


def make_labels(
    tracker: Tracker | None, options: Options, world: Path, pairs: PairSource, sizes: Sizes, bar: Bar
) -> tuple[LabelStore, dict[str, float]]:
    """Experts trained on the world's shifted domain, and their labels of its pairs; with what both cost, in seconds."""
    places, seconds = {}, 0.0
    for name, settings in sizes.experts.items():
        places[name] = home() / "experts" / f"{world.name}-{name}-{content_key([AXES, settings], 8)}"
        made = expert_stage(
            tracker, name, world / "expert", places[name], settings=settings, bar=bar, device=options.device_name
        )
        seconds += made["seconds"]
    out = home() / "labels" / f"{world.name}-{content_key([AXES, dict(sizes.experts)], 8)}"
    manifest = label_stage(
        tracker, pairs, [f"{name}={place}" for name, place in places.items()], out,
        settings=LabelSettings(input_side=0, label_side=0), bar=bar, device=options.device_name, workers=options.workers,
        batch_size=128,
    )  # fmt: skip
    return LabelStore(out), {"experts_seconds": seconds, "label_seconds": manifest["cost"]["seconds"]}


def _train(
    tracker: Tracker | None,
    options: Options,
    name: str,
    changes: Mapping[str, Any],
    init: str,
    pairs: PairSource,
    labels: LabelStore | None,
    world: Path,
    seed: int,
    bar: Bar,
) -> tuple[Path, str, dict[str, float]]:
    recipe: Recipe = replace(find_recipe(name), **{**changes, "seed": seed})
    labels = labels if recipe.tasks else None
    out = _weights_path(world, recipe, init, labels)
    result, run = train_stage(
        tracker, recipe, init=init, pairs=pairs, labels=labels, out=out, bar=bar, device=options.device_name,
        workers=options.workers,
    )  # fmt: skip
    return result.path, run, {key: result.cost[key] for key in ("train_seconds", "train_flops")}


def _weights_path(world: Path, recipe: Recipe, init: str, labels: LabelStore | None) -> Path:
    inputs = {"recipe": asdict(recipe), "init": Path(init).name, "labels": labels.identity if labels else ""}
    return home() / "weights" / f"{world.name}-{recipe.name}-s{recipe.seed}-{content_key(inputs, 8)}.safetensors"


def ground(options: Options, seed: int, tracker: Tracker | None, bar: Bar) -> Ground:
    """What a sweep on this suite trains on: the world's pairs, their labels, and the pre-trained CLIP; nothing is made twice."""
    from probes.registry import DATASETS as KNOWN

    config, sizes = CONFIGS[options.suite], SIZES[options.suite]
    world = build_world(config, workers=max(1, options.workers), progress=bar)
    pairs = open_pairs(str(world / "pairs"), bar)
    labels, _ = make_labels(tracker, options, world, pairs, sizes, bar)
    init = str(_train(tracker, options, "clip", sizes.clip, sizes.init, pairs, None, world, seed, bar)[0])
    data = {name: world / KNOWN[name].folder for name in DATASETS}
    return Ground(data, init, pairs, labels, lambda recipe, used: _weights_path(world, recipe, init, used))
