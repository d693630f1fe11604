"""The config of a detection probe: its file (``probes/configs``), completed with backbone, dataset,
classes and settings."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from mmengine.config import Config

from cliptex_common.device import is_accelerator
from probes.base import Context
from probes.configs import config_files
from probes.datasets.base import PreparedDataset, Split
from probes.detection import coco, per_shape  # noqa: F401  they register types
from probes.detection.models import complete_detector
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.features.feature_dataset import encoder_config, loader_config
from probes.train.batches import batch_options
from probes.train.config import apply_training, read_config

Part = dict[str, Any]
AUGMENTATION = ("Expand", "MinIoURandomCrop", "PhotoMetricDistortion")


def detection_config(probe: Any, context: Context) -> Config:
    """Config of model, data, optimizer, schedule and scores; ``probes.train.loop.resolved``
    adds what all probes share.

    Args:
        probe: a ``DetectionProbe``.
    """
    data, settings, backbone = context.data, context.settings, context.backbone
    config = read_config(*config_files(probe.kind, probe.name))
    apply_training(config, settings)
    model, mean = config.model, [255 * value for value in backbone.data.mean]
    complete_detector(model, backbone, len(data.classes), settings)
    prepare = {
        "mean": mean,
        "std": [255 * value for value in backbone.data.std],
        "pad_size_divisor": backbone.divisor,
    }
    model.data_preprocessor.update(prepare)
    frozen = model.backbone.backbone
    frozen.update(context.backbone_config)
    encoder = encoder_config(
        frozen.to_dict(),
        {**model.data_preprocessor, "type": "DetDataPreprocessor"},
        settings.cache,
        context.device.type,
    )
    if settings.cache == "fp16":
        frozen.rounded = "fp16"
    train, val = config.train_dataloader, config.val_dataloader
    is_grouped = getattr(settings, "aspect_ratio_groups", False)
    train.dataset.aspect_groups = settings.batch_size if is_grouped else 0
    val.update(batch_options(val.batch_size, context.device))
    train.dataset.update(coco_set(data, "train"))
    val.dataset.update(coco_set(data, "val"))
    for loader in (train, val):
        loader.update(loader_config(encoder))
        loader.dataset.encoder = encoder
        complete_pipeline(loader.dataset.pipeline, settings, mean)
    config.val_evaluator.ann_file = f"{val.dataset.data_root}/{val.dataset.ann_file}"
    if is_accelerator(context.device):  # a GPU that can train on a batch can evaluate as many
        is_ssd = isinstance(settings, SSDSettings)
        largest = settings.size**2 if is_ssd else settings.short_side * settings.long_side
        val.batch_sampler.pixels = settings.batch_size * largest
    return config


def complete_pipeline(
    parts: list[Part], settings: MaskRCNNSettings | SSDSettings, mean: list[float]
) -> None:
    """Sizes and augmentation of a pipeline. ``mean`` is the colour (R, G, B, 0–255) around an image
    that is zoomed out."""
    if isinstance(settings, MaskRCNNSettings):
        scale = (settings.long_side, settings.short_side)
    else:
        scale = (settings.size, settings.size)
    for part in list(parts):
        if part["type"] == "Resize":
            part["scale"] = scale
        elif part["type"] == "Expand":
            part["mean"] = mean
        if part["type"] in AUGMENTATION and not getattr(settings, "augment", True):
            parts.remove(part)


def coco_set(data: PreparedDataset, split: Split) -> Part:
    """Options of the ``CocoInstances`` of a split's samples, whose ids are listed unless they are
    the complete official split."""
    samples = data.encoded(split)
    folders = data.spec.extra.get("image_folder", {})
    complete = len(samples) == data.spec.expected.get(split)
    return {
        "data_root": str(data.root),
        "ann_file": data.spec.annotations[split],
        "data_prefix": {"img": folders.get(split) or str(PurePosixPath(samples[0].image).parent)},
        "metainfo": {"classes": data.classes},
        "image_ids": None if complete else [sample.target for sample in samples],
    }
