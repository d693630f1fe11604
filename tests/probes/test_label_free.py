"""Diagnostics without labels: values that are known, and one number of features for all."""

import math
from types import SimpleNamespace

import pytest
import torch

from probes.base import Cost
from probes.pictures import label_free, log_label_free
from tests.recorder import Recorder

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_ranks_of_orthogonal_directions():
    features = torch.eye(8, dtype=torch.float64).repeat(4, 1)
    values = label_free(features)
    assert values["rankme"] == pytest.approx(8) and values["rankme_share"] == pytest.approx(1)
    assert values["stable_rank"] == pytest.approx(8)
    assert math.isnan(values["alpha"]), "seven eigenvalues are too few"
    assert math.isinf(values["two_nn"]), "all are equally far from each other"


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_of_a_power_law(alpha):
    basis, _ = torch.linalg.qr(normal(400, 120))
    basis, _ = torch.linalg.qr(basis - basis.mean(dim=0))  # centred
    scales = torch.arange(1, 121, dtype=torch.float64).pow(-alpha / 2)
    values = label_free(basis * scales)
    assert values["alpha"] == pytest.approx(alpha, rel=1e-6)
    assert values["alpha_r2"] == pytest.approx(1)


@pytest.mark.parametrize("dimension", [2, 5])
def test_two_nn_finds_the_dimension_of_a_plane(dimension):
    plane = normal(2000, dimension) @ normal(dimension, 30)
    copies = torch.cat([plane, plane[:200]])
    for features in (plane, copies):
        assert label_free(features)["two_nn"] == pytest.approx(dimension, rel=0.1)


def test_subsamples_are_of_one_size_and_the_same_for_all():
    log, again = Recorder(), Recorder()
    features = normal(300, 16)
    for recorder in (log, again):
        log_label_free(SimpleNamespace(log=recorder, cost=Cost()), features.float())
    ((_, metrics),) = log.metrics
    assert metrics["label_free/features"] == 150 and metrics["label_free/rankme_spread"] > 0
    assert metrics["label_free/rankme"] == pytest.approx(label_free(features)["rankme"], rel=0.05)
    assert "label_free/alpha" not in metrics and again.metrics == log.metrics
    few = Recorder()
    log_label_free(SimpleNamespace(log=few, cost=Cost()), features[:20])
    assert few.metrics == []


def test_features_that_are_not_finite_have_no_diagnostics():
    log = Recorder()
    log_label_free(SimpleNamespace(log=log, cost=Cost()), normal(300, 16) / torch.zeros(16))
    assert log.metrics == []
