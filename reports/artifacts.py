"""Files that runs store in MLflow, and that a file of shared results holds of them."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Container

import numpy as np

# of a cell
PROTOCOL = "protocol.json"
METRICS = "metrics.json"
PER_IMAGE = "per_image.npz"
DETECTIONS = "detections.npz"
PARTS = "parts.npz"
HEAD = "head/head.safetensors"
PICTURES = "pictures"
GALLERY = f"{PICTURES}/gallery.zip"
FEATURES = f"{PICTURES}/features.npz"
# of the run of one backbone, suite and seed
PARENT = "run.json"
OPTIONS = "options.yaml"
REPORT = "report/index.html"
# of a sweep
PLOTS = "plots.json"

MOST_ARRAYS = 1000


# what reading a file raises that was damaged, by accident or on purpose
DAMAGED = (
    *(ValueError, TypeError, LookupError, AttributeError, OSError, EOFError),
    *(RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error),
)


def inflate(content: bytes, budget: int) -> dict[str, bytes]:
    """The members of a zip file, which inflate to at most ``budget`` bytes.

    Raises one of ``DAMAGED``: they are larger, or the file is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > budget:
            raise ValueError(f"it inflates to more than {budget / 1e6:.0f} MB")
        members = {}
        for info in infos:
            # only these inflate no further than they are read
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename} is neither stored nor deflated")
            with archive.open(info) as file:
                members[info.filename] = file.read(info.file_size)
    return members


def read_arrays(content: bytes, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file, of them those in ``names``.

    Raises one of ``DAMAGED``: it is damaged, holds Python objects, or so many arrays that numpy
    takes minutes.
    """
    with np.load(io.BytesIO(content)) as stored:
        if len(stored.files) > MOST_ARRAYS:
            raise ValueError(f"it has {len(stored.files)} arrays")
        return {name: stored[name] for name in stored if names is None or name in names}
