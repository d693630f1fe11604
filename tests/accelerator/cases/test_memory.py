"""Memory is known before it is needed, and where it ends the work goes on or ends with one line."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import backbones
import probes.catalog  # noqa: F401  registers probes and datasets
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.protocols import Silent
from backbones.cliptex.training.memory import training_peak
from backbones.cliptex.training.models import load_pretrained_clip
from backbones.cliptex.training.recipes import find_recipe
from backbones.cliptex.training.train import TrainContext, train
from cliptex_common.errors import OutOfMemory
from probes.base import Context, EncodeRun
from probes.datasets.check import prepare
from probes.image_level.encode import encode_images
from probes.image_level.settings import Encoding
from probes.memory.predict import predict
from probes.registry import DATASETS, PROBES
from tests.accelerator.cases.tasks import WHOLE_IMAGES
from tests.accelerator.pretended import MEMORY, memory_limit
from tests.backbones.cliptex import toy
from tests.probes import tiny_coco, tiny_dense
from tests.probes.datasets import make
from tests.probes.datasets.make import make_imagefolder

pytestmark = pytest.mark.usefixtures("pretended")
BACKBONE = "random/timm/vit_tiny_patch16_224"
DENSE = {"size": 64, "max_iters": 2, "batch_size": 4}
CACHED = {**DENSE, "fixed_crops": 2, "cache": "fp16"}
MASKS = {
    "short_side": 90,  # no multiple of what backbones divide by
    "long_side": 128,
    "out_channels": 32,
    "fc_out_channels": 64,
    "proposals": 50,
    "rois_per_image": 32,
    "detections": 20,
    "max_iters": 2,
    "batch_size": 2,
}
SSD = {"size": 96, "out_channels": 32, "max_iters": 2, "batch_size": 4, "augment": False}
WHOLE = {"size": 64, "encode_batch_size": 64}
CROPS = {
    **WHOLE,
    "random_crops": True,
    "standardise": False,
    "blocks": (1, 4),
    "average_pool": (False, True),
    "batch_size": 16,
    "epochs": 1,
    "epoch_length": 3,
    "learning_rates": (0.01, 0.1),
    "weight_decays": (0.0,),
}
WINDOWS = {"size": 64, "slide": (32, 16)}
ATTENTIVE = {**WHOLE, "batch_size": 16, "epochs": 2}
TOLERANCE = 0.15


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Features of one case are not cached for the next."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Kind of a probe → its dataset."""
    root = tmp_path_factory.mktemp("data")
    make_imagefolder(root / "folder", n_train=20, n_val=20)
    dense = {
        kind: tiny_dense.make(root / kind, kind, val=4, size=(96, 128))
        for kind in ("segmentation", "depth", "normals")
    }
    texts = {"image-text": ("flickr30k", partial(make.make_flickr, n_test=80))}
    others = {}
    for kind, (name, write) in {**WHOLE_IMAGES, **texts}.items():
        if kind != "classification":
            write(root / kind)
            others[kind] = prepare(DATASETS[name], root / kind, splits=("val",), partial=True)
    spec = DATASETS["imagefolder"]
    return {
        **dense,
        **others,
        "classification": prepare(spec, root / "folder", splits=("train", "val"), partial=True),
        "detection": tiny_coco.prepared(tiny_coco.write(root / "coco")),
    }


def task(name, data, work_dir, device, backbone=BACKBONE, **settings):
    """A probe and its context on the device."""
    probe = PROBES[name]
    work_dir.mkdir(parents=True, exist_ok=True)
    reads = getattr(probe, "needs_text", False)
    return probe, Context(
        backbone=load_pretrained_clip("random", "tiny") if reads else backbones.create(backbone),
        backbone_config={"name": backbone},
        data=data[probe.kind],
        settings=probe.settings_type(**settings),
        seed=0,
        device=device,
        work_dir=work_dir,
        log=Silent(),
        progress=Silent(),
        num_workers=0,
    )


def on_device(context):
    return replace(context, backbone=context.backbone.to(context.device))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("classification/linear", WHOLE),
        pytest.param("classification/knn", WHOLE, marks=pytest.mark.slow),
        pytest.param("classification/few-shot", WHOLE, marks=pytest.mark.slow),
        pytest.param(
            "classification/attentive",
            {**WHOLE, "batch_size": 16, "epochs": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param("segmentation/linear", DENSE, marks=pytest.mark.slow),
        ("segmentation/pspnet", {**DENSE, "channels": 64}),
        pytest.param("depth/dpt", {**DENSE, "channels": 64}, marks=pytest.mark.slow),
        ("normals/linear", CACHED),
        ("segmentation/patch-knn", {"size": 64}),
        pytest.param("segmentation/in-context", {"size": 64}, marks=pytest.mark.slow),
        pytest.param("segmentation/logreg", {"size": 64, "iterations": 3}, marks=pytest.mark.slow),
        pytest.param("detection/mask-rcnn", MASKS, marks=pytest.mark.slow),
        ("detection/mask-rcnn", {**MASKS, "cache": "fp16"}),
        pytest.param("detection/ssd", SSD, marks=pytest.mark.slow),
        pytest.param("classification/linear", CROPS, marks=pytest.mark.slow),
        pytest.param("classification/zero-shot", {}, marks=pytest.mark.slow),
        pytest.param("image-text/retrieval", {}, marks=pytest.mark.slow),
        pytest.param("association/zero-shot", {}, marks=pytest.mark.slow),
        pytest.param("correspondence/keypoints", {"size": 128}, marks=pytest.mark.slow),
        pytest.param("segmentation/open-vocabulary", {"size": 64}, marks=pytest.mark.slow),
        pytest.param("segmentation/open-vocabulary", WINDOWS, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("cache", ""),
)
def test_the_peak_of_a_probe_is_predicted(name, settings, data, device, tmp_path):
    probe, context = task(name, data, tmp_path / "work", device, **settings)
    (peak,) = predict([(probe, context)], 8 << 30)
    gc.collect()
    before = MEMORY.live  # of earlier tests
    context = on_device(context)
    MEMORY.reset_peak()
    probe.run(context)
    counted = MEMORY.peak - before
    assert peak.device == pytest.approx(counted, rel=TOLERANCE), (peak, MEMORY.peak_line)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        pytest.param("clip", ("grad_checkpointing=true",), marks=pytest.mark.slow),
        pytest.param("cliptex", (), marks=pytest.mark.slow),
        pytest.param("cliptex", ("ema=0.9", "precision=bf16"), marks=pytest.mark.slow),
        ("cliptex", ("accumulate=4",)),
    ],
)
def test_the_peak_of_a_training_is_predicted(recipe, changes, device, tmp_path):
    pairs = open_pairs(toy.write_pairs(tmp_path / "pairs", 48, 2))
    changes = ["model=tiny", "batch_size=16", "epochs=1", *changes]
    if not any(change.startswith("precision") for change in changes):
        changes.append("precision=fp32")
    recipe, labels = find_recipe(recipe, changes), toy.ToyLabels()
    start = load_pretrained_clip("random", recipe.model)
    predicted = training_peak(recipe, start, labels if recipe.tasks else None, device)
    gc.collect()
    before = MEMORY.live  # of earlier tests
    MEMORY.reset_peak()
    context = TrainContext(device=device, workers=0, norms_every=1)
    out = tmp_path / "out.safetensors"
    train(recipe, init="random", pairs=pairs, labels=labels, out=out, context=context)
    assert predicted == pytest.approx(MEMORY.peak - before, rel=TOLERANCE), MEMORY.peak_line


def test_encoding_goes_on_in_smaller_batches(data, device, tmp_path, caplog):
    backbone = backbones.create(BACKBONE).to(device)
    dataset = data["classification"]
    paths = [dataset.root / sample.image for sample in dataset.samples["train"]]

    def embeddings(limit):
        run = EncodeRun(device, num_workers=0)
        with memory_limit(limit), caplog.at_level(logging.WARNING):
            encoded = encode_images(backbone, paths, run, Encoding((64, 64), batch_size=64))
        return encoded, run.cost.notes

    live = MEMORY.live
    MEMORY.reset_peak()
    unlimited, notes = embeddings(MEMORY.UNLIMITED)
    assert not notes and not caplog.records
    halved, notes = embeddings(live + int(0.4 * (MEMORY.peak - live)))
    assert torch.allclose(halved, unlimited, atol=1e-5)
    (note,) = notes
    assert note.startswith("encoding images: at most 16 at once instead of 64")
    assert len(caplog.records) == 2  # to 32, to 16
    with pytest.raises(OutOfMemory, match="encoding images one by one does not fit"):
        embeddings(live + 100_000)


@pytest.mark.parametrize("settings", [DENSE, CACHED], ids=["images", "cached"])
def test_evaluation_goes_on_in_smaller_batches(settings, data, device, tmp_path):
    probe, context = task("segmentation/linear", data, tmp_path / "work", device, **settings)
    context = on_device(context)
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
        shared = on_device(tasks[0][1]).backbone
        tasks = [(probe, replace(context, backbone=shared)) for probe, context in tasks]
        with memory_limit(limit):
            return tasks[0][0].run_group(tasks)

    linear, large = ("segmentation/linear", {}), ("segmentation/pspnet", {"channels": 1024})
    (alone,) = group("alone", MEMORY.UNLIMITED, linear)
    failed, fitting = group("group", MEMORY.live + 120_000_000, large, linear)
    assert isinstance(failed, OutOfMemory) and "lower batch_size" in str(failed)
    assert fitting.metrics == alone.metrics
