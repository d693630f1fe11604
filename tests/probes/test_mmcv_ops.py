"""mmcv's operators from torchvision, through mmcv's and mmdet's own functions."""

import subprocess
import sys

import pytest
import torch
import torchvision.ops
from torch import Tensor

from probes import mmlab  # before mmcv, whose operators it brings

# isort: split
from mmcv.ops import RoIAlign, nms, roi_align

pytestmark = pytest.mark.skipif(
    not isinstance(sys.modules[mmlab.MMCV_OPERATORS], mmlab.TorchvisionOps),
    reason="mmcv has compiled operators",
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


# no two boxes of whole pixels overlap by exactly these thresholds: rounding must not decide
@pytest.mark.parametrize("threshold", [0.1234567, 0.31415927, 0.7071068])
@pytest.mark.parametrize("offset", [0, 1])
def test_nms(threshold, offset):
    """Of boxes of whole pixels and few scores: equal boxes, equal scores, touching edges."""
    random = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 12, (60, 2), generator=random)
    sides = torch.randint(1, 8, (60, 2), generator=random)
    boxes = torch.cat([corners, corners + sides], dim=1).float()
    scores = torch.randint(1, 4, (60,), generator=random) / 4
    detections, indices = nms(boxes, scores, threshold, offset=offset)
    assert indices.tolist() == reference_nms(boxes, scores, threshold, offset)
    assert torch.equal(detections, torch.cat([boxes, scores[:, None]], dim=1)[indices])


def test_roi_align_is_torchvisions():
    maps = torch.randn(2, 3, 6, 8, requires_grad=True)
    expected = torchvision.ops.roi_align(maps, ROIS, (3, 2), 0.25, 2, True)
    assert torch.equal(roi_align(maps, ROIS, (3, 2), 0.25, 2, "avg", True), expected)
    layer = RoIAlign((3, 2), 0.25, 2, use_torchvision=True)
    gradients = [torch.autograd.grad(out.sum(), maps)[0] for out in (layer(maps, ROIS), expected)]
    assert torch.equal(*gradients)


@pytest.mark.slow
def test_compiled_operators_are_used_where_they_exist(tmp_path):
    """A module in mmcv's path stands for a compiled one."""
    (tmp_path / "_ext.py").touch()
    program = (
        f"import mmcv; mmcv.__path__.insert(0, {str(tmp_path)!r})\n"
        "import probes\n"
        f"import mmcv._ext; assert mmcv._ext.__file__.startswith({str(tmp_path)!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
