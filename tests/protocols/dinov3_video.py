"""DINOv3's label propagation by its notebook and by this suite.

The notebook's cells run as they are, without their pictures, on another video and with a short side
of 240 pixels.
"""

from __future__ import annotations

import ast
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from tests.protocols import propagation
from tests.protocols.dense import summary
from tests.protocols.propagation import PATCH, SIZES, Model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DRAWN = ("mp", "print", "lovely_tensors", "logging")


class Answer(io.BytesIO):
    """What a server sends, which can be read once it is closed."""

    def close(self) -> None:
        pass


def source(checkout: Path) -> dict[str, Any]:
    text = (checkout / "notebooks/segmentation_tracking.ipynb").read_text(encoding="utf-8")
    cells = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    drawing = {name: mock.MagicMock() for name in ("lovely_tensors", "matplotlib.pyplot")}
    drawing |= {"mediapy": mock.MagicMock(), "matplotlib": mock.MagicMock()}
    names: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(sys.modules, drawing),
        mock.patch("torch.hub.load", return_value=Model()),
        mock.patch("torch.cuda.synchronize"),
    ):
        root = propagation.write(Path(folder))
        answers = [_frames(root), (root / "Annotations/480p/video/00000.png").read_bytes()]
        opened = [Answer(content) for content in answers]
        with mock.patch("urllib.request.urlopen", side_effect=opened):
            for cell in cells:
                exec(_runnable(cell), names)
    torch.set_grad_enabled(True)
    resize = names["ResizeToMultiple"]
    normalise = names["transform"].transforms[-1]
    full = names["postprocess_probs"](propagation.FULL[None])[0].argmax(dim=0)
    shape = resize(960, 14)(Image.new("RGB", SIZES[0]))
    assert shape.size[::-1] == (966, 1722)
    return {
        "sizes": [
            list(resize(_constant(cells, "SHORT_SIDE"), PATCH)(Image.new("RGB", size)).size[::-1])
            for size in SIZES
        ],
        "frame": summary(_pixels(resize(240, PATCH)(propagation.picture()))),
        "normalised black": normalise(torch.zeros(3, 1, 1)).flatten(),
        "shares": _shares(names),
        "masks": propagation.masks_summary(list(names["mask_predictions"].numpy())),
        "object that fills the frame": int(full.max()),
        "previous frames": names["MAX_CONTEXT_LENGTH"],
        "radius": names["NEIGHBORHOOD_SIZE"],
        "neighbours": names["TOPK"],
    }


def _frames(root: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path in sorted((root / "JPEGImages/480p/video").iterdir()):
            tar.add(path, path.name)
    return content.getvalue()


def _runnable(cell: str) -> str:
    """A cell for a CPU and a short side of 240 pixels, without what it draws and prints."""
    tree = ast.parse(
        cell.replace('"cuda"', '"cpu"').replace("SHORT_SIDE = 960", "SHORT_SIDE = 240")
    )
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.Expr) and ast.unparse(node).startswith(DRAWN))
    ]
    return ast.unparse(tree)


def _constant(cells: list[str], name: str) -> int:
    """What a cell assigns to a name."""
    for node in ast.walk(ast.parse("\n".join(cells))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise KeyError(name)


def _pixels(image: Image.Image) -> torch.Tensor:
    import torchvision.transforms.functional as transforms

    return transforms.pil_to_tensor(image)


def _shares(names: dict[str, Any]) -> torch.Tensor:
    from torch.nn.functional import normalize

    current, features, labels = propagation.features_and_labels()
    shares = names["propagate"](
        normalize(current, dim=0).movedim(0, -1),
        normalize(features, dim=1).movedim(1, -1),
        labels.movedim(1, -1),
        names["make_neighborhood_mask"](
            *propagation.GRID, size=2, shape=names["NEIGHBORHOOD_SHAPE"]
        ),
        names["TOPK"],
        names["TEMPERATURE"],
    )
    return shares.movedim(-1, 0)


def suite() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return propagation.suite("dinov3", Path(folder), MEAN, STD)
