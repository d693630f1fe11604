"""The number of computing threads moves numbers by rounding alone."""

import pytest
import torch

from benchmark.unit import threads
from tests.probes import tiny_dense
from tests.probes.dense.test_cached import run


@pytest.mark.integration
def test_equal_threads_give_equal_bits_and_others_differ_by_rounding(tmp_path):
    """Four iterations on a ResNet-18: weights of the head differ by 1e-4 of the largest, at most,
    and the metric by as much."""
    data = tiny_dense.make(tmp_path / "data", "depth", train=4, val=2)
    results = []
    for number, count in enumerate((1, 2, 2)):
        with threads(count):
            backbone = "random/timm/resnet18"
            results.append(run(tmp_path / str(number), "depth", data, backbone=backbone))
    one, two, again = results
    assert two.metrics == again.metrics
    assert two.metrics["abs_rel"] == pytest.approx(one.metrics["abs_rel"], rel=1e-4)
    assert again.head.tensors.keys() == one.head.tensors.keys()
    for name, weight in two.head.tensors.items():
        assert torch.equal(weight, again.head.tensors[name])
        expected = one.head.tensors[name]
        torch.testing.assert_close(
            weight, expected, rtol=0, atol=1e-4 * expected.abs().amax().item()
        )
