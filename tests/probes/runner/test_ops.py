"""mmcv's operators from torchvision, through mmcv's and mmdet's own functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.ops
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import probes.runner.bridge  # installs the operators
from probes.runner import ops

# isort: split
from mmcv.ops import RoIAlign, carafe, nms, roi_align
from mmdet.structures.mask import BitmapMasks

pytestmark = pytest.mark.skipif(
    not isinstance(sys.modules[ops.NAME], ops.TorchvisionOps), reason="mmcv has compiled operators"
)
ROIS = torch.tensor([[0, 1.3, 2.1, 17.7, 12.9], [1, 0, 0, 31, 23], [0, -9, -5, 6, 40]])


def reference_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    """Take the best remaining box, drop all that overlap it by more than the threshold, repeat;
    equal scores keep their order."""
    remaining = sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))
    best = []
    while remaining:
        best.append(remaining.pop(0))
        overlap = {i: iou(boxes[best[-1]], boxes[i], offset) for i in remaining}
        remaining = [i for i in remaining if overlap[i] <= threshold]
    return best


def iou(a: Tensor, b: Tensor, offset: int) -> float:
    width = max(float(min(a[2], b[2]) - max(a[0], b[0]) + offset), 0)
    height = max(float(min(a[3], b[3]) - max(a[1], b[1]) + offset), 0)
    areas = [float((box[2] - box[0] + offset) * (box[3] - box[1] + offset)) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


@st.composite
def scored_boxes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Boxes of whole pixels and few scores: equal boxes, equal scores, touching edges."""
    corner, side = st.integers(0, 12), st.integers(1, 8)
    boxes = draw(st.lists(st.tuples(corner, corner, side, side), max_size=12))
    corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    scores = [draw(st.sampled_from([0.1, 0.5, 0.9])) for _ in boxes]
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores)


# no two boxes of whole pixels overlap by exactly these thresholds: rounding must not decide
@given(scored_boxes(), st.sampled_from([0.1234567, 0.31415927, 0.7071068]), st.integers(0, 1))
def test_nms(boxes_and_scores, threshold, offset):
    boxes, scores = boxes_and_scores
    detections, indices = nms(boxes, scores, threshold, offset=offset)
    assert indices.tolist() == reference_nms(boxes, scores, threshold, offset)
    assert torch.equal(detections, torch.cat([boxes, scores[:, None]], dim=1)[indices])


def imports(path: Path) -> list[str]:
    """What a module imports at its top, in order."""
    names = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_operators_are_installed_before_mmlab_is_imported():
    root, late = Path(probes.__path__[0]), []
    for path in root.rglob("*.py"):
        relevant = ("probes.runner.bridge", "mmdet.", "mmseg.", "mmcv.ops")
        first = next((name for name in imports(path) if name.startswith(relevant)), "")
        if first.startswith("mm") and path != root / "runner" / "bridge.py":
            late.append(f"{path}: {first}")
    assert not late


def test_roi_align_is_torchvisions():
    maps = torch.randn(2, 3, 6, 8, requires_grad=True)
    expected = torchvision.ops.roi_align(maps, ROIS, (3, 2), 0.25, 2, True)
    assert torch.equal(roi_align(maps, ROIS, (3, 2), 0.25, 2, "avg", True), expected)
    layer = RoIAlign((3, 2), 0.25, 2, use_torchvision=True)
    gradients = [torch.autograd.grad(out.sum(), maps)[0] for out in (layer(maps, ROIS), expected)]
    assert torch.equal(*gradients)


def test_mmdet_crops_masks():
    mask = np.zeros((1, 8, 12), np.uint8)
    mask[0, 2:6, 4:8] = 1
    boxes, indices = torch.tensor([[4.0, 2, 8, 6], [0, 2, 8, 6]]), torch.zeros(2, dtype=torch.long)
    cropped = BitmapMasks(mask, 8, 12).crop_and_resize(boxes, (2, 2), indices)
    assert cropped.to_ndarray().tolist() == [[[1, 1], [1, 1]], [[0, 1], [0, 1]]]


def test_other_operators_are_named_when_called():
    with pytest.raises(NotImplementedError, match="'carafe_forward' needs an mmcv"):
        carafe(torch.randn(1, 4, 4, 4), torch.randn(1, 25, 8, 8), 5, 1, 2)


@pytest.mark.integration
def test_compiled_operators_are_used_where_they_exist(tmp_path):
    """A module in mmcv's path stands for a compiled one."""
    (tmp_path / "_ext.py").touch()
    program = (
        f"import mmcv; mmcv.__path__.insert(0, {str(tmp_path)!r})\n"
        "from probes.runner import ops; ops.install()\n"
        f"import mmcv._ext; assert mmcv._ext.__file__.startswith({str(tmp_path)!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
