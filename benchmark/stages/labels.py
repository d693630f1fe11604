"""Labelling: a stage with one MLflow run, whose units of work are the shards of pairs."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import probes.experts  # noqa: F401 – makes the expert known that needs MMDetection
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.data.source import FailureCounter, PairSource
from backbones.cliptex.experts.registry import load_experts
from backbones.cliptex.labels.labeller import (
    LabelledShard,
    Labeller,
    LabelSettings,
    finish_labels,
    finished_shard,
    labels_writer,
)
from backbones.cliptex.labels.picture import draw_labels
from backbones.cliptex.labels.store import MANIFEST, LabelStore, LabelWriter
from benchmark.cost import choose_device, device_kind
from benchmark.execution.base import Executor
from benchmark.execution.progress import console, reporter
from benchmark.stages.stage import one_maker_async, stage_run
from common.errors import UserError
from common.files import content_key, home
from reports.mlflow.run import Run, Tracker


@dataclass(frozen=True)
class LabelRequest:
    """What is labelled by whom, in plain values.

    Attributes:
        pairs: image-caption pairs, as ``--pairs`` takes them; experts: ``NAME=WHERE`` each.
        out: the store's folder; None: under ``$CLIPTEX_HOME``, by what the experts are, not by
            where they lie, so that those which were trained anew make new labels.
        settings: what labels look like.
        batch_size: images of one size that experts see at once.
        device, num_workers: where it is computed, with how many threads that decode and encode; the
            executor says it.
        experiment: in MLflow.
        name: of the pairs, in the name of a folder under ``$CLIPTEX_HOME``.
        priority: of its units, see ``Executor.submit``.
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
    priority: int = 0

    def folder(self, key: str) -> Path:
        """The store's folder, by the ``key`` that its manifest has."""
        return (self.out or home() / "labels" / f"{self.name}-{key[:8]}").absolute()


async def label_stage(request: LabelRequest, executor: Executor) -> dict[str, Any]:
    """Label every pair with every expert; returns the store's manifest. Finished shards are kept.

    Raises:
        UserError: experts or pairs that cannot be used, a folder that holds labels of others, or
            over 1 % of the images cannot be read.
    """
    request = replace(request, device=executor.device, num_workers=executor.num_workers)
    source = open_pairs(request.pairs, executor.bar)
    experts = load_experts(list(request.experts), "cpu")
    params = {
        "experts": ",".join(expert.name for expert in experts),
        "pairs": source.name,
        "count": len(source),
    }
    writer = labels_writer(source, experts, request.settings, request.folder)
    del experts  # from here on they are the units' business
    async with one_maker_async(writer.root):
        failures, missing = FailureCounter("images"), deque[int]()
        for number, shard in enumerate(source.shards):
            if found := finished_shard(writer, shard, _say):
                _count(failures, found, len(source))
            else:
                missing.append(number)
            await asyncio.sleep(0)
        if not missing and (writer.root / MANIFEST).is_file():
            return LabelStore(writer.root).manifest
        tags = {"labels.file": str(writer.root), "labelling.kind": labelling_kind(writer)}
        with stage_run(
            Tracker(request.experiment),
            "label",
            f"label {PurePath(source.name).name}",
            tags,
            params,
        ) as run:
            steps = itertools.count(1)

            async def label() -> None:
                """One shard after the other; after one that breaks no other is begun."""
                while missing:
                    number = missing.popleft()
                    told = {
                        "name": f"label {source.shards[number].name}",
                        "priority": request.priority,
                    }
                    try:
                        shard, device = await executor.run(
                            "label", label_unit, request, writer, number, **told
                        )
                        run.set_tags({"device.kind": device})
                        speed = shard.images / max(shard.seconds, 1e-9)
                        run.log_metrics(
                            {"label/images_per_second": speed} if shard.images else {}, next(steps)
                        )
                        _count(failures, shard, len(source))
                    except BaseException:
                        missing.clear()
                        raise

            try:  # twice as many under way as can run
                ended = await asyncio.gather(
                    *(label() for _ in range(2 * executor.slots)), return_exceptions=True
                )
            finally:
                # where units ran in this process, its memory is wanted for other things now
                _labeller.cache_clear()
            for error in ended:
                if error is not None:
                    raise error
            finish_labels(source, writer)
            store = LabelStore(writer.root)
            _log(run, store, source)
    return store.manifest


def labelling_kind(writer: LabelWriter) -> str:
    """What makes two labellings equally quick: experts and sizes, whatever the experts' weights and
    classes."""
    experts = [
        {key: value for key, value in expert.items() if key not in ("sha256", "classes")}
        for expert in writer.identity["experts"]
    ]
    return content_key([experts, writer.identity["settings"]])


def label_unit(
    request: LabelRequest, writer: LabelWriter, number: int
) -> tuple[LabelledShard, str]:
    """Label one shard of the pairs, unless its labels are there, and say on what kind of device;
    one unit of work."""
    labeller = _labeller(request, writer.root, writer.key)
    shard = labeller.label(labeller.source.shards[number], reporter(), _say)
    return shard, device_kind(choose_device(request.device))


@functools.lru_cache(maxsize=1)
def _labeller(request: LabelRequest, root: Path, key: str) -> Labeller:
    """Experts are loaded once for all shards that a process labels."""
    source = open_pairs(request.pairs)
    experts = load_experts(list(request.experts), choose_device(request.device))
    writer = labels_writer(source, experts, request.settings, root)
    if writer.key != key:
        raise UserError(
            "the experts or pairs have changed while they were labelled; run the command again"
        )
    return Labeller(
        source, experts, writer, request.settings, request.batch_size, request.num_workers
    )


label_unit.forget = _labeller.cache_clear  # type: ignore[attr-defined]


def _count(failures: FailureCounter, shard: LabelledShard, total: int) -> None:
    for key, reason in shard.failed:
        failures.add(key, reason)
    failures.check(total)


def _say(line: str) -> None:
    console.print(f"  note · {line}", style="dim", markup=False)


def _log(run: Run, store: LabelStore, source: PairSource) -> None:
    manifest = store.manifest
    run.log_json(manifest, MANIFEST)
    run.log_dataset(source.name, source.fingerprint, "labelling", pairs=len(source))
    cost = manifest["cost"]
    run.log_metrics(
        {
            "cost/label_seconds": cost["seconds"],
            "cost/label_flops": cost["flops"],
            "cost/images_per_second": cost["images"] / max(cost["seconds"], 1e-9),
            **{
                f"cost/label_seconds/{name}": seconds
                for name, seconds in cost["expert_seconds"].items()
            },
            **{
                f"cost/images_per_second/{name}": cost["images"] / max(s, 1e-9)
                for name, s in cost["expert_seconds"].items()
            },
            "cost/disk_bytes": manifest["bytes_per_image"] * manifest["pairs_out"],
            "bytes_per_image": manifest["bytes_per_image"],
        }
    )
    with TemporaryDirectory() as folder:
        picture = Path(folder) / "labels.png"
        draw_labels(store.root, source, picture)
        run.log_file(picture, "pictures")
