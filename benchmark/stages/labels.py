"""Labelling: one MLflow run, and a unit of work for each shard of pairs."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import probes.experts  # noqa: F401 – registers the expert that needs MMDetection
from backbones.cliptex.experts import load_experts
from backbones.cliptex.labelling import (
    LabelledShard,
    Labeller,
    LabelSettings,
    draw_labels,
    finish_labels,
    labels_writer,
)
from backbones.cliptex.labels import MANIFEST, LabelStore, LabelWriter
from backbones.cliptex.pairs import FailureCounter, PairSource, open_pairs
from benchmark.execution.base import Executor, Priority
from benchmark.execution.device import choose_device
from benchmark.execution.exclusive import exclusive_async
from benchmark.execution.progress import console, reporter
from benchmark.execution.unit import drop_last_model, keep_last_model
from benchmark.stages.session import print_note, stage_run
from cliptex_common.device import device_name
from cliptex_common.errors import UserError
from cliptex_common.files import home
from cliptex_common.locks import mark_in_use
from reports.cell import TAGS, cost_metrics
from reports.mlflow.run import Run, Tracker


@dataclass(frozen=True)
class LabelRequest:
    """What is labelled, in plain values.

    Attributes:
        pairs: image-caption pairs, as ``--pairs`` takes them.
        experts: ``NAME=PATH`` each.
        out: the store's folder; None: a folder under ``$CLIPTEX_HOME`` by the experts' content, so
            that retrained experts write new labels.
        settings: size of the labels.
        batch_size: images of one size that experts see at once.
        device, num_workers: of the executor.
        experiment: in MLflow.
        name: of the pairs, in the name of a folder under ``$CLIPTEX_HOME``.
        priority: of the units, see ``Executor.submit``.
    """

    pairs: str
    experts: tuple[str, ...]
    out: Path | None = None
    settings: LabelSettings = field(default_factory=LabelSettings)
    batch_size: int = 32
    device: str = "auto"
    num_workers: int = 2
    experiment: str = "label"
    name: str = "pairs"
    priority: int = Priority.DEFAULT

    def folder(self, key: str) -> Path:
        """The store's folder, by the ``key`` of its manifest."""
        return (self.out or home() / "labels" / f"{self.name}-{key[:8]}").absolute()

    def open(self, bar: Any = None, keep: bool = True) -> tuple[PairSource, LabelWriter]:
        """The pairs and the writer of their labels; with ``keep`` False nothing is written."""
        source = open_pairs(self.pairs, bar, keep=keep)
        experts = load_experts(list(self.experts), "cpu")
        return source, labels_writer(source, experts, self.settings, self.folder)


def find_labels(request: LabelRequest) -> LabelStore | None:
    """The finished store of these labels, if there is one; nothing is written."""
    _, writer = request.open(keep=False)
    return LabelStore(writer.root) if (writer.root / MANIFEST).is_file() else None


async def label_pairs(request: LabelRequest, executor: Executor) -> LabelStore:
    """Label every pair with every expert; finished shards are reused.

    Raises:
        UserError: experts or pairs that cannot be used, a folder with labels of others, or over 1 %
            of the images cannot be read.
    """
    request = replace(request, device=executor.device, num_workers=executor.num_workers)
    source, writer = request.open(executor.bar)
    mark_in_use(writer.root)
    async with exclusive_async(writer.root):
        failures, pending = FailureCounter("images"), []
        for number, shard in enumerate(source.shards):
            if summary := writer.finished(shard.name, print_note):
                _count_failures(failures, summary["failed"], len(source))
            else:
                pending.append(number)
            await asyncio.sleep(0)  # other coroutines run meanwhile
        if not pending and (writer.root / MANIFEST).is_file():
            return LabelStore(writer.root)
        tags = {TAGS["labels_file"]: str(writer.root)}
        params = {
            "experts": ",".join(name.partition("=")[0] for name in request.experts),
            "pairs": source.name,
            "count": len(source),
        }
        title = f"label {PurePath(source.name).name}"
        with stage_run(Tracker(request.experiment), "label", title, tags, params) as run:
            executor.overview.expected["label"] = len(pending)
            steps = itertools.count(1)
            at_once = asyncio.Semaphore(2 * executor.slots)  # one runs, one waits, for each worker

            async def label_shard(number: int) -> None:
                arguments = request, writer, number
                name = f"label {source.shards[number].name}"
                async with at_once:
                    shard, device = await executor.run(
                        label_unit, *arguments, name=name, kind="label", priority=request.priority
                    )
                run.set_tags({TAGS["device"]: device})
                if shard.images:
                    speed = shard.images / max(shard.seconds, 1e-9)
                    run.log_metrics({"label/images_per_second": speed}, next(steps))
                _count_failures(failures, shard.failed, len(source))

            try:
                async with asyncio.TaskGroup() as group:  # the first failure cancels the others
                    for number in pending:
                        group.create_task(label_shard(number))
            except ExceptionGroup as errors:
                raise errors.exceptions[0]  # noqa: B904 – keeps its own cause
            finally:
                drop_last_model()  # units of this process loaded the experts
            finish_labels(source, writer)
            store = LabelStore(writer.root)
            _log(run, store, source)
    return store


def preview_labels(request: LabelRequest) -> None:
    """Print which shards are labelled and which are to do. Raises ``UserError`` as
    ``label_pairs``."""
    source, writer = request.open(keep=False)
    shards, pending = source.shards, []
    for shard in shards:
        if writer.finished(shard.name, print_note, hashed=False) is None:
            pending.append(shard)
    console.print(
        f"{len(source)} pairs in {len(shards)} shards: {len(shards) - len(pending)} labelled,"
        f" {len(pending)} to do ({sum(shard.count for shard in pending)} pairs)",
    )


def label_unit(
    request: LabelRequest, writer: LabelWriter, number: int
) -> tuple[LabelledShard, str]:
    """Label one shard of the pairs unless it is labelled; a unit of work. Returns the shard and the
    kind of device."""
    labeller = _labeller(request, writer.root, writer.key)
    shard = labeller.label(labeller.source.shards[number], reporter(), print_note)
    return shard, device_name(choose_device(request.device))


@keep_last_model
def _labeller(request: LabelRequest, root: Path, key: str) -> Labeller:
    """Loads the experts once for all shards that a process labels."""
    source = open_pairs(request.pairs)
    experts = load_experts(list(request.experts), choose_device(request.device))
    writer = labels_writer(source, experts, request.settings, root)
    if writer.key != key:
        raise UserError(
            "the experts or pairs changed while they were labelled; run the command again"
        )
    return Labeller(
        source, experts, writer, request.settings, request.batch_size, request.num_workers
    )


def _count_failures(failures: FailureCounter, failed: Any, total: int) -> None:
    failures.bad |= dict(failed)
    failures.check(total)


def _log(run: Run, store: LabelStore, source: PairSource) -> None:
    manifest = store.manifest
    run.log_json(manifest, MANIFEST)
    run.log_dataset(source.name, source.fingerprint, "labelling", pairs=len(source))
    cost = manifest["cost"]
    costs = {
        "label_seconds": cost["seconds"],
        "label_flops": cost["flops"],
        "images_per_second": cost["images"] / max(cost["seconds"], 1e-9),
        "disk_bytes": manifest["bytes_per_image"] * manifest["pairs_out"],
    }
    for name, seconds in cost["expert_seconds"].items():
        costs[f"label_seconds/{name}"] = seconds
        costs[f"images_per_second/{name}"] = cost["images"] / max(seconds, 1e-9)
    run.log_metrics({**cost_metrics(costs), "bytes_per_image": manifest["bytes_per_image"]})
    with TemporaryDirectory() as folder:
        picture = Path(folder) / "labels.png"
        draw_labels(store.root, source, picture)
        run.log_file(picture, "pictures")
