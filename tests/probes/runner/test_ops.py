"""mmcv's operators from torchvision's kernels, against brute-force references, through mmcv's own
functions."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import UserError
from probes.runner import ops

OURS = ops.install()

# isort: split
from mmcv.ops import RoIAlign, batched_nms, nms, roi_align  # noqa: E402

# ---------------------------------------------------------------- nms


def reference_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int = 0) -> list[int]:
    """Take the best box left, drop all that overlap it by more than the threshold, repeat; ties in
    input order."""
    left = sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if reference_iou(boxes[best], boxes[i], offset) <= threshold]
    return kept


def reference_iou(a: Tensor, b: Tensor, offset: int = 0) -> float:
    a, b = a.double(), b.double()
    width = max(float(min(a[2], b[2]) - max(a[0], b[0]) + offset), 0)
    height = max(float(min(a[3], b[3]) - max(a[1], b[1]) + offset), 0)
    areas = [float((c[2] - c[0] + offset) * (c[3] - c[1] + offset)) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


@st.composite
def scored_boxes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Boxes on a coarse grid of whole pixels and scores of few values: equal boxes, equal scores,
    touching edges."""
    count = draw(st.integers(0, 12))
    corner, side = st.integers(0, 12), st.integers(1, 8)
    boxes = [
        (x, y, x + w, y + h)
        for x, y, w, h in (draw(st.tuples(corner, corner, side, side)) for _ in range(count))
    ]
    scores = [draw(st.sampled_from([0.1, 0.5, 0.9])) for _ in range(count)]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores)


# thresholds that no overlap of two whole-pixel boxes meets exactly: rounding must not decide
@given(
    scored_boxes(),
    st.sampled_from([0.1234567, 0.31415927, 0.5772157, 0.7071068]),
    st.sampled_from([0, 1]),
)
@settings(deadline=None)
def test_nms(boxes_and_scores: tuple[Tensor, Tensor], threshold: float, offset: int) -> None:
    boxes, scores = boxes_and_scores
    found, indices = nms(boxes, scores, threshold, offset=offset)
    assert indices.tolist() == reference_nms(boxes, scores, threshold, offset)
    assert torch.equal(found, torch.cat([boxes, scores[:, None]], dim=1)[indices])


def test_nms_keeps_a_box_whose_overlap_is_the_threshold_itself() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]])  # IoU is exactly 0.5
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1].tolist() == [0, 1]
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.499)[1].tolist() == [0]


def test_nms_of_nothing_and_with_limits() -> None:
    found, indices = nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert found.shape == (0, 5) and indices.shape == (0,)
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    scores = torch.tensor([0.3, 0.9, 0.1])
    assert nms(boxes, scores, 0.5, score_threshold=0.2)[1].tolist() == [1, 0]
    assert nms(boxes, scores, 0.5, max_num=1)[1].tolist() == [1]


@given(scored_boxes(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_batched_nms_is_nms_within_each_class(
    boxes_and_scores: tuple[Tensor, Tensor], random: object
) -> None:
    boxes, scores = boxes_and_scores
    classes = torch.tensor([random.randrange(3) for _ in boxes], dtype=torch.int64)  # type: ignore[attr-defined]
    # distinct scores: mmcv sorts the kept ones of all classes again
    scores = scores + torch.arange(len(scores)) * 1e-3
    config = {"type": "nms", "iou_threshold": 0.31415927}
    indices = batched_nms(boxes, scores, classes, config)[1].tolist() if len(boxes) else []
    expected = []
    for one in range(3):
        own = (classes == one).nonzero().flatten()
        expected += [int(own[i]) for i in reference_nms(boxes[own], scores[own], 0.31415927)]
    assert indices == sorted(expected, key=lambda i: -float(scores[i]))
    if len(boxes):
        together = batched_nms(boxes, scores, classes, config, class_agnostic=True)[1].tolist()
        assert together == reference_nms(boxes, scores, 0.31415927)


# ---------------------------------------------------------------- RoIAlign


def reference_roi_align(
    maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float, samples: int, aligned: bool
) -> Tensor:
    """Mask R-CNN's RoIAlign, sample by sample, in differentiable torch."""
    _, channels, height, width = maps.shape
    pooled = []
    for index, *corners in rois.tolist():
        shift = 0.5 if aligned else 0.0
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        roi_width, roi_height = x2 - x1, y2 - y1
        if not aligned:
            roi_width, roi_height = max(roi_width, 1.0), max(roi_height, 1.0)
        rows = samples or math.ceil(roi_height / size[0])
        columns = samples or math.ceil(roi_width / size[1])
        for i in range(size[0]):
            for j in range(size[1]):
                total = maps.new_zeros(channels)
                for a in range(rows):
                    for b in range(columns):
                        y = y1 + roi_height / size[0] * (i + (a + 0.5) / rows)
                        x = x1 + roi_width / size[1] * (j + (b + 0.5) / columns)
                        total = total + bilinear(maps[int(index)], y, x, height, width)
                pooled.append(total / max(rows * columns, 1))
    return torch.stack(pooled).reshape(len(rois), *size, channels).permute(0, 3, 1, 2)


def bilinear(one: Tensor, y: float, x: float, height: int, width: int) -> Tensor:
    """Value of a (C, H, W) map at a point: zero beyond one pixel outside, the border's value within
    it."""
    if y < -1 or y > height or x < -1 or x > width:
        return one.new_zeros(one.shape[0])
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = (y - top if top < height - 1 else 0.0), (x - left if left < width - 1 else 0.0)
    return (
        one[:, top, left] * (1 - v) * (1 - u)
        + one[:, top, right] * (1 - v) * u
        + one[:, bottom, left] * v * (1 - u)
        + one[:, bottom, right] * v * u
    )


ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 17.7, 12.9],
        [1, 0.0, 0.0, 31.0, 23.0],
        [0, -9.0, -5.0, 6.0, 40.0],  # beyond the image
        [1, 10.2, 9.9, 10.9, 10.4],  # smaller than a cell
        [0, 28.0, 20.0, 90.0, 70.0],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(2, 2), (3, 2)])
def test_roi_align_and_its_gradient(aligned: bool, samples: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(ROIS), 3, *size, dtype=torch.float64)
    expected = reference_roi_align(maps, ROIS, size, 0.25, samples, aligned)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), maps)

    found = roi_align(maps, ROIS, size, 0.25, samples, "avg", aligned)
    (gradient,) = torch.autograd.grad((found * weight).sum(), maps)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_roi_align_layer_without_regions_and_in_single_precision() -> None:
    maps = torch.randn(1, 3, 6, 8, requires_grad=True)
    layer = RoIAlign((7, 7), 0.25, 2)
    none = layer(maps, torch.empty(0, 5))
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert maps.grad is not None and not maps.grad.any()
    some = ROIS[ROIS[:, 0] == 0].float()
    torch.testing.assert_close(
        layer(maps, some),
        reference_roi_align(maps, some, (7, 7), 0.25, 2, True),
        rtol=1e-4,
        atol=1e-5,
    )


# ---------------------------------------------------------------- the stand-in itself

stand_in_only = pytest.mark.skipif(
    not OURS, reason="mmcv has compiled operators here, which are used instead"
)


@stand_in_only
def test_what_torchvision_lacks_is_named_when_called() -> None:
    with pytest.raises(UserError, match=r"'max' .* use 'avg', or build mmcv"):
        roi_align(
            torch.randn(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 3, 3]]), (2, 2), 1.0, 0, "max", True
        )
    from mmcv.ops import carafe

    with pytest.raises(
        UserError, match=r"'carafe_forward' is not installed.*MMCV_WITH_OPS=1"
    ) as error:
        carafe(torch.randn(1, 4, 4, 4), torch.randn(1, 25, 8, 8), 5, 1, 2)
    assert "\n" not in str(error.value)
    assert not hasattr(sys.modules[ops.NAME], "__path__")


@stand_in_only
def test_install_may_be_repeated() -> None:
    module = sys.modules[ops.NAME]
    assert ops.install() and sys.modules[ops.NAME] is module
    spec = importlib.util.find_spec(ops.NAME)
    assert spec is module.__spec__ and spec is not None and spec.loader is not None


def test_compiled_operators_are_used_where_there_are_some(tmp_path: Path) -> None:
    """A module on mmcv's path stands for a compiled one; another process, because this one has
    imported mmcv."""
    (tmp_path / "_ext.py").write_text("mark = 'compiled'\n")
    program = (
        f"import mmcv; mmcv.__path__.insert(0, {str(tmp_path)!r})\n"
        "from probes.runner import ops\n"
        "assert ops.install() is False and ops.compiled_ops_present()\n"
        "import mmcv._ext\n"
        "assert mmcv._ext.mark == 'compiled'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
