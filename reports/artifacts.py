"""Files that runs store in MLflow, and that a file of shared results holds of them."""

from __future__ import annotations

import io
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
# of the run of one backbone, suite and seed
PARENT = "run.json"
OPTIONS = "options.yaml"
REPORT = "report/index.html"


def read_arrays(content: bytes, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file, of them those in ``names``.

    Raises:
        ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error: it is damaged, or
            holds Python objects.
    """
    with np.load(io.BytesIO(content)) as stored:
        return {name: stored[name] for name in stored if names is None or name in names}
