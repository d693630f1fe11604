"""A head that was kept predicts what the run that trained it scored."""

from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch

import backbones
import probes.catalog  # noqa: F401 - registers every probe
from backbones.base import Backbone
from common.errors import UserError
from probes.base import TaskResult
from probes.datasets.base import PreparedDataset
from probes.detection.settings import SSDSettings
from probes.predictor import Predictor, load_predictor, read_head, write_head
from probes.registry import DATASETS, PROBES
from tests.probes import tiny_coco, tiny_dense
from tests.probes.datasets import make
from tests.probes.tiny_mmlab import context
from tests.probes.whole_images import context as whole_images

DENSE = {
    "size": 48,
    "batch_size": 4,
    "channels": 8,
    "scale_range": (0.7, 1.5),
    "max_iters": 3,
    "warmup": 0.0,
}


def kept(result: TaskResult, folder: Path, backbone: Backbone | None = None) -> Predictor:
    """The head of a result, from the file that a run keeps, on a backbone that is made anew where
    none is given."""
    assert result.head is not None
    write_head(result.head, folder / "head.safetensors")
    return load_predictor(folder / "head.safetensors", backbone)


@pytest.mark.parametrize(
    ("kind", "name", "changes"),
    [
        ("segmentation", "pspnet", {}),
        ("segmentation", "linear", {"fixed_crops": 2, "cache": "fp16"}),
        ("depth", "linear", {"flip_test": True}),
        ("normals", "linear", {}),
    ],
)
def test_dense_heads(tmp_path, kind, name, changes):
    data = tiny_dense.make(tmp_path / "data", kind)
    probe = PROBES[f"{kind}/{name}"]
    made = context(tmp_path / "work", data, probe.settings_type(**{**DENSE, **changes}))
    result = probe.run(made)
    predictor = kept(result, tmp_path)
    assert predictor.task == f"{data.spec.name}" and predictor.classes == tuple(data.classes)
    for place, sample in enumerate(data.samples["val"]):
        path = data.root / sample.image
        found = predictor(path)
        assert np.array_equal(found, predictor(mmcv.imread(path, channel_order="rgb"))), (
            "a file and its pixels are one"
        )
        truth = mmcv.imread(data.root / sample.target, "unchanged")
        scores = {key: values[place] for key, values in result.per_image.items()}
        assert found.shape[:2] == truth.shape[:2]
        if kind == "segmentation":
            classes = range(len(data.classes))
            assert [((found == c) & (truth == c)).sum() for c in classes] == scores[
                "intersection"
            ].tolist()
        elif kind == "depth":
            known = truth > 0
            metres = truth[known] * 1e-3
            error = np.abs(found[known].clip(1e-3, 10) - metres) / metres
            assert error.mean() == pytest.approx(scores["abs_rel"], rel=1e-4)
        else:
            assert np.allclose(np.linalg.norm(found, axis=2), 1, atol=1e-4)
            true = truth[..., ::-1].astype(float) / 127.5 - 1
            known = truth.any(axis=2)
            cosine = (found * true / np.linalg.norm(true, axis=2, keepdims=True)).sum(axis=2)[known]
            assert np.degrees(np.arccos(cosine.clip(-1, 1))).mean() == pytest.approx(
                scores["normal_mean"], rel=1e-3
            )


def test_a_detector_whose_features_were_kept(tmp_path):
    data = tiny_coco.prepared(tiny_coco.write(tmp_path / "shapes", train=6, val=3))
    settings = SSDSettings(
        max_iters=8, batch_size=4, size=64, out_channels=32, lr=3e-3, augment=False, cache="fp16"
    )
    result = PROBES["detection/ssd"].run(context(tmp_path / "work", data, settings, "tiny-cnn"))
    assert result.detections
    check_detections(kept(result, tmp_path), data, result.detections)


def check_detections(predictor: Predictor, data: PreparedDataset, detections: list[dict]) -> None:
    """A detector says of each image what was scored."""
    for sample in data.samples["val"]:
        stored = [one for one in detections if one["image_id"] == sample.target]
        found = predictor(data.root / sample.image)
        assert len(stored) == len(found["scores"])
        assert np.allclose([one["score"] for one in stored], found["scores"], atol=1e-5)
        corners = found["boxes"].copy()
        corners[:, 2:] -= corners[:, :2]
        assert np.allclose(
            np.array([one["bbox"] for one in stored]).reshape(-1, 4), corners, atol=1e-2
        )
        assert ("masks" in found) == any("segmentation" in one for one in stored) or not stored


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"random_crops": True, "standardise": False, "blocks": (1,), "average_pool": (False, True)},
    ],
)
def test_linear_classifiers(tmp_path, changes):
    root = make.make_imagefolder(tmp_path, 8, 3)
    settings = {
        "epochs": 2,
        "batch_size": 8,
        "learning_rates": (0.01, 0.1),
        "holdout": 0.25,
        **changes,
    }
    around = whole_images(
        PROBES["classification/linear"], DATASETS["imagefolder"], root, **settings
    )
    result = PROBES["classification/linear"].run(around)
    predictor = kept(result, tmp_path, around.backbone)
    for place, sample in enumerate(around.data.samples["val"]):
        logits = predictor(root / sample.image)
        assert logits.shape == (len(around.data.classes),)
        assert (logits >= logits[sample.target]).sum() - 1 == result.per_image["rank"][place]


def test_what_cannot_predict_is_said(tmp_path):
    data = tiny_dense.make(tmp_path / "data", "depth", train=4, val=1)
    made = context(tmp_path / "work", data, PROBES["depth/linear"].settings_type(**DENSE))
    result = PROBES["depth/linear"].run(made)
    assert result.head is not None
    path = tmp_path / "head.safetensors"
    write_head(result.head, path)
    assert read_head(path).metadata == result.head.metadata
    assert not any(name.startswith("backbone") for name in read_head(path).tensors), (
        "the frozen backbone is no part of it"
    )
    other = backbones.create(**{**made.backbone_config, "seed": 7})
    with pytest.raises(UserError, match="was trained on"):
        load_predictor(path, other)
    torch.save({}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="is no head"):
        load_predictor(tmp_path / "other.pt")
