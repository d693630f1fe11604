"""Where memory ends, the work goes on in smaller batches or ends with one line."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import backbones
import probes.catalog  # noqa: F401  registers probes and datasets
from cliptex_common.errors import OutOfMemory
from cliptex_common.progress import Silent
from probes.base import Context, EncodeContext
from probes.datasets.check import prepare
from probes.image_level.encode import ImageViews
from probes.image_level.settings import Encoding
from probes.registry import DATASETS, PROBES
from tests.accelerator.pretended.counters import MEMORY, memory_limit
from tests.probes import tiny_dense
from tests.probes.datasets.make import make_imagefolder

pytestmark = pytest.mark.usefixtures("pretended")
BACKBONE = "random/timm/vit_tiny_patch16_224"
DENSE = {"size": 64, "max_iters": 2, "batch_size": 4}
CACHED = {**DENSE, "fixed_crops": 2, "cache": "fp16"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Kind of a probe → its dataset."""
    root = tmp_path_factory.mktemp("data")
    make_imagefolder(root / "folder", n_train=20, n_val=20)
    spec = DATASETS["imagefolder"]
    return {
        "segmentation": tiny_dense.make(root, "segmentation", val=4, size=(96, 128)),
        "classification": prepare(spec, root / "folder", partial=True),
    }


def task(name, data, work_dir, device, **settings):
    """A probe and its context on the device."""
    probe = PROBES[name]
    work_dir.mkdir(parents=True, exist_ok=True)
    return probe, Context(
        backbone=backbones.create(BACKBONE).to(device),
        backbone_config={"name": BACKBONE},
        data=data[probe.kind],
        settings=probe.settings_type(**settings),
        seed=0,
        device=device,
        work_dir=work_dir,
        log=Silent(),
        progress=Silent(),
        num_workers=0,
    )


def test_encoding_goes_on_in_smaller_batches(data, device, tmp_path, caplog):
    backbone = backbones.create(BACKBONE).to(device)
    dataset = data["classification"]
    paths = [dataset.root / sample.image for sample in dataset.samples["train"]]

    def embeddings(limit):
        run = EncodeContext(device, num_workers=0)
        with memory_limit(limit), caplog.at_level(logging.WARNING):
            views = ImageViews(run, backbone, paths, Encoding((64, 64), batch_size=64))
            encoded = torch.cat([features.cpu() for features in views.tensors()])
        return encoded, run.cost.notes

    gc.collect()  # what earlier tests left would be freed in between
    live = MEMORY.live
    MEMORY.reset_peak()
    unlimited, notes = embeddings(MEMORY.UNLIMITED)
    assert not notes and not caplog.records
    halved, notes = embeddings(live + int(0.4 * (MEMORY.peak - live)))
    assert torch.allclose(halved, unlimited, atol=1e-5)
    (note,) = notes
    assert note.startswith(f"encoding {backbone.name} on images: at most 16 at once instead of 64")
    assert len(caplog.records) == 2  # to 32, to 16
    with pytest.raises(OutOfMemory, match="on images one by one does not fit"):
        embeddings(live + 100_000)


@pytest.mark.parametrize("settings", [DENSE, CACHED], ids=["images", "cached"])
def test_evaluation_goes_on_in_smaller_batches(settings, data, device, tmp_path):
    probe, context = task("segmentation/linear", data, tmp_path / "work", device, **settings)
    complete, live = probe.run(context), MEMORY.live
    MEMORY.reset_peak()
    probe.run(context)  # it is trained: only evaluated
    with memory_limit(live + int(0.8 * (MEMORY.peak - live))):
        halved = probe.run(context)
    assert any(note.startswith("evaluation: ") for note in context.cost.notes)
    for name, values in complete.per_image.items():
        np.testing.assert_array_equal(halved.per_image[name], values)


def test_a_head_that_does_not_fit_fails_alone(data, device, tmp_path):
    def group(folder, limit, *heads):
        tasks = [
            task(name, data, tmp_path / folder / str(number), device, **{**CACHED, **settings})
            for number, (name, settings) in enumerate(heads)
        ]
        shared = tasks[0][1].backbone
        tasks = [(probe, replace(context, backbone=shared)) for probe, context in tasks]
        with memory_limit(limit):
            return tasks[0][0].run_group(tasks)

    linear, large = ("segmentation/linear", {}), ("segmentation/pspnet", {"channels": 1024})
    (alone,) = group("alone", MEMORY.UNLIMITED, linear)
    failed, fitting = group("group", MEMORY.live + 120_000_000, large, linear)
    assert isinstance(failed, OutOfMemory) and "lower batch_size" in str(failed)
    assert fitting.metrics == alone.metrics
