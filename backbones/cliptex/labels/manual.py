"""Labels that people made, as an expert that reads files (the paper's Table 7)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from backbones.cliptex.data.source import BadPair
from backbones.cliptex.tasks import find_task
from cliptex_common.errors import UserError
from cliptex_common.files import sha256_file
from cliptex_common.images import IMAGE_ERRORS

ASPECT = 0.05  # by how much a label's width over height may differ from its image's


class ManualLabels:
    """Reads the labels of one task from a folder, in the official layouts (see ``Task.read``).

    A file has the name of its pair: ``KEY.png`` or ``SHARD/KEY.png`` for pairs of tar shards, that
    of the image for pairs of a table. Pairs without a file have no label, which is no failure.

    Args:
        classes: names of the classes by number, for tasks that have some.

    Raises:
        UserError: no such task or folder, or the classes have no names.
    """

    def __init__(self, task: str, folder: Path, classes: Sequence[str] = ()) -> None:
        if find_task(task).has_classes and not classes:
            raise UserError(
                f"labels of {task} are numbers of classes; name them with --classes FILE, one a"
                " line"
            )
        if not folder.is_dir():
            raise UserError(f"no folder {folder} of {task}")
        self.name, self.task, self.folder, self.classes = "manual", task, folder, tuple(classes)
        self.files = {
            path.relative_to(folder).with_suffix("").as_posix(): path
            for path in sorted(folder.rglob("*.png"))
        }

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name, path in self.files.items():
            digest.update(f"{name} {sha256_file(path)}\n".encode())
        return {
            "name": self.name,
            "task": self.task,
            "classes": list(self.classes),
            "sha256": digest.hexdigest(),
        }

    def find(self, shard: str, key: str) -> Path | None:
        """The file of a pair."""
        # without the number of a table's second caption
        image = re.sub(r"#\d+$", "", key.removeprefix(f"{shard}/"))
        name = PurePosixPath(image).with_suffix("")
        names = (f"{shard}/{name}", str(name), name.name)
        return next((self.files[each] for each in names if each in self.files), None)

    def read(self, shard: str, key: str, size: Sequence[int]) -> np.ndarray | None:
        """The label of a pair whose image has ``size`` (height, width); None without a file.

        Raises:
            BadPair: the file is no label of this task, or has another shape than the image.
        """
        if (path := self.find(shard, key)) is None:
            return None
        task = find_task(self.task)
        try:
            label = task.read(path)
        except IMAGE_ERRORS as error:
            raise BadPair(f"{path}: {error}") from error
        if task.has_classes:
            largest = int(label[label != np.iinfo(label.dtype).max].max(initial=0))
            if largest >= len(self.classes):
                raise BadPair(
                    f"{path}: it has class {largest}, and only {len(self.classes)} have names"
                )
        height, width = label.shape[-2:]
        if abs(width * size[0] / (height * size[1]) - 1) > ASPECT:
            raise BadPair(f"{path} has another shape than its image of {size[1]} × {size[0]}")
        return label
