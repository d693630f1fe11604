"""``reproduce``: run a published protocol, compare with the published number, and name the causes
of a difference that can be checked on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import backbones
import benchmark.catalog  # noqa: F401 – registers every dataset, probe and protocol
from backbones.backbone import Backbone
from benchmark.finished import missing_cells
from benchmark.options import RunOptions
from benchmark.plan import find_folders, make_plan, prepare_data
from benchmark.run import run
from benchmark.suites import choose_suite
from benchmark.tasks import PlannedTask, plan_task
from benchmark.unit import as_interrupt
from cliptex_common.errors import UserError, suggest
from cliptex_common.images import open_image
from probes.datasets.base import PreparedDataset
from probes.datasets.check import DatasetNotFound, find_folder
from probes.dense.settings import DenseSettings, in_iterations
from probes.dense.tasks import DENSE_TASKS
from probes.registry import PROTOCOLS, Preset, find_preset, tasks
from probes.settings import TrainingSettings
from probes.train.schedules import learning_rates
from reports.comparison import Analysis
from reports.published.table import PublishedNumber, protocol_difference, published_numbers
from reports.records import PER_IMAGE, Cell
from reports.store import Store


@dataclass(frozen=True)
class Target:
    """A published number and the task that gives ours.

    Attributes:
        preset: of the protocol for the task.
        task: with the preset's settings.
    """

    number: PublishedNumber
    preset: Preset
    task: PlannedTask

    @property
    def backbone(self) -> str:
        """The name of the weights that loads them as the source does, else the first."""
        names = self.number.backbones
        return next((name for name in names if name.startswith(self.number.loader)), names[0])

    @property
    def half_digit(self) -> float:
        """How far the published value may be from what its authors measured, by rounding."""
        return 0.5 * 10.0**-self.number.digits


class NoNumbers(UserError):
    """Protocols publish nothing that can be reproduced here."""


def protocol_names() -> list[str]:
    """Protocols other than the suite's own."""
    return sorted(set(PROTOCOLS.load_entry_points()) - {"own"})


def find_targets(
    protocols: Sequence[str] = (), backbones: Sequence[str] = (), tasks: Sequence[str] = ()
) -> list[Target]:
    """The published numbers of protocols (those that are presets here), of backbones, and on tasks;
    without them, of all.

    Raises:
        UserError: an unknown protocol or backbone, or there is no such number.
    """
    names = protocol_names()
    for protocol in protocols:
        if protocol not in names:
            raise UserError(f"no protocol {protocol!r}; {suggest(protocol, names)}")
    reproducible = [
        number for number in published_numbers() if number.backbones and number.preset in names
    ]
    models = {name for number in reproducible for name in number.backbones}
    for name in backbones:
        if name not in models:
            hint = suggest(name, (*names, *models))
            raise UserError(f"no protocol or backbone with published numbers {name!r}; {hint}")
    numbers = [number for number in reproducible if number.preset in (protocols or names)]
    of_protocols = ", ".join(protocols)
    if not numbers:
        raise NoNumbers(
            f"no number that {of_protocols} publishes is of a backbone that has a name here;"
            f" `reproduce --quick {' '.join(protocols)} --data-root DIR` tries what"
            " `list protocols` shows of it"
        )
    selected: dict[str, list[PublishedNumber]] = {}  # of each preset, whose tasks run together
    for number in numbers:
        has_backbone = set(number.backbones).intersection(backbones or models)
        if has_backbone and (not tasks or number.task in tasks):
            selected.setdefault(number.preset, []).append(number)
    targets = []
    for name, of_preset in selected.items():
        for number, task in zip(
            of_preset, plan_preset(name, [number.task for number in of_preset]), strict=True
        ):
            targets.append(Target(number, find_preset(name, task.spec, task.probe), task))
    if not targets:
        firsts = dict.fromkeys(number.backbones[0] for number in numbers)
        raise UserError(
            f"{of_protocols} has no published number for this backbone and task; it has some for"
            f" {', '.join(firsts)}"
        )
    return targets


def plan_preset(protocol: str, tasks: Sequence[str]) -> list[PlannedTask]:
    """Tasks with a preset's settings, and for the rest those of the suite that runs all of them
    (``run`` chooses the same)."""
    suite = choose_suite(tasks)
    return [plan_task(suite, task, {"protocol": protocol}) for task in tasks]


MAX_MAPS = 50  # label maps that are read of a split
UNLABELLED = [
    "background or other",
    "ignore",
    "other",
    "unknown",
    "unlabeled",
    "unlabelled",
    "void",
]
FINAL_NORMS = ("norm", "ln_post", "layernorm", "post_layernorm", "final_norm", "norm_post")
MAX_ERROR = 0.05  # share of the highest learning rate that rates may differ by
FLOOR = 0.02  # share of the highest learning rate that counts as none
ENCODERS = ("", "visual", "visual.trunk", "vision_model", "model")  # modules that have such a norm


@dataclass(frozen=True)
class Evidence:
    """What one run left behind.

    Attributes:
        ours, tolerance: our value, and how far from the published one it may be by noise.
        data: that it was trained and scored on.
        backbone: built again.
        differs: how the cell differs from the protocol, by what it records.
        rates: (iteration, learning rate) as logged, oldest first.
        per_image: arrays of the cell.
    """

    target: Target
    ours: float
    tolerance: float
    data: PreparedDataset
    backbone: Backbone
    differs: str = ""
    rates: Sequence[tuple[int, float]] = ()
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def settings(self) -> Any:
        return self.target.task.settings


def settings_changed(evidence: Evidence) -> str:
    """Settings or facts of the dataset that are not the preset's: layers, class token, …"""
    return evidence.differs


def training_images(evidence: Evidence) -> str:
    """VOC with 1,464 or 10,582 images, NYU with 795 or 24,231."""
    expected = {**evidence.data.spec.expected, **evidence.target.preset.images}
    for split in ("train", "val"):
        count = len(evidence.data.samples.get(split, ()))
        if count and expected.get(split, count) != count:
            return f"{count:,} images of {split}, the source has {expected[split]:,}"
    return ""


def size_of_label_maps(evidence: Evidence) -> str:
    """Masks that are stored, and so scored, at 100 px instead of their photographs' size."""
    data, needed = evidence.data, min(_sides(evidence), default=0) // 2
    if data.spec.kind in DENSE_TASKS:
        for label_map in _label_maps(data, "val"):
            width, height = label_map.size
            if max(width, height) < needed:
                return f"label maps of val have {width} × {height} px, at which they are scored"
    return ""


def label_zero(evidence: Evidence) -> str:
    """ADE20K's label 0 (unlabelled) scored as a class, or removed twice."""
    data = evidence.data
    if data.spec.kind != "segmentation":
        return ""
    classes, ignored = data.classes, data.spec.ignore_index
    if ignored < len(classes) and classes[ignored].lower() not in UNLABELLED:
        return f"class {classes[ignored]} is not scored, since ignore_index={ignored}"
    if data.spec.label_offset == 0:
        expected = evidence.target.preset.data.get("classes", len(classes))
        if classes[0].lower() in UNLABELLED or len(classes) != expected:
            return f"label 0 ({classes[0]}) is scored as one of {len(classes)} classes"
        return ""
    stored: set[int] = set()
    for label_map in chain(_label_maps(data, "train"), _label_maps(data, "val")):
        stored.update(np.unique(np.asarray(label_map)).tolist())
    if ignored in stored and 0 in stored and len(classes) not in stored:
        return (
            f"label maps hold 0 to {len(classes) - 1} and {ignored}, so label 0 was"
            f" removed before; class {classes[0]} is lost"
        )
    return ""


def classes_averaged(evidence: Evidence) -> str:
    """mIoU over occurring or over all classes, with or without the first."""
    scores = evidence.per_image
    published = evidence.target.number.value
    if "intersection" not in scores or abs(evidence.ours - published) <= evidence.tolerance:
        return ""
    hits, labels = (scores[name].sum(axis=0).astype(float) for name in ("intersection", "label"))
    union = scores["prediction"].sum(axis=0) + labels - hits
    iou = 100 * hits / np.maximum(union, 1)
    means = {
        "over all classes, absent ones as 0": iou.mean(),
        "over classes that occur": iou[labels > 0].mean(),
        "without the first class": iou[1:][union[1:] > 0].mean(),
    }
    for name, mean in means.items():
        if abs(mean - published) <= evidence.tolerance:
            return f"averaged {name}, ours is {mean:.1f}"
    return ""


def final_norm(evidence: Evidence) -> str:
    """Features taken before the backbone's final norm, or a backbone without one."""
    backbone = evidence.backbone
    if getattr(evidence.settings, "layers", "last") != "last":
        return ""
    norms = []
    for name, module in backbone.model.named_modules():
        parent, _, own = name.rpartition(".")
        if own in FINAL_NORMS and parent in ENCODERS:
            norms.append(module)
    if not norms:
        return ""
    norms = [norm for norm in norms if not isinstance(norm, nn.Identity)]
    if not norms:
        return "the backbone's final norm is an identity"
    calls: list[nn.Module] = []
    hooks = [norm.register_forward_hook(lambda norm, *_: calls.append(norm)) for norm in norms]
    device = next(backbone.parameters()).device
    sides = (max(1, side // backbone.divisor) * backbone.divisor for side in backbone.data.size)
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, *sides, device=device))
    for hook in hooks:
        hook.remove()
    return "" if calls else "features do not pass the backbone's final norm"


def rate_schedule(evidence: Evidence) -> str:
    """A learning rate stepped per batch where its schedule counts epochs, or the reverse, or that
    is not the protocol's."""
    if len(evidence.rates) < 4:
        return ""
    steps, rates = (np.array(column, float) for column in zip(*evidence.rates, strict=True))
    peak = int(rates.argmax())
    after = rates[peak:] / rates[peak]
    share = (steps - steps[0]) / max(steps[-1] - steps[0], 1)
    rises = sum(later > 1.05 * earlier + FLOOR for earlier, later in pairwise(after))
    if rises:
        return f"the rate rises {rises} times again after its maximum, so it was stepped too often"
    low = share[peak:][after < FLOOR]
    if len(low) and low[0] < 0.5:
        return f"the rate reached its floor after {100 * low[0]:.0f} % of the training"
    if getattr(evidence.settings, "schedule", "") and after[-1] > 0.5 and share[peak] < 0.5:
        return f"the rate ends at {100 * after[-1]:.0f} % of its maximum: it was stepped too rarely"
    settings = evidence.settings
    if isinstance(settings, DenseSettings):
        settings = in_iterations(settings, len(evidence.data.samples["train"]))
    if isinstance(settings, TrainingSettings) and not getattr(settings, "lr_grid", ()):
        expected = learning_rates(settings)[steps.astype(int) - 1]
        worst = int(abs(rates - expected).argmax())
        if abs(rates - expected)[worst] > MAX_ERROR * expected.max():
            return (
                f"the rate is {rates[worst]:.3g} at iteration {steps[worst]:.0f}, the protocol's is"
                f" {expected[worst]:.3g}"
            )
    return ""


# Each is checked from what a run leaves behind: a sentence with what was seen where the cause fits,
# else ''. None is inferred from the number alone, except ``classes_averaged``.
CAUSES: dict[str, Callable[[Evidence], str]] = {
    "settings": settings_changed,
    "training images": training_images,
    "resolution of masks": size_of_label_maps,
    "label 0": label_zero,
    "classes averaged": classes_averaged,
    "final norm": final_norm,
    "learning rate": rate_schedule,
}
# not comparable at all, whatever the difference is
BLOCKING = {"settings", "training images"}


def find_causes(evidence: Evidence) -> dict[str, str]:
    """Cause → what was seen, of those that fit."""
    return {name: text for name, check in CAUSES.items() if (text := check(evidence))}


def _sides(evidence: Evidence) -> tuple[int, ...]:
    """Sides in pixels of what the backbone gets."""
    crop = getattr(evidence.settings, "crop", None)
    return tuple(crop or filter(None, [getattr(evidence.settings, "size", 0)]))


def _label_maps(data: PreparedDataset, split: str) -> Iterator[Image.Image]:
    """Some of the files, evenly spaced; none where labels are no pictures."""
    samples = data.samples.get(split, [])
    for sample in samples[:: max(1, len(samples) // MAX_MAPS)]:
        if str(sample.target).endswith(".png"):
            yield open_image(data.root / sample.target)


@dataclass(frozen=True)
class Reproduction:
    """A published number and ours.

    Attributes:
        ours: NaN where the run has none.
        tolerance: how far ours may be from theirs by noise of our images and seeds and by the
            rounding of theirs. Theirs has noise of its own, which nobody published.
        verdict: ``reproduced``, ``differs``, or ``not comparable``.
        causes: name → what was seen.
    """

    target: Target
    ours: float = math.nan
    tolerance: float = math.nan
    verdict: str = "not comparable"
    causes: Mapping[str, str] = field(default_factory=dict)

    @property
    def difference(self) -> float:
        return self.ours - self.target.number.value


def judge_evidence(evidence: Evidence) -> Reproduction:
    """The verdict on one number; causes are listed where it is not reproduced."""
    target, ours, tolerance = evidence.target, evidence.ours, evidence.tolerance
    causes = find_causes(evidence)
    if causes.keys() & BLOCKING:
        return Reproduction(target, ours, tolerance, "not comparable", causes)
    if abs(ours - target.number.value) <= tolerance:
        return Reproduction(target, ours, tolerance, "reproduced")
    return Reproduction(target, ours, tolerance, "differs", causes)


def judge_targets(
    targets: Sequence[Target], options: RunOptions, analysis: Analysis, store: Store
) -> Iterator[Reproduction]:
    """Judge the numbers of a finished run.

    Args:
        targets: of one protocol and one backbone.
        options: of the run.
        analysis: of the runs in ``store``.
    """
    plan = make_plan(options)  # that of the run, for the data and weights that it used
    data = prepare_data(plan.tasks, find_folders(plan.tasks, options), options, num_workers=0)
    source = next(iter(plan.backbones.values()))
    backbone = backbones.create(**source.create_arguments, seed=options.seed)
    for target in targets:
        evidence = _evidence(target, data[target.task.name], backbone, analysis, store)
        yield Reproduction(target) if evidence is None else judge_evidence(evidence)


def _evidence(
    target: Target, data: PreparedDataset, backbone: Backbone, analysis: Analysis, store: Store
) -> Evidence | None:
    """What the run left behind of a task; None if it failed."""
    for (name, column), cells in analysis.selection.cells.items():
        if name == backbone.name and column.task == target.task.name and cells:
            estimate = analysis.estimates[name, column, target.number.metric]
            cell = cells[0]
            return Evidence(
                target,
                ours=estimate.value,
                tolerance=(estimate.reach() if estimate.has_interval else 0.0) + target.half_digit,
                data=data,
                backbone=backbone,
                differs=protocol_difference(cell, target.number.preset),
                rates=list(zip(*store.history(cell.run_id, "train/lr"), strict=True)),
                per_image=store.arrays(cell, PER_IMAGE),
            )
    return None


ANY_BACKBONE = "random/timm/vit_tiny_patch16_224"
TEXT_BACKBONE = "random/open_clip/ViT-S-32-alt"  # for probes that need texts
IMAGES = 4  # of val
TRAIN_SHARE = "0.2"
FEW = {
    "max_iters": "2",
    "epochs": "0",
    "epoch_length": "2",
    "batch_size": "2",
    "memory": "2000",
    "iterations": "5",
    "lr_grid": "none",
}


def quick(protocols: Sequence[str], options: RunOptions) -> Iterator[tuple[str, Cell]]:
    """Run every preset's tasks whose dataset is in ``options``, each by itself: protocol and cell.

    Raises:
        UserError: an unknown protocol, or no dataset of its presets is there.
    """
    options.check_root()
    applicable = list(_tasks(protocols, options))
    if options.tasks:
        task_names = {task for _, task in applicable}
        for task in options.tasks:
            if task not in task_names:
                raise UserError(f"--task {task} cannot be tried; {suggest(task, task_names)}")
        applicable = [(name, task) for name, task in applicable if task in options.tasks]
    if not applicable:
        raise UserError(
            f"no dataset of {', '.join(protocols) or 'any protocol'} was found; pass"
            " --data-root DIR or --data NAME=DIR (`data check` lists what is there)"
        )
    for name, task in applicable:
        (planned,) = plan_preset(name, [task])
        needs_text = getattr(planned.probe, "needs_text", False)
        # only settings that the preset uses: 0, '' and () mean without
        changes = {key: FEW[key] for key in FEW if getattr(planned.settings, key, None)}
        if "epoch_length" in changes:
            changes["epochs"] = "1"
        if planned.probe.train_size == "train_share":
            changes["train_share"] = TRAIN_SHARE
        names = options.backbones or [TEXT_BACKBONE if needs_text else ANY_BACKBONE]
        changed = replace(
            options,
            backbones=names,
            tasks=[task],
            overrides={"protocol": name, **changes},
            limit=IMAGES,
            partial=True,
            only=True,
        )
        try:
            with as_interrupt():
                (cell,) = run(changed).cells
        except UserError as error:  # such as another copy of the data than the source's
            (cell,) = missing_cells(names[0], options.seed, {planned.name: str(error)}).values()
        yield name, cell


def _tasks(protocols: Sequence[str], options: RunOptions) -> Iterator[tuple[str, str]]:
    """(protocol, task) of presets whose dataset is there."""
    for name in protocols or protocol_names():
        protocol = PROTOCOLS.find(name)
        for task, (spec, probe) in tasks().items():
            if protocol.preset(spec, probe) is None or spec.is_generated:
                continue
            with suppress(DatasetNotFound):
                find_folder(spec, options.data_root, options.data)
                yield name, task
