"""Calibration and out-of-distribution detection: against torchmetrics and sklearn, and where the
answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torchmetrics.functional.classification import multiclass_calibration_error

from cliptex_common.errors import UserError
from probes.base import Head
from probes.datasets import classification as imagenet
from probes.image_level.classification import fit_temperature
from probes.image_level.metrics import KNOWN, classification, detection_of_unknown
from probes.image_level.robustness import probability_scores
from probes.registry import find_task
from tests.probes.datasets.make_shifts import make_imagenet
from tests.probes.whole_images import context

CLASSES = 10


def predictions(count: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that are drawn from their probabilities; the logits then times a scale."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    return scale * logits, labels


def scores(logits: torch.Tensor, labels: torch.Tensor):
    prediction = logits.argmax(dim=1)
    arrays = {
        "rank": (prediction != labels).long().numpy(),
        "label": labels.numpy(),
        "prediction": prediction.numpy(),
        **probability_scores(logits, labels, ""),
    }
    return classification(tuple(map(str, range(len(labels)))), arrays)


@pytest.mark.parametrize("scale", [0.3, 1, 3])
def test_scores_are_those_of_torchmetrics_and_torch(scale):
    logits, labels = predictions(1500, scale)
    computed, probabilities = scores(logits, labels), logits.softmax(dim=1)
    ece = multiclass_calibration_error(probabilities, labels, CLASSES, n_bins=15)
    assert computed.value("ece") == pytest.approx(100 * ece.item(), abs=1e-4)
    # bins of equal numbers of images
    confidence, prediction = probabilities.max(dim=1)
    gaps = (prediction == labels).double() - confidence
    adaptive = gaps[confidence.argsort()].view(15, 100).mean(dim=1).abs().mean()
    assert computed.value("ece_adaptive") == pytest.approx(100 * adaptive.item(), abs=1e-9)
    nll = torch.nn.functional.cross_entropy(logits, labels)
    assert computed.value("nll") == pytest.approx(nll.item())
    one_hot = torch.nn.functional.one_hot(labels, CLASSES)
    brier = (probabilities - one_hot).square().sum(dim=1).mean()
    assert computed.value("brier") == pytest.approx(brier.item())


def test_a_confidence_of_one_is_in_the_last_bin():
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0], [3.0, 0.0]])
    computed = scores(logits, torch.tensor([0, 1, 0]))
    confidence = torch.sigmoid(torch.tensor(3.0)).item()
    assert computed.value("ece") == pytest.approx(100 * abs(2 - 2 - confidence) / 3)


def test_logits_times_three_have_temperature_three():
    assert fit_temperature(*predictions(50_000)) == pytest.approx(1, abs=0.02)
    assert fit_temperature(*predictions(50_000, 3)) == pytest.approx(3, abs=0.06)


def test_metrics_of_a_resample_are_those_of_its_images():
    logits, labels = predictions(300, 2)
    computed = scores(logits, labels)
    counts = np.random.default_rng(0).integers(0, 3, len(labels))
    rows = torch.from_numpy(np.repeat(np.arange(len(labels)), counts))
    repeated = scores(logits[rows], labels[rows])
    for name in ("ece", "ece_adaptive", "nll", "brier"):
        weighted = computed.metrics[name](counts[None].astype(np.float32))
        assert weighted[0] == pytest.approx(repeated.value(name))


def unknown(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sets = np.concatenate([np.full(size, name) for name, size in sizes.items()])
    shifts = np.array([0.0 if name == KNOWN else len(name) / 5 for name in sets])
    values = {name: rng.normal(shifts).round(1) for name in ("msp", "energy", "knn")}
    return {"image": np.arange(len(sets)).astype(str), "set": sets, **values}


def test_unknown_images_are_detected_as_sklearn_computes_it():
    arrays = unknown({KNOWN: 300, "near/a": 100, "near/bbb": 50, "far/c": 80})
    computed = detection_of_unknown(tuple(arrays["image"]), arrays)
    for score in ("msp", "energy", "knn"):
        aurocs, rates = {}, {}
        for name in ("near/a", "near/bbb", "far/c"):
            chosen = np.isin(arrays["set"], [KNOWN, name])
            is_ood = arrays["set"][chosen] == name
            aurocs[name] = 100 * roc_auc_score(is_ood, arrays[score][chosen])
            flagged, detected, _ = roc_curve(is_ood, arrays[score][chosen], drop_intermediate=False)
            rates[name] = 100 * flagged[np.argmax(detected >= 0.95)]
        assert computed.value(f"auroc_{score}") == pytest.approx(np.mean([*aurocs.values()]))
        assert computed.value(f"fpr95_{score}") == pytest.approx(np.mean([*rates.values()]))
        near = [aurocs["near/a"], aurocs["near/bbb"]]
        assert computed.value(f"near_auroc_{score}") == pytest.approx(np.mean(near))
        assert computed.value(f"far_fpr95_{score}") == pytest.approx(rates["far/c"])


def test_detection_is_computed_again_in_each_resample():
    arrays = unknown({KNOWN: 60, "far/c": 40})
    computed = detection_of_unknown(tuple(arrays["image"]), arrays)
    counts = np.random.default_rng(1).integers(0, 3, 100)
    rows = np.repeat(np.arange(100), counts)
    repeated = {name: values[rows] for name, values in arrays.items()}
    again = detection_of_unknown(tuple(repeated["image"]), repeated)
    for name, metric in computed.metrics.items():
        assert metric(counts[None].astype(np.float32))[0] == pytest.approx(again.value(name))


def test_a_head_that_was_stored_without_a_temperature_is_named(tmp_path):
    root, (spec, probe) = make_imagenet(tmp_path), find_task("imagenet/calibration")
    head = Head({}, {"task": "imagenet", "classes": imagenet.wnids()})
    task = replace(context(probe, spec, root), head=head)
    with pytest.raises(UserError, match="--task imagenet/linear --force"):
        probe.run(task)
