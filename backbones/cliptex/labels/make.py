"""A label store from folders of masks, depth maps and normals that people have: the manual labels
of the paper's Table 7."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from backbones.cliptex.data.source import BadPair, FailureCounter, PairSource
from backbones.cliptex.labels.store import LABEL_SIDE, LabelWriter, encode
from backbones.cliptex.protocols import Progress
from backbones.cliptex.tasks import find_task, ordered
from backbones.cliptex.tasks.base import Task, resize_nearest
from common.errors import UserError
from common.images import IMAGE_ERRORS

VERSION = 1
ASPECT = 0.05  # by how much a label's width over height may differ from its image's


@dataclass(frozen=True)
class ManualLabels:
    """What people have made.

    Attributes:
        folders: task → folder of its files, in the official layouts (see ``Task.read``). A file is
            called like its pair: ``KEY.png`` or ``SHARD/KEY.png`` for pairs of tar shards, as the
            image for those of a table.
        classes: task → names of its classes by number, for tasks that have some.
        label_side: labels are shrunk to this on the short side; 0 leaves them as they are.
    """

    folders: Mapping[str, Path]
    classes: Mapping[str, Sequence[str]]
    label_side: int = LABEL_SIDE

    def __post_init__(self) -> None:
        for name, folder in self.folders.items():
            if find_task(name).has_classes and not self.classes.get(name):
                raise UserError(
                    f"labels of {name} are numbers of classes; name them with --classes FILE, one a"
                    " line"
                )
            if not folder.is_dir():
                raise UserError(f"no folder {folder} of {name}")


def make_labels(
    source: PairSource,
    manual: ManualLabels,
    out: Path,
    progress: Progress,
    say: Callable[[str], None] = print,
    num_workers: int = 2,
) -> dict[str, Any]:
    """Write the store and return its manifest; finished shards of the same files and pairs are
    kept. Pairs without a file have no labels, which is no failure.

    Args:
        say: is told, in a line, of files that belong to no pair.

    Raises:
        UserError: no file belongs to a pair, over 1 % of them cannot be used, or ``out`` holds
            other labels.
    """
    found = {name: _files_of(source, folder) for name, folder in manual.folders.items()}
    for name, files in found.items():
        there = sum(1 for _ in manual.folders[name].rglob("*.png"))
        if not files:
            raise UserError(
                f"no .png in {manual.folders[name]} is called like a pair, such as {source.key(0)}"
            )
        if others := there - len(set(files.values())):
            say(f"{others} of {there} files in {manual.folders[name]} belong to no pair")
    identity = {
        "version": VERSION,
        "pairs": source.fingerprint,
        "label_side": manual.label_side,
        "manual": {name: _digest(files) for name, files in found.items()},
    }
    writer = LabelWriter(
        out,
        identity,
        found,
        {name: manual.classes[name] for name in found if name in manual.classes},
    )
    failures, summaries = FailureCounter("files"), []
    total = sum(map(len, found.values()))
    progress.start("making labels", len(source.shards))
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        for shard in source.shards:
            pairs = [(index, source.key(index)) for index in source.iter_shard(shard)]
            keys = [
                (index, key)
                for index, key in pairs
                if any(key in files for files in found.values())
            ]
            if keys and (summary := writer.finished(shard.name)) is None:
                with writer.shard(shard.name) as file:
                    coded = pool.map(
                        lambda pair: _coded(source, pair[0], pair[1], found, manual), keys
                    )
                    for (_, key), one in zip(keys, coded, strict=True):
                        if isinstance(one, str):
                            file.fail(key, one)
                        else:
                            file.add(key, one)
                summary = writer.finished(shard.name)
            if keys and summary:
                summaries.append(summary)
                for key, reason in summary["failed"]:
                    failures.add(key, reason)
                failures.check(total)
            progress.advance()
    return writer.finish(summaries, files={name: len(files) for name, files in found.items()})


def _files_of(source: PairSource, folder: Path) -> dict[str, Path]:
    """Key of a pair → its file, for pairs that have one."""
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.png"))
    }
    found = {}
    for index in range(len(source)):
        key = source.key(index)
        shard = source.shards[source.shard_of(index)].name
        path = re.sub(
            r"#\d+$", "", key.removeprefix(f"{shard}/")
        )  # the number of a table's second caption
        name = PurePosixPath(path).with_suffix("")
        if file := files.get(f"{shard}/{name}") or files.get(str(name)) or files.get(name.name):
            found[key] = file
    return found


def _coded(
    source: PairSource,
    index: int,
    key: str,
    found: Mapping[str, Mapping[str, Path]],
    manual: ManualLabels,
) -> dict[str, bytes] | str:
    """The files of a pair as its labels; or why they cannot be used."""
    try:
        with Image.open(io.BytesIO(source[index].image)) as image:
            width, height = image.size
    except (BadPair, *IMAGE_ERRORS) as error:
        return f"not a readable image ({error})"
    labels = {}
    for name in ordered(name for name, files in found.items() if key in files):
        path, task = found[name][key], find_task(name)
        try:
            label = _checked(task, task.read(path), manual.classes.get(name, ()))
            labels[name] = resize_nearest(label, manual.label_side)
        except IMAGE_ERRORS as error:
            return f"{path}: {error}"
        high, wide = labels[name].shape[-2:]
        if abs(wide * height / (high * width) - 1) > ASPECT:
            return f"{path} has another shape than its image of {width} × {height}"
    return encode(labels)


def _checked(task: Task, label: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    if task.has_classes:
        largest = int(label[label != np.iinfo(label.dtype).max].max(initial=0))
        if largest >= len(classes):
            raise ValueError(f"it has class {largest}, and only {len(classes)} have names")
    return label


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for key, path in sorted(files.items()):
        digest.update(f"{key}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]
