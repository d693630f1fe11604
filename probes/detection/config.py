"""The MMEngine config of a detection probe, from backbone, dataset and settings."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from mmengine.config import Config

from cliptex_common.device import is_accelerator
from probes.base import Context
from probes.datasets.base import PreparedDataset, Split
from probes.detection import coco, per_shape  # noqa: F401  they register types
from probes.detection.models import detector
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.features.feature_dataset import encoder_config, loader_config
from probes.runner.batches import at_once
from probes.runner.settings import optimizer, schedule

Part = dict[str, Any]
# orientation tags are ignored: annotations lie over the stored pixels
LOAD: Part = {"type": "LoadImageFromFile", "color_type": "color_ignore_orientation"}
OWN_MODULES = (
    "probes.detection.coco",
    "probes.detection.models",
    "probes.detection.per_shape",
    "probes.runner.batches",
)
AT_ONCE = 16  # images of an evaluation's batch at most
META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")


def detection_config(context: Context) -> Config:
    """Config of model, data, optimizer, schedule and scores; ``probes.runner.training.resolved``
    adds what all probes share."""
    data, settings, backbone = context.data, context.settings, context.backbone
    frozen = {"type": "FrozenBackbone", "precision": settings.precision, **context.backbone_config}
    train, test = pipelines(settings, [255 * value for value in backbone.data.mean])
    train_set, val_set = coco_set(data, "train", train), coco_set(data, "val", test)
    grouped = getattr(settings, "aspect_ratio_groups", False)
    train_set |= {
        "drop_empty": True,
        "min_size": settings.min_size,
        "aspect_groups": settings.batch_size if grouped else 0,
    }
    model = detector(backbone, frozen, len(data.classes), settings)
    prepare, frozen = model["data_preprocessor"], model["backbone"]
    encoder = encoder_config(frozen, prepare, settings.cache, context.device.type)
    rounded = {"rounded": "fp16"} if settings.cache == "fp16" else {}
    model["data_preprocessor"] = {**prepare, "type": "UnstackedDetPreprocessor"}
    model["backbone"] = {
        "type": "PerShape",
        "backbone": {**frozen, **rounded},
        "neck": model.pop("neck"),
    }
    config = Config(
        {
            "custom_imports": {"imports": list(OWN_MODULES)},
            "default_scope": "mmdet",
            "model": model,
            "train_dataloader": {
                "batch_size": settings.batch_size,
                "dataset": {**train_set, "encoder": encoder},
                **loader_config(encoder),
            },
            "val_dataloader": {
                **at_once(AT_ONCE, context.device),
                "dataset": {**val_set, "encoder": encoder, "test_mode": True},
                **loader_config(encoder),
            },
            "val_evaluator": {
                "type": "CocoMeanAP",
                "ann_file": f"{val_set['data_root']}/{val_set['ann_file']}",
                "masks": isinstance(settings, MaskRCNNSettings),
            },
            "optim_wrapper": optimizer(settings),
            "param_scheduler": schedule(settings),
            "train_cfg": {"max_iters": settings.max_iters},
        },
        format_python_code=False,  # yapf takes a second, and is hardly easier to read
    )
    if is_accelerator(context.device):  # a GPU that can train on a batch can evaluate as many
        is_ssd = isinstance(settings, SSDSettings)
        largest = settings.size**2 if is_ssd else settings.short_side * settings.long_side
        config.val_dataloader.batch_sampler.pixels = settings.batch_size * largest
    return config


def coco_set(data: PreparedDataset, split: Split, pipeline: list[Part]) -> Part:
    """Config of the ``CocoInstances`` of a split's samples, whose ids are listed unless they are
    the complete official split."""
    samples = data.encoded(split)
    folders = data.spec.extra.get("image_folder", {})
    complete = len(samples) == data.spec.expected.get(split)
    return {
        "type": "CocoInstances",
        "data_root": str(data.root),
        "ann_file": data.spec.annotations[split],
        "data_prefix": {"img": folders.get(split) or str(PurePosixPath(samples[0].image).parent)},
        "metainfo": {"classes": data.classes},
        "image_ids": None if complete else [sample.target for sample in samples],
        "pipeline": pipeline,
    }


def pipelines(
    settings: MaskRCNNSettings | SSDSettings, mean: list[float]
) -> tuple[list[Part], list[Part]]:
    """Of train and val. ``mean`` is the colour (R, G, B, 0–255) around an image that is zoomed
    out."""
    before: list[Part] = []
    after: list[Part] = [{"type": "RandomFlip", "prob": settings.flip}]
    if isinstance(settings, SSDSettings):
        scale, keep_ratio = (settings.size, settings.size), False
        if settings.augment:  # the amounts are mmdet's defaults, which are SSD's
            before = [{"type": "Expand", "mean": mean}, {"type": "MinIoURandomCrop"}]
            after.append({"type": "PhotoMetricDistortion"})
    else:
        scale, keep_ratio = (settings.long_side, settings.short_side), True
    resize = {"type": "Resize", "scale": scale, "keep_ratio": keep_ratio}
    annotations = {"type": "LoadAnnotations", "with_bbox": True, "with_mask": keep_ratio}
    not_empty = {"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False}
    pack = {"type": "PackInstances"}
    train = [LOAD, annotations, *before, resize, *after, not_empty, pack]
    return train, [LOAD, resize, {**pack, "meta_keys": META_KEYS}]
