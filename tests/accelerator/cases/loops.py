"""Loops that compute on an accelerator, each as a function of its length: what a step asks of the
device is the difference between a long and a short one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import probes.experts  # noqa: F401  registers those that need MMDetection
from backbones.cliptex.experts.base import find_expert, load_data, load_experts
from backbones.cliptex.experts.fit import ExpertTrainer
from backbones.cliptex.pairs import open_pairs
from backbones.cliptex.recipes import RECIPES
from backbones.cliptex.trainer import TrainContext
from benchmark import InLoop
from cliptex_common.progress import Silent
from probes.datasets.check import prepare
from probes.experts.mask_rcnn import TorchvisionMaskRCNN
from probes.image_level import linear
from probes.registry import DATASETS, PROBES
from probes.train.loop import HeadTrainer
from tests.accelerator.cases.tasks import WHOLE_IMAGES, make_task, small, write_data
from tests.accelerator.pretended.counters import Events, counting
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.experts import toy_experts
from tests.backbones.cliptex.experts.small_mask_rcnn import shrink
from tests.backbones.cliptex.test_train import run
from tests.benchmark import test_in_loop
from tests.probes import tiny_dense
from tests.probes.datasets.make import make_imagefolder
from tests.recorder import Recorder

RARELY = 10**6  # steps between entries of a log


Loop = Callable[[Path, torch.device, int], Any]  # folder, device, length


@dataclass(frozen=True)
class StepCost:
    """Waits and blocking copies of one more unit of length, and the lines that cause them."""

    waits: float
    blocking_copies: float
    report: str


def step_cost(loop: Loop, folder: Path, device: torch.device, short: int, long: int) -> StepCost:
    """What a step of a loop asks of the device. What is done once in a process does not count."""
    loop(folder / "first", device, short)
    events = []
    for length in (short, long):
        with counting() as counted:
            loop(folder / str(length), device, length)
        events.append(counted)
    few, many = events
    return StepCost(
        (many.waits - few.waits) / (long - short),
        (many.blocking_copies - few.blocking_copies) / (long - short),
        f"in {long - short} steps:\n{Events(many.counts - few.counts)}",
    )


def cliptex(**changes: Any) -> Loop:
    """Training, between two entries of its log."""

    def loop(folder: Path, device: torch.device, length: int) -> None:
        pairs = toy.write_pairs(folder / "pairs", 32, 2)
        recipe = replace(RECIPES["cliptex"], model="tiny", batch_size=8, epochs=length / 4)
        run(
            replace(recipe, **changes),
            open_pairs(pairs),
            folder / "weights.safetensors",
            device=device,
            log_every=RARELY,
            norms_every=RARELY,
        )

    return loop


def expert(name: str) -> Loop:
    """The training of an expert, between two entries of its log."""

    def loop(folder: Path, device: torch.device, length: int) -> None:
        root = toy_experts.write_truth(folder / "data", train=8, val=1)
        kind = find_expert(name)
        values = {**toy_experts.SMALL_UNET, "batch_size": 4, "epochs": length / 2}
        settings = kind.settings_type(**values)
        data = load_data(root, kind.task, "train", settings.size, Silent())
        context = TrainContext(device=device, resume_dir=folder / "states", log_every=RARELY)
        torch.manual_seed(0)
        ExpertTrainer(kind.create(settings, data.classes), data, context, 0).run()

    return loop


def labelling(write: Callable[[Path], str]) -> Loop:
    """Labels of Mask R-CNN; the length is the number of images."""

    def loop(folder: Path, device: torch.device, length: int) -> None:
        folder.mkdir(parents=True)
        (labeller,) = load_experts([f"mask-rcnn={write(folder)}"], device)
        if isinstance(labeller, TorchvisionMaskRCNN):
            shrink(labeller.net)
        pictures = [toy_experts.picture(seed, 48, 64) for seed in range(length)]
        labeller.predict(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))

    return loop


def probe_task(
    name: str, changes: dict[str, Any], length: dict[str, int], folder: Path, device: torch.device
) -> Any:
    """A probe, and its task on small data; ``length`` is a setting that stays as it is."""
    which = PROBES[name]
    settings = replace(small(which, changes), **length)
    return which, make_task(which, folder, device, write_data(which, folder / "data"), settings)


def probe(name: str, unit: str, **changes: Any) -> Loop:
    """A probe whose length is the setting ``unit``, between two checks of its losses."""

    def loop(folder: Path, device: torch.device, length: int) -> None:
        which, task = probe_task(name, changes, {unit: length}, folder, device)
        with checked_at_the_end():
            which.run(task)

    return loop


def resumed(name: str, unit: str, **changes: Any) -> Loop:
    """A probe that is interrupted after its first steps and resumes."""

    def loop(folder: Path, device: torch.device, length: int) -> None:
        which, task = probe_task(name, changes, {unit: length}, folder, device)
        with (
            mock.patch.object(linear, "SAVE_EVERY", 0.0),
            contextlib.suppress(KeyboardInterrupt),
        ):
            which.run(replace(task, progress=Recorder(die_at=2)))
        which.run(task)

    return loop


def validation(name: str, **changes: Any) -> Loop:
    """The evaluation of a dense probe; the length is the number of images."""

    def loop(folder: Path, device: torch.device, length: int) -> None:
        which = PROBES[name]
        data = tiny_dense.make(folder / "data", which.kind, train=4, val=length)
        which.run(make_task(which, folder, device, data, small(which, changes)))

    return loop


def evaluation(name: str, write: Callable[[Path, int], Any], **changes: Any) -> Loop:
    """A probe that is not trained, on data that ``write`` makes of a folder and a length."""

    def loop(folder: Path, device: torch.device, length: int) -> None:
        which = PROBES[name]
        dataset, _ = WHOLE_IMAGES[which.kind]
        write(folder / "data", length)
        splits: dict[str, int | None] = dict.fromkeys(which.splits)
        data = prepare(DATASETS[dataset], folder / "data", splits=splits, partial=True)
        which.run(make_task(which, folder, device, data, small(which, changes)))

    return loop


def in_loop_probe(folder: Path, device: torch.device, every: int) -> InLoop:
    """Scores the model of a training on a small dataset."""
    return InLoop(
        **test_in_loop.KNN,
        every=every,
        encoder=lambda model: model.encoder,
        images=test_in_loop.IMAGES,
        folder=folder / "probes",
        data={"imagefolder": make_imagefolder(folder / "data", n_train=4, n_val=2)},
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        num_workers=0,
        device=device.type,
        on_error="raise",
    )


def in_loop(folder: Path, device: torch.device, length: int) -> None:
    """A training's model, scored again and again."""
    model, probe = test_in_loop.Model().to(device), in_loop_probe(folder, device, 1)
    for step in range(1, length + 1):
        torch.nn.init.normal_(model.encoder.conv.weight)  # or it would find its numbers
        probe(model, step)


@contextlib.contextmanager
def checked_at_the_end() -> Iterator[None]:
    """Let heads look at their losses, and save their state, after their last step only."""
    check_and_save = HeadTrainer.check_and_save

    def at_the_end(trainer: HeadTrainer, saves: bool) -> None:
        if not trainer.trains:
            check_and_save(trainer, saves)

    with mock.patch.object(HeadTrainer, "check_and_save", at_the_end):
        yield
