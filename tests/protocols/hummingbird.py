"""Open-Hummingbird's fields: its transforms, sampling, memory, prediction and metric on small
images, with features that need no model. Its approximate search, which needs a GPU, is replaced by
an exact one; PyTorch Lightning is not needed.
"""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

import probes.catalog  # noqa: F401
from cliptex_common.settings import with_changes
from probes.base import Context
from probes.dense.patches import images as crops
from probes.dense.patches import knn
from probes.dense.patches.images import PatchImages
from probes.dense.patches.memory import class_count, rarest, remember
from probes.dense.patches.pixels import Patches, class_shares
from probes.dense.segmentation import hungarian_miou
from probes.registry import DATASETS, PROBES, PROTOCOLS, find_preset
from tests.probes.tiny_mmlab import context
from tests.protocols import segmented, sources

PROBE = "segmentation/in-context"
TRAIN, VAL = list(range(4)), [20, 21, 22]
SIDE, SEEDS = 512, range(4)
SAMPLE = slice(5, SIDE, 101)
TOLERANCE = {"colours": 1e-4, "crops": 1e-4, "mIoU_hungarian": 0.05}
COUNTS = [[[50, 3, 9], [20, 4, 30], [0, 0, 0]], [[5, 60, 1], [70, 8, 2], [0, 0, 90]]]
VOC = {"train": ("a", "b"), "trainaug": ("a", "b", "c"), "val": ("d",)}


class Exact:
    """The source's search, exact and on a CPU."""

    def __init__(self, memory: torch.Tensor, count: int) -> None:
        self.memory, self.count = memory, count

    def find_nearest_neighbors(self, queries: torch.Tensor) -> tuple[np.ndarray, None]:
        return (queries @ self.memory.T).topk(self.count, dim=1).indices.numpy(), None


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    with sources.hummingbird():
        from hbird import hbird_eval, models
        from hbird.data.ade20k.ade20k_data import Ade20kDataModule
        from hbird.data.voc.voc_data import VOCDataset
        from hbird.utils import eval_metrics, transforms
    readme = (checkout / "README.md").read_text()
    evaluation = _defaults(hbird_eval.hbird_evaluation)
    passes = re.search(r"(\w+) dataset augmentation epochs", readme)
    sizes = re.search(r"image size of \((\d+),\d+\) for the dino and \((\d+)", readme)
    powers = [int(each) for each in re.findall(r"1024\*10<sup>(\d)</sup>", readme)]
    with tempfile.TemporaryDirectory() as folder:
        _write_voc(Path(folder))
        images = VOCDataset(folder, "trainaug", file_set=VOC["trainaug"])
    masks = [Path(path).parent.name for path in images.masks]
    counts = []
    for each in COUNTS:
        metric = eval_metrics.PredsmIoU(3, 3)
        metric._conf_mat = torch.tensor(each)
        counts.append(100 * metric.compute(is_global_zero=True, return_reordered=False)[0])
    return {
        PROBE: {
            **_source_augmentation(hbird_eval, transforms),
            **_source_evaluation(hbird_eval, transforms),
            "Hungarian mIoU of counts": counts,
            "neighbours": evaluation["n_neighbours"],
            "temperature": _defaults(hbird_eval.HbirdEvaluation._cross_attention)["beta"],
            "passes": {"one": 1, "two": 2, "three": 3}[passes[1]],
            "memory": 1024 * 10 ** max(powers),
            "size": int(sizes[1]),
            "size for patches of 14": int(sizes[2]),
            "normalised black": [
                -mean / std
                for mean, std in zip(transforms.IMAGENET_MEAN, transforms.IMAGENET_STD, strict=True)
            ],
            "search": "scann" if "used the `scann` library" in readme else "exact",
            "precision": str(_defaults(models.FeatureExtractor)["autocast_dtype"]),
            "tokens": _source_tokens(models),
            "classes of ADE20K": Ade20kDataModule.get_num_classes(None),
            "labels of VOC": masks,
        }
    }


class DinoV2(torch.nn.Module):
    """Gives the tokens of its last layer by name."""

    def forward_features(self, images: torch.Tensor) -> dict[str, str]:
        names = ("x_norm_clstoken", "x_norm_patchtokens", "x_prenorm")
        return {name: name for name in names}


def _source_tokens(models: ModuleType) -> str:
    """Which tokens of a DINOv2 are features."""
    extract = models.FeatureExtractor(DinoV2(), use_autocast=False)
    return extract.forward_features(torch.zeros(1))[0]


def _defaults(function: Any) -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


def _write_voc(root: Path) -> None:
    lists = root / "ImageSets/Segmentation"
    for folder in (lists, root / "images", root / "JPEGImages"):
        folder.mkdir(parents=True)
    for name, images in VOC.items():
        (lists / f"{name}.txt").write_text("\n".join(images) + "\n")
    for folder in ("SegmentationClass", "SegmentationClassAug"):
        (root / folder).mkdir()
        for name in VOC["trainaug"] + VOC["val"]:
            (root / folder / f"{name}.png").touch()
            (root / f"images/{name}.jpg").touch()


def _source_augmentation(code: ModuleType, transforms: ModuleType) -> dict[str, Any]:
    """Colours and crops of an image by seeds, and the patches of a crop that are remembered."""
    train = transforms.get_hbird_train_transforms(SIDE, img_mean=None, img_std=None)
    image, labels = segmented.picture(3, 255)
    colours, images, label_maps, rows = [], [], [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        coloured = train["img"](image)
        colours.append(coloured[:, ::30, ::30])
        torch.manual_seed(seed)
        cropped, crop_labels = train["shared"](coloured, labels)
        images.append(cropped[:, SAMPLE, SAMPLE])
        crop_labels = (crop_labels * 255).long()
        label_maps.append(crop_labels[0, SAMPLE, SAMPLE].clone())
        crop_labels[crop_labels == 255] = 0
        patches = code.HbirdEvaluation._patchify_gt(crop_labels[None], segmented.PATCH)
        sampler = SimpleNamespace(num_sampled_features=20)
        torch.manual_seed(seed)
        _, chosen = code.HbirdEvaluation._sample_features(
            sampler, torch.zeros(1, patches.shape[1] ** 2, 1), patches, 3
        )
        rows.append(chosen[0].sort().values)
    return {"colours": colours, "crops": images, "labels of crops": label_maps, "sampled": rows}


def _source_evaluation(code: ModuleType, transforms: ModuleType) -> dict[str, Any]:
    """The metric with a memory of whole images; what it remembers and predicts."""
    val = transforms.get_hbird_val_transforms(SIDE, list(segmented.MEAN), list(segmented.STD))
    model = SimpleNamespace(
        forward_features=lambda images: (segmented.features(images).flatten(2).mT, None),
        eval_spatial_resolution=SIDE // segmented.PATCH,
        d_model=6,
        eval=lambda: None,
    )
    model.to = lambda _: model

    def loader(numbers: list[int], void: int) -> list[Any]:
        pairs = (segmented.picture(number, void) for number in numbers)
        pairs = [val["shared"](val["img"](image), labels) for image, labels in pairs]
        return [tuple(torch.stack(each) for each in zip(*pairs, strict=True))]

    fields: dict[str, Any] = {"mIoU_hungarian": {}}
    for void in segmented.VOID.values():
        with mock.patch.object(code.HbirdEvaluation, "_create_nn"):
            evaluator = code.HbirdEvaluation(
                model, loader(TRAIN, void), num_classes=4 if void == 0 else 3, nn_method="faiss"
            )
        evaluator.NN_algorithm = Exact(evaluator.feature_memory, evaluator.n_neighbours)
        images = loader(VAL, void)
        score = evaluator.evaluate(images, SIDE // segmented.PATCH, ignore_index=void)
        fields["mIoU_hungarian"][str(void)] = 100 * score
        fields[f"remembered shares, void {void}"] = evaluator.label_memory[::97]
    for name, part in (("features", "feature_memory"), ("shares", "label_memory")):
        kept = getattr(evaluator, part)
        fields[f"remembered {name}"] = str(kept.dtype).removeprefix("torch.")
    image, labels = images[0][0][0], images[0][1][0, 0]
    fields["image"] = image[:, SAMPLE, SAMPLE]
    fields["labels"] = (labels * 255).long()[SAMPLE, SAMPLE]
    return fields


def suite() -> dict[str, dict[str, Any]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"CLIPTEX_HOME": folder}),
    ):
        return {PROBE: _suite_fields(Path(folder))}


def _prepare(folder: Path, dataset: str, backbone: str = "golden-projection") -> Context:
    data = segmented.write(folder / dataset, dataset, TRAIN, VAL)
    # of ADE20K the preset that makes void a class
    name = "ade20k" if segmented.VOID[dataset] == 0 else "camvid"
    preset = find_preset("hummingbird", DATASETS[name], PROBES[PROBE]).settings
    changes = {**preset, "passes": 0}
    settings = with_changes(PROBES[PROBE].settings_type(), changes)
    return context(folder / f"work-{dataset}", data, settings, backbone)


def _suite_fields(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {"mIoU_hungarian": {}}
    for dataset, void in segmented.VOID.items():
        task = _prepare(folder, dataset)
        result = knn.run_in_context(task)
        fields["mIoU_hungarian"][str(void)] = result.metrics["mIoU_hungarian"]
        memory = remember(task)
        shares = memory.labels.roll(1, dims=1) if void == 0 else memory.labels
        fields[f"remembered shares, void {void}"] = shares[::97]
    images = PatchImages(task, "val")
    packed = images.dataset.load(0)["inputs"].float()
    mean, std = (
        255 * torch.tensor(each)[:, None, None] for each in (segmented.MEAN, segmented.STD)
    )
    patches = next(images.walk())
    stored = images.labels(patches)[SAMPLE, SAMPLE] + 1
    preset = PROTOCOLS["hummingbird"].presets[0].settings
    defaults = with_changes(PROBES[PROBE].settings_type(), preset)
    voc = folder / "voc"
    _write_voc(voc)
    ade = find_preset("hummingbird", DATASETS["ade20k"], PROBES[PROBE]).settings
    ade = replace(task, settings=with_changes(PROBES[PROBE].settings_type(), ade))
    classes = SimpleNamespace(classes=DATASETS["ade20k"].class_names(folder))
    return {
        **fields,
        **_suite_augmentation(),
        "remembered features": str(images.dtype).removeprefix("torch."),
        "remembered shares": str(memory.labels.dtype).removeprefix("torch."),
        "image": ((packed - mean) / std)[:, SAMPLE, SAMPLE],
        "labels": torch.where(stored == 256, 0, stored),
        "Hungarian mIoU of counts": [hungarian_miou(torch.tensor(each)) for each in COUNTS],
        "neighbours": preset["neighbours"],
        "temperature": preset["temperature"],
        "passes": preset["passes"],
        "memory": preset["memory"],
        "size": preset["size"],
        "size for patches of 14": preset["size"] // 14 * 14,
        "normalised black": segmented.normalised_black(
            _prepare(folder, "golden-void-255", backbone="tiny-vit")
        ),
        "search": "exact",
        "precision": defaults.precision,
        "tokens": "x_norm_patchtokens" if preset["layers"] == "last" else "others",
        "classes of ADE20K": class_count(SimpleNamespace(data=classes, settings=ade.settings)),
        "labels of VOC": [
            Path(sample.target).parent.name for sample in DATASETS["voc"].list_samples(voc, "train")
        ],
    }


def _suite_augmentation() -> dict[str, Any]:
    image, labels = segmented.picture(3, 255)
    colours, images, label_maps, rows = [], [], [], []
    stored = torch.from_numpy(np.asarray(labels).astype("int64"))
    grid = SIDE // segmented.PATCH
    patches = Patches(0, torch.zeros(grid**2, 1), (grid, grid), (grid, grid), (SIDE, SIDE))
    for seed in SEEDS:
        torch.manual_seed(seed)
        coloured = crops.to_tensor(crops.COLOURS(image))
        colours.append(coloured[:, ::30, ::30])
        torch.manual_seed(seed)
        region = crops.draw_region(*stored.shape)
        cropped = crops.resize_region(coloured, region, SIDE, is_image=True)
        images.append(cropped[:, SAMPLE, SAMPLE])
        (crop_labels,) = crops.resize_region(stored[None], region, SIDE, is_image=False)
        label_maps.append(crop_labels[SAMPLE, SAMPLE])
        shares, _ = class_shares(crop_labels, patches, 3, 255, "background")
        torch.manual_seed(seed)
        rows.append(rarest(shares, torch.rand(len(shares)), 20).sort().values)
    return {"colours": colours, "crops": images, "labels of crops": label_maps, "sampled": rows}
