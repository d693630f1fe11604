"""The cross-entropy of resized logits against torch's and mmseg's own, value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.structures import PixelData
from torch.nn import functional as F

import probes.dense.config  # noqa: F401  registers the heads
from probes.dense import losses as loss_module
from probes.dense.losses import resized_cross_entropy
from probes.dense.model import DenseModel

from mmseg.models import EncoderDecoder  # isort: skip
from mmseg.models.decode_heads import PSPHead  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip

sides = st.integers(1, 9)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    low=st.tuples(sides, sides),
    high=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    classes=st.integers(2, 30),
    align=st.booleans(),
    cached=st.sampled_from([1, 2**12, 2**20]),
)
def test_it_is_torchs(seed, low, high, classes, align, cached):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(3, classes, *low, generator=generator)).requires_grad_()
    labels = torch.randint(0, classes, (3, *high), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[0] = 255  # an image without a label
    labels[1, 0, 0] = 1
    large = F.interpolate(logits, high, mode="bilinear", align_corners=align)
    expected = F.cross_entropy(large, labels, ignore_index=255)
    (gradient,) = torch.autograd.grad(2 * expected, logits)
    before, loss_module.CACHED_BYTES = loss_module.CACHED_BYTES, cached  # how many images at once
    try:
        loss, right, scored = resized_cross_entropy(logits, labels, 255, align)
    finally:
        loss_module.CACHED_BYTES = before
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(2 * loss, logits)[0], gradient, rtol=1e-4, atol=1e-6
    )
    assert scored == (labels != 255).sum()
    # pixels whose best two classes are within rounding may count either way
    best = large.detach().topk(2, dim=1).values
    unsure = ((best[:, 0] - best[:, 1]) < 1e-4) & (labels != 255)
    assert abs(right - (large.argmax(1) == labels).sum()) <= unsure.sum()


def test_nothing_to_score_is_no_loss():
    logits = torch.randn(2, 3, 4, 4).requires_grad_()
    loss, right, scored = resized_cross_entropy(logits, torch.full((2, 8, 8), 255), 255, False)
    loss.backward()
    assert loss == right == scored == 0 and not logits.grad.any()


def samples(labels):
    packed = [
        SegDataSample(metainfo={"ori_shape": tuple(labels_of_image.shape)})
        for labels_of_image in labels
    ]
    for sample, labels_of_image in zip(packed, labels, strict=True):
        sample.set_data({"gt_sem_seg": PixelData(data=labels_of_image[None])})
    return packed


def model_with(kind, head):
    """A model of this class without a backbone."""
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.decode_head, model.align_corners, model.train_cfg = head, False, None
    return model


@pytest.mark.parametrize(
    "loss",
    [
        {"avg_non_ignore": True},
        {"avg_non_ignore": True, "loss_weight": 0.4},
        {"avg_non_ignore": False},
        {"avg_non_ignore": False, "class_weight": [1.0, 2.0, 0.5, 1.0]},
    ],
)
def test_a_segmenter_learns_what_mmsegs_does(loss):
    torch.manual_seed(0)
    config = {
        "in_channels": 6,
        "in_index": 0,
        "channels": 8,
        "num_classes": 4,
        "dropout_ratio": 0.0,
        "loss_decode": {"type": "CrossEntropyLoss", **loss},
    }
    heads = [PSPHead(**config) for _ in range(2)]
    heads[0].load_state_dict(heads[1].state_dict())
    model = model_with(DenseModel, heads[0])
    model.loss_images = None
    labels = torch.randint(0, 4, (3, 20, 28))
    labels[:, :4] = 255
    features, results = torch.randn(3, 6, 5, 7), []
    for head in (model, model_with(EncoderDecoder, heads[1])):
        losses = head._decode_head_forward_train((features,), samples(labels))
        losses["decode.loss_ce"].backward()
        gradient = head.decode_head.conv_seg.weight.grad
        results.append((losses["decode.loss_ce"].item(), float(losses["decode.acc_seg"]), gradient))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], abs=0.1)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-4, atol=1e-6)
