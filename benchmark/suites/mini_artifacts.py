"""What the mini suites make for themselves: the world, and on it CLIP, the experts, their labels, CLIP-FT and CLIPTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.cliptex.augment import AXES
from backbones.cliptex.label import LabelSettings
from backbones.cliptex.labels import LabelStore
from backbones.cliptex.pairs import open_pairs
from backbones.cliptex.recipes import SUBSETS, Recipe, find_recipe
from backbones.cliptex.train import find_trained
from backbones.files import content_key, home
from benchmark.mini.world import CONFIGS, build_world
from benchmark.execution.progress import Bar
from benchmark.side_by_side import Job, share_of, side_by_side
from benchmark.stages import expert_stage, finished_stage, label_stage, train_stage
from benchmark.suites.registry import Ground, Provision, Trained
from reports.tracking import Tracker

if TYPE_CHECKING:
    from benchmark.evaluation.runner import Options

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
            "epochs": 2.0,
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
    asked for, or the jobs that fine-tune them; nothing is made twice."""
    sizes = SIZES[options.suite]
    world = build_world(CONFIGS[options.suite], workers=max(1, options.workers), progress=bar)
    data = _datasets(world)
    wanted = [name for name in MADE if name in names and options.weights is None]
    if not wanted:
        return Provision(data=data)

    made, labels, label_cost = _base(options, world, seeds, any(name in SUBSETS for name in wanted), tracker, bar)
    tuned = [
        _Training(
            name,
            {**sizes.tune, **(sizes.lambdas if name in SUBSETS else {}), "seed": seed},
            str(made["clip", seed].path),
        )
        for seed in seeds
        for name in wanted
        if name != "clip"
    ]
    found, left = _trainings(options, world, tuned, labels, tracker, bar)
    made |= found
    backbones, runs, costs = {}, {}, {}
    for key in ((name, seed) for seed in seeds for name in wanted):
        name, seed = key
        costs[key] = label_cost if name in SUBSETS else {}
        if key in left:
            path = left[key].arguments["out"]
        else:
            path, runs[key], costs[key] = made[key].path, made[key].run, {**made[key].cost, **costs[key]}
        backbones[key] = {"name": name, "weights": str(path), "seed": seed, "any_architecture": True}
    return Provision(data, backbones, runs, costs, left)


def ground(options: Options, seed: int, tracker: Tracker | None, bar: Bar) -> Ground:
    """What a sweep on this suite trains on: the world's pairs, their labels, and the pre-trained CLIP; nothing is made twice."""
    world = build_world(CONFIGS[options.suite], workers=max(1, options.workers), progress=bar)
    made, labels, _ = _base(options, world, [seed], True, tracker, bar)
    assert labels is not None
    init = str(made["clip", seed].path)
    pairs = open_pairs(str(world / "pairs"), bar)
    return Ground(_datasets(world), init, pairs, labels, lambda recipe, used: _weights_path(world, recipe, init, used))


def _datasets(world: Path) -> dict[str, Path]:
    from probes.registry import DATASETS as KNOWN

    return {name: world / KNOWN[name].folder for name in DATASETS}


@dataclass(frozen=True)
class _Training:
    """A recipe by name, changes to it (its seed among them), and the weights it starts from."""

    name: str
    changes: Mapping[str, Any]
    init: str

    @property
    def recipe(self) -> Recipe:
        return replace(find_recipe(self.name), **self.changes)


_Weights = dict[tuple[str, int], Trained]


def _base(
    options: Options, world: Path, seeds: Sequence[int], labelled: bool, tracker: Tracker | None, bar: Bar
) -> tuple[_Weights, LabelStore | None, dict[str, float]]:
    """The pre-trained CLIP of each seed and – when ``labelled`` – the experts, both side by side, and their labels of the
    pairs; with what experts and labels cost."""
    sizes = SIZES[options.suite]
    clips = [_Training("clip", {**sizes.clip, "seed": seed}, sizes.init) for seed in seeds]
    experts = _experts(options, world, tracker) if labelled else {}
    found, left = _trainings(options, world, clips, None, tracker, bar)
    missing = [job for job in experts.values() if not (job.arguments["out"] / "expert.json").is_file()]
    missing.sort(key=lambda job: -job.arguments["settings"]["epochs"])
    jobs = [*left.values(), *missing]
    found |= dict(zip(left, side_by_side(jobs, bar, device=options.device_name, most=options.jobs), strict=False))
    if not labelled:
        return found, None, {}
    # what is there by now is only looked up
    made = {name: job.function(**job.arguments, bar=bar) for name, job in experts.items()}
    pairs = open_pairs(str(world / "pairs"), bar)

    def folder(key: str) -> Path:
        """By what the experts are, not by what they were asked to be: those that were trained anew make new labels."""
        return home() / "labels" / f"{world.name}-{key[:8]}"

    where = [f"{name}={job.arguments['out']}" for name, job in experts.items()]
    manifest = label_stage(
        tracker, pairs, where, folder, settings=LabelSettings(input_side=0, label_side=0), bar=bar,
        device=options.device_name, workers=options.workers, batch_size=128,
    )  # fmt: skip
    cost = {
        "experts_seconds": sum(each["seconds"] for each in made.values()),
        "experts_flops": sum(each["flops"] for each in made.values()),
        "label_seconds": manifest["cost"]["seconds"],
        "label_flops": manifest["cost"]["flops"],
    }
    return found, LabelStore(folder(manifest["key"])), cost


def _experts(options: Options, world: Path, tracker: Tracker | None) -> dict[str, Job]:
    """The job that trains each expert on the world's shifted domain, or finds it trained."""
    jobs = {}
    for name, settings in SIZES[options.suite].experts.items():
        out = home() / "experts" / f"{world.name}-{name}-{content_key([AXES, settings], 8)}"
        jobs[name] = Job(
            expert_job,
            {"store": _store(tracker), "name": name, "root": world / "expert", "out": out, "settings": settings,
             "device": options.device_name},
            threads=_threads(options),
        )  # fmt: skip
    return jobs


def _trainings(
    options: Options,
    world: Path,
    trainings: Sequence[_Training],
    labels: LabelStore | None,
    tracker: Tracker | None,
    bar: Bar,
) -> tuple[_Weights, dict[tuple[str, int], Job]]:
    """(name, seed) → the weights that are there, and the jobs that make the others."""
    pairs = open_pairs(str(world / "pairs"), bar)
    made: _Weights = {}
    left: dict[tuple[str, int], Job] = {}
    # long ones come first, so that in the end no core is left alone with one
    for training in sorted(trainings, key=lambda each: -len(each.recipe.tasks)):
        recipe = training.recipe
        used = labels if recipe.tasks else None
        out = _weights_path(world, recipe, training.init, used)
        key = (training.name, recipe.seed)
        if found := find_trained(recipe, init=training.init, pairs=pairs, out=out, labels=used):
            run = finished_stage(tracker, **{"train.key": found.key})
            made[key] = Trained(out, run, _cost(found.cost))
            continue
        left[key] = Job(
            train_job,
            {"store": _store(tracker), "recipe": recipe, "init": training.init, "pairs": str(world / "pairs"),
             "labels": used.root if used else None, "out": out, "device": options.device_name,
             "workers": options.workers},
            threads=_threads(options),
        )  # fmt: skip
    return made, left


def _threads(options: Options) -> int:
    """Of a training or an expert: those of four jobs, which are what a first run begins with, so that the weights are the
    same whoever is left to be trained."""
    return share_of(4, options.jobs)


def _store(tracker: Tracker | None) -> tuple[str, str] | None:
    return (tracker.experiment, tracker.uri) if tracker is not None else None


def expert_job(
    *,
    store: tuple[str, str] | None,
    name: str,
    root: Path,
    out: Path,
    settings: Mapping[str, Any],
    device: str,
    bar: Bar,
) -> dict[str, Any]:
    """``expert_stage``, from another process: ``store`` is experiment and URI of the tracker."""
    return expert_stage(Tracker(*store) if store else None, name, root, out, settings=settings, bar=bar, device=device)


def train_job(
    *,
    store: tuple[str, str] | None,
    recipe: Recipe,
    init: str,
    pairs: str,
    labels: Path | None,
    out: Path,
    device: str,
    workers: int,
    bar: Bar,
) -> Trained:
    """``train_stage``, from another process."""
    result, run = train_stage(
        Tracker(*store) if store else None, recipe, init=init, pairs=open_pairs(pairs, bar),
        labels=LabelStore(labels) if labels else None, out=out, bar=bar, device=device, workers=workers,
    )  # fmt: skip
    return Trained(result.path, run, _cost(result.cost))


def _cost(cost: Mapping[str, float]) -> dict[str, float]:
    return {key: cost[key] for key in ("train_seconds", "train_flops")}


def _weights_path(world: Path, recipe: Recipe, init: str, labels: LabelStore | None) -> Path:
    inputs = {"recipe": asdict(recipe), "init": Path(init).name, "labels": labels.identity if labels else ""}
    return home() / "weights" / f"{world.name}-{recipe.name}-s{recipe.seed}-{content_key(inputs, 8)}.safetensors"
