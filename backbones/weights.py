"""What is known of weights without loading them, and without torch: their identity, files of
checkpoints and what these say of themselves.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from cliptex_common.errors import UserError


@dataclass(frozen=True)
class Weights:
    """Source and digest of the weights.

    Attributes:
        source: ``timm/resnet18.a1_in1k``, a file path, ``random(seed=0)`` …
        sha256: hex digest over the state dict's names, dtypes, shapes and bytes.
        licence: SPDX-like name of the weights' licence, or ``unknown``.
    """

    source: str
    sha256: str
    licence: str = "unknown"


def read_metadata(path: Path) -> dict[str, str]:
    """What ``save_checkpoint`` wrote beside the tensors, by the file's header alone: the rest may
    be damaged. {} of other files."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            metadata = json.loads(file.read(min(size, 1 << 27)))["__metadata__"]
        except (ValueError, KeyError, TypeError):
            return {}
    return metadata if "format_version" in metadata else {}


WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# in a folder that transformers or open_clip write for a step
WEIGHTS_NAMES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step → weights file of a training's folder, in the order of steps: the last number in the
    name of a file (``step-500.safetensors``, ``epoch=1-step=500.ckpt``), or of a folder that has
    one of ``WEIGHTS_NAMES`` (``checkpoint-500/model.safetensors``).

    Raises:
        UserError: two files have the same step, or a step is too large.
    """
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        numbers = re.findall(r"\d+", path.name if path.is_dir() else path.stem)
        if path.is_dir():
            inside = [path / name for name in WEIGHTS_NAMES if (path / name).is_file()]
        else:
            inside = [path] if path.suffix in WEIGHTS_SUFFIXES else []
        if not numbers or not inside:
            continue
        first = files.setdefault(int(numbers[-1]), inside[0])
        if first != inside[0]:
            one, other = (each.relative_to(folder) for each in (first, inside[0]))
            raise UserError(
                f"{one} and {other} in {folder} are both of step {numbers[-1]}; move one away"
            )
        if int(numbers[-1]) >= 2**63:
            raise UserError(f"MLflow has no step {numbers[-1]}; rename {path}")
    return dict(sorted(files.items()))


# files that decided the weights of the backbone that is being built, see ``Backbone.files``
READ_FILES: list[Path] = []
