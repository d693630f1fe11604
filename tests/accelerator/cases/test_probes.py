"""Every probe and every preset of a protocol runs on an accelerator, and scores what it scores on a
CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cliptex_common.device import CPU
from cliptex_common.settings import field_names
from probes.base import Probe, TaskResult
from probes.matching.views import PosedViews
from probes.predictor import load_predictor
from probes.registry import PROBES
from probes.upsamplers.upsample import AnyUp
from tests.accelerator.cases.devices import COUNTED, check_metrics, is_pretended
from tests.accelerator.cases.tasks import (
    FIRST_OF_PATH,
    PRESETS,
    PROBE_NAMES,
    make_task,
    small,
    write_data,
)
from tests.accelerator.pretended import operators
from tests.kinds import slow_except
from tests.probes.upsamplers import anyup_module
from tests.recorder import Recorder

EXACT = 1e-4


@pytest.fixture
def in_fp32(monkeypatch):
    """Heads compute in fp32, as on a CPU."""
    monkeypatch.setattr("probes.train.loop.prefers_bf16", lambda device: False)
    monkeypatch.setattr("probes.predictor.prefers_bf16", lambda device: False)


def run_both(probe: Probe, folder: Path, device: torch.device, settings) -> list[TaskResult]:
    """Results of the CPU and of the accelerator."""
    data = write_data(probe, folder / "data")
    return [
        probe.run(make_task(probe, folder / target.type, target, data, settings))
        for target in (CPU, device)
    ]


def check_results(expected: TaskResult, actual: TaskResult, device: torch.device) -> None:
    """Compare metrics, scores of images and trained weights."""
    check_metrics(actual.metrics, expected.metrics, device, EXACT)
    if not is_pretended(device):
        return
    for name, values in expected.per_image.items():
        if values.dtype.kind == "f":
            absolute = COUNTED.get(name, EXACT)
            np.testing.assert_allclose(actual.per_image[name], values, rtol=EXACT, atol=absolute)
        else:
            assert np.array_equal(actual.per_image[name], values), name
    if expected.head:
        assert actual.head is not None
        weights = expected.head.tensors
        differences = torch.cat(
            [(actual.head.tensors[name].cpu() - weights[name]).flatten() for name in weights]
        )
        # Adam divides by a gradient's own size: where that is rounding, so are the weights
        assert (differences.abs() > EXACT).double().mean() < 0.1


NO_CHANGES: dict[str, Any] = {}
CACHED = {"cache": "fp32", "fixed_crops": 2, "augment": False}
UPSAMPLED = {"feature_stride": 4, "layers": "last"}


def cases() -> Iterator[Any]:
    """Every probe, every preset, and settings that other code computes; the first of each kind is
    not slow."""

    def case(name: str, label: str, changes: Mapping[str, Any], is_slow: bool) -> Any:
        label = f"{name} {label}".strip()
        return pytest.param(name, changes, id=label, marks=[pytest.mark.slow] * is_slow)

    for name in PROBE_NAMES:
        yield case(name, "", NO_CHANGES, name not in FIRST_OF_PATH)
        names = field_names(PROBES[name].settings_type)
        if "cache" in names:
            changes = {each: CACHED[each] for each in CACHED.keys() & names}
            yield case(name, "cached", changes, name != "segmentation/linear")
    for label, preset in PRESETS.items():
        yield case(preset.probe, label, preset.settings, True)
    for upsampler in ("jbu", "tile2", "anyup"):
        changes = {**UPSAMPLED, "upsampler": upsampler}
        yield case("segmentation/linear", upsampler, changes, upsampler != "jbu")
    yield case("normals/linear", "uncertainty", {"uncertainty": True}, False)


@pytest.mark.parametrize(("name", "changes"), cases())
def test_scores_are_those_of_the_cpu(name, changes, tmp_path, device, in_fp32, monkeypatch):
    own = AnyUp(anyup_module.seeded(anyup_module.AnyUp()))
    monkeypatch.setattr("probes.upsamplers.upsample.load_upsampler", lambda *_: own)
    probe = PROBES[name]
    check_results(*run_both(probe, tmp_path, device, small(probe, changes)), device)


@pytest.mark.parametrize("kind", slow_except(["segmentation", "depth", "normals"], ["depth"]))
def test_dense_heads_compute_in_bf16(kind, tmp_path, device):
    probe = PROBES[f"{kind}/linear"]
    data = write_data(probe, tmp_path / "data")
    result = probe.run(make_task(probe, tmp_path / "work", device, data, small(probe, NO_CHANGES)))
    assert all(np.isfinite(value) for value in result.metrics.values())


def test_views_are_matched_where_they_are_encoded(tmp_path, device):
    probe = PROBES["object-views/view-matching"]
    data = write_data(probe, tmp_path / "data")
    task = make_task(probe, tmp_path / "work", device, data, small(probe, NO_CHANGES))
    views = PosedViews(task, data.samples["val"]).all()
    assert {feature_map.device.type for feature_map, _ in views} == {device.type}


@pytest.mark.parametrize("name", slow_except(PROBE_NAMES, ["depth/linear", "detection/ssd"]))
def test_a_device_without_float64(name, tmp_path, pretended, in_fp32, monkeypatch):
    monkeypatch.setattr(operators, "MISSING_TYPES", {torch.float64})
    monkeypatch.setattr("cliptex_common.device._computes_in", lambda dtype, kind: False)
    probe = PROBES[name]
    check_results(*run_both(probe, tmp_path, pretended, small(probe, NO_CHANGES)), pretended)


RESUMED = [name for name in PROBE_NAMES if "max_iters" in field_names(PROBES[name].settings_type)]


@pytest.mark.parametrize("name", slow_except(RESUMED, ["segmentation/linear"]))
def test_an_interrupted_training_resumes_to_the_same_bits(name, tmp_path, device):
    probe = PROBES[name]
    data, settings = write_data(probe, tmp_path / "data"), small(probe, NO_CHANGES)
    complete = probe.run(make_task(probe, tmp_path / "complete", device, data, settings))
    task = make_task(probe, tmp_path / "work", device, data, settings)
    with pytest.raises(KeyboardInterrupt):
        probe.run(replace(task, progress=Recorder(die_at=2)))
    resumed = probe.run(task)
    assert resumed.metrics == complete.metrics
    for key, value in complete.head.tensors.items():
        assert torch.equal(resumed.head.tensors[key], value), key


PREDICTED = [
    "classification/linear",
    "segmentation/linear",
    "depth/linear",
    "normals/linear",
    "detection/ssd",
]
SCORED = PREDICTED[:3]


@pytest.mark.parametrize("name", slow_except(PREDICTED, PREDICTED[:2]))
def test_a_stored_head_predicts_and_scores_as_on_the_cpu(name, tmp_path, device, in_fp32):
    """Nothing is trained: the head may be one of another dataset."""
    probe = PROBES[name]
    data, settings = write_data(probe, tmp_path / "data"), small(probe, NO_CHANGES)
    head = probe.run(make_task(probe, tmp_path / "work", CPU, data, settings)).head
    head.write(tmp_path / "head.safetensors")
    results, predictions = [], []
    for target in (CPU, device):
        task = make_task(probe, tmp_path / target.type, target, data, settings)
        options = {"device": str(target)}
        predictor = load_predictor(tmp_path / "head.safetensors", task.backbone, **options)
        predictions.append(predictor(data.root / data.samples["val"][0].image))
        if name in SCORED:
            results.append(probe.run(replace(task, head=head)))
    compare(*predictions)
    if results:
        check_results(*results, device)


def compare(expected, actual) -> None:
    if isinstance(expected, dict):
        assert expected.keys() == actual.keys()
        for key in expected:
            compare(expected[key], actual[key])
    else:
        np.testing.assert_allclose(actual, expected, atol=1e-3, rtol=1e-3)
