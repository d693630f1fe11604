"""The config of a dense probe: its files (``probes/configs``), completed with backbone, dataset,
classes and settings."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import probes.dense.dataset
import probes.dense.heads
import probes.dense.losses
import probes.dense.model
import probes.features.views
import probes.train.frozen_backbone
import probes.train.schedules  # noqa: F401  registers what configs name
from backbones.backbone import Backbone
from cliptex_common.errors import UserError
from probes.base import Context
from probes.datasets.base import Lister, PreparedDataset, Split
from probes.dense.computed import Computed
from probes.dense.heads import complete_head, has_own_loss, head_class
from probes.dense.pipelines import complete_pipelines, ground_truth_config
from probes.dense.settings import (
    DenseSettings,
    head_input,
    in_iterations,
    reads_class_token,
    round_up,
)
from probes.dense.tasks import DENSE_TASKS
from probes.features.maps import ROUNDED, encoder_config, loader_config
from probes.train.config import apply_training
from probes.train.frozen_backbone import cut_encoder, tune_config
from probes.train.sampling import batch_options


def dense_config(probe: Any, context: Context, held_out: frozenset[str] = frozenset()) -> Config:
    """Config of model, data, optimizer, schedule and scores; ``probes.train.loop.resolved``
    adds what all probes share.

    Args:
        probe: a ``DenseProbe``.
        context: of the task; its ``training`` has what is trained on.
        held_out: training images to score instead of ``val``; training leaves them out.
    """
    train_data, backbone = context.training.data, context.backbone
    val_data = train_data if held_out else context.data
    spec, classes = train_data.spec, len(train_data.classes)
    task = DENSE_TASKS.find(spec.kind)
    images = sum(sample.image not in held_out for sample in train_data.samples["train"])
    settings = in_iterations(context.settings, images)

    config = probe.read_config()
    apply_training(config, settings)
    complete_model(config, probe, settings, train_data, backbone)
    model, prepare = config.model, preprocessor(backbone)
    model.backbone.update(
        out_indices=[-1] if settings.layers == "last" else None,
        class_token=reads_class_token(settings, backbone),
        **context.backbone_config,
    )
    if settings.upsampler != "bilinear":
        upsample_in_backbone(model, settings)
    if settings.slide:
        side, step = settings.slide
        window = (round_up(side, backbone.divisor),) * 2
        slide = {"crop_size": window, "stride": (step, step), "padded": settings.slide_padded}
        model.test_cfg.update(mode="slide", **slide)
        # windows end with the image, which is padded where it is smaller than a window
        prepare["test_cfg"] = {"size_divisor": 1} if settings.slide_padded else {"size": window}
    crop = head_input(settings, backbone).crop
    tune_config(config, model.backbone, settings, crop)
    cache = settings.cache if settings.has_frozen_part else "none"
    encoder = encoder_config(model.backbone.to_dict(), prepare, cache, context.device.type)
    encoders = {"train": encoder, "val": encoder}
    if encoder and settings.is_tuned:
        encoders = {"train": cut_encoder(encoder), "val": None}  # whose sizes differ
    elif cache in ROUNDED:  # a stored head predicts from images as it learned from the store
        model.backbone.rounded = cache
    model.update(data_preprocessor={**prepare, "type": "ViewsPreprocessor"}, train_cfg={})

    complete_pipelines(config, spec, classes, settings, crop, prepare["mean"])
    train, val = config.train_dataloader, config.val_dataloader
    train.dataset.update(dataset_of(train_data, "train"))
    # the pipelines are complete for the data that are trained on; scored are perhaps others
    for part in val.dataset.pipeline:
        if part["type"] == "LoadGroundTruth":
            part.update(ground_truth_config(val_data.spec, classes, settings))
    val.dataset.update(dataset_of(val_data, "train" if held_out else "val", held_out))
    outputs = classes or task.outputs
    if getattr(settings, "bins_read", "") == "pixels":
        outputs = settings.bins  # type: ignore[attr-defined]
    val.update(batch_options(val.batch_size, context.device, outputs))
    for loader, encoder in zip((train, val), encoders.values(), strict=True):
        loader.update(loader_config(encoder))
        loader.dataset.encoder = encoder
    config.val_evaluator = task.evaluator(settings, val_data.spec) | config.val_evaluator
    if isinstance(task, Computed):
        config.val_evaluator["grid"] = (head_input(settings, backbone).stride, settings.size)
    # importing them registers what the config names
    modules = (spec.module, val_data.spec.module, type(task).__module__, probe.head.declared_in)
    config.custom_imports.imports += dict.fromkeys(filter(None, modules))
    return config


def complete_model(
    config: Config, probe: Any, settings: DenseSettings, data: PreparedDataset, backbone: Any
) -> list[tuple[int, float]]:
    """Complete the head and the neck for the classes of a dataset and the maps of a backbone.

    Args:
        backbone: see ``head_input``.

    Returns:
        channels and stride of each map that the head gets.

    Raises:
        UserError: they do not fit.
    """
    task, model = DENSE_TASKS.find(data.spec.kind), config.model
    probe.head.check(settings, backbone)
    task.check_dataset(data)
    requested = getattr(settings, "head", {})
    for name, value in requested.items():
        model.decode_head[name] = value  # ``update`` of a config would merge the losses
    head = model.decode_head
    derived = task.objective(settings, data.spec, len(data.classes))
    stated = head.get("loss_decode", {})
    if has_own_loss(head_class(head.type)):
        derived.pop("loss_decode")
    elif isinstance(stated, dict) and stated.get("type") == "TaskObjective":
        head.loss_decode = {**derived["loss_decode"], **stated}
    for name, value in derived.items():
        head.setdefault(name, value)
    if not task.has_classes:
        with DefaultScope.overwrite_default_scope("mmseg"):
            # mmseg's name for the outputs of a pixel
            head.setdefault("num_classes", MODELS.build(head.loss_decode).channels)
        head.threshold = 0.0  # which mmseg would warn of
    inputs = complete_head(model, head_input(settings, backbone))
    if "neck" not in model:
        for name, neutral in (("feature_stride", "none"), ("upsampler", "bilinear")):
            if (value := getattr(settings, name)) not in (None, neutral):
                raise UserError(
                    f"{name}={value} is of heads that read the maps concatenated;"
                    f" {requested.get('type', probe.name)} reads each at its own stride: set"
                    f" {name}={neutral}"
                )
    if settings.class_token == "project":
        head.readout_type = "project"
    if not getattr(settings, "dpt_norm", True) and "readout_type" in head:
        head.norm_cfg = None
    return inputs


def upsample_in_backbone(model: Any, settings: DenseSettings) -> None:
    """Bring the maps to one stride in the frozen part, which has the images, not in the neck.

    A linear head upsamples its outputs instead where that gives the same.
    """
    neck = model.pop("neck")
    if neck.index is not None:
        model.backbone.out_indices = [neck.index]
    is_linear = model.decode_head.type == "LinearHead" and settings.cache == "none"
    options = {"name": settings.upsampler, "stride": neck.stride, "deferred": is_linear}
    model.backbone.upsampler = options


def preprocessor(backbone: Backbone) -> dict[str, Any]:
    """Config of the data preprocessor: batches of images as the backbone takes them."""
    padding = {"size_divisor": backbone.divisor}
    return {
        "type": "SegDataPreProcessor",
        "mean": [255 * value for value in backbone.data.mean],
        "std": [255 * value for value in backbone.data.std],
        **padding,
        "test_cfg": padding,
    }


def dataset_of(
    data: PreparedDataset, split: Split, only: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Options of the ``DenseDataset`` of a split's usable images (all of train, see
    ``PreparedDataset.encoded``), or of those in ``only``."""
    included = only or {sample.image for sample in data.encoded(split)}
    lister = data.spec.list_samples
    listed = _all_images(lister, data.root, split, data.fingerprint) if included else ()
    return {
        "dataset": data.spec.name,
        "root": str(data.root),
        "split": split,
        "exclude": [image for image in listed if image not in included],
    }


@lru_cache(maxsize=4)
def _all_images(
    list_samples: Lister, root: Path, split: Split, fingerprint: str
) -> tuple[str, ...]:
    """All images of a split; walking through a large dataset takes seconds."""
    return tuple(sample.image for sample in list_samples(root, split))
