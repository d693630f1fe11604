"""The one MMEngine config of all dense probes: mmseg's encoder-decoder over the frozen backbone, whose maps are brought to
one stride and concatenated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

import probes.dense.metrics
import probes.features.crops  # noqa: F401  both register what the config names, as the next two do
from backbones.errors import UserError
from probes.base import Context
from probes.dense.data import pipelines
from probes.dense.heads import head_config
from probes.dense.settings import optimizer, schedule

if TYPE_CHECKING:
    from probes.base import Probe

OWN_MODULES = (
    "probes.runner.bridge",
    "probes.dense.heads",
    "probes.dense.data",
    "probes.features.crops",
    "probes.dense.metrics",
)


def dense_config(
    probe: Probe, context: Context, held_out: frozenset[str] = frozenset(), *, score_held_out: bool = False
) -> Config:
    """Config of model, data, optimizer, schedule and scores; ``probes.runner.training.resolved`` adds what all probes
    share.

    Args:
        held_out: training images to leave out.
        score_held_out: score them, not ``val``.
    """
    settings, data, backbone = context.settings, context.data, context.backbone
    spec, classes = data.spec, data.classes
    check(probe, context)

    last = settings.layers == "last"
    channels = backbone.channels[-1:] if last else backbone.channels
    strides = backbone.strides[-1:] if last else backbone.strides
    mean, std = ([255 * value for value in values] for values in (backbone.data.mean, backbone.data.std))
    crop = math.ceil(settings.size / backbone.divisor) * backbone.divisor

    objective: dict[str, Any]
    scores: dict[str, Any]
    if probe.kind == "segmentation":
        # the mean over labelled pixels: ignored ones would only shrink the loss of a crop that has many
        loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "avg_non_ignore": True}
        objective = {"num_classes": len(classes), "ignore_index": spec.ignore_index, "loss_decode": loss}
        scores = {"type": "SegmentationScores", "ignore_index": spec.ignore_index}
    elif probe.kind == "depth":
        bounds = {"min_depth": spec.extra["min_depth"], "max_depth": spec.extra["max_depth"]}
        objective = {"loss_decode": {"type": "DepthObjective", **bounds, "balance": settings.silog_balance}}
        scores = {"type": "DepthScores", **bounds, "crop": spec.extra.get("crop")}
    else:
        objective = {"loss_decode": {"type": "NormalObjective"}}
        scores = {"type": "NormalScores", "crop": spec.extra.get("crop")}

    model = {
        "type": "DenseSegmenter" if probe.kind == "segmentation" else "DenseRegressor",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": mean,
            "std": std,
            "bgr_to_rgb": True,
            "size_divisor": backbone.divisor,
            "test_cfg": {"size_divisor": backbone.divisor},
        },
        "backbone": {
            "type": "FrozenBackbone",
            "precision": settings.precision,
            "out_indices": [-1] if last else None,
            **context.backbone_config,
        },
        "neck": {"type": "ResizeConcat", "strides": list(strides), "stride": settings.feature_stride},
        "decode_head": head_config(
            probe.name,
            in_channels=sum(channels),
            channels=settings.channels,
            dropout=settings.dropout,
            size=crop,
            stride=settings.feature_stride,
            **objective,
        ),
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    train, test = pipelines(
        spec, len(classes), settings.size, crop, settings.scale_range, settings.flip, mean, settings.fixed_crops
    )

    def dataset(split: str, pipeline: list[dict[str, Any]], role: str) -> dict[str, Any]:
        usable = {sample.image for sample in data.samples[split]}
        if split == "train":
            usable = usable - held_out if role == "train" else usable & held_out
        listed = [sample.image for sample in spec.list_samples(data.root, split)]  # type: ignore[arg-type]
        return {
            "type": "DenseDataset",
            "dataset": spec.name,
            "root": str(data.root),
            "split": split,
            "exclude": [image for image in listed if image not in usable],
            "pipeline": pipeline,
            "test_mode": role == "score",
        }

    # importing it registers the dataset that the config names
    declared_in = getattr(spec.list_samples, "__module__", "probes.catalog")
    config = Config({
        "default_scope": "mmseg",
        "custom_imports": {"imports": [*OWN_MODULES, declared_in]},
        "model": model,
        "train_dataloader": {"batch_size": settings.batch_size, "dataset": dataset("train", train, "train")},
        # one by one: each image has a shape of its own
        "val_dataloader": {"batch_size": 1, "dataset": dataset("train" if score_held_out else "val", test, "score")},
        "val_evaluator": scores,
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": optimizer(settings)},
        "param_scheduler": schedule(settings),
        "train_cfg": {"max_iters": settings.max_iters},
    })  # fmt: skip
    if settings.cache == "none":
        return config
    from probes.dense.cached import cached

    return cached(config, settings.cache, settings.fixed_crops, settings.flip, context.device)


def check(probe: Probe, context: Context) -> None:
    """Raise ``UserError`` for what can be known to be wrong before any work is done."""
    settings, spec = context.settings, context.data.spec
    if probe.name != "linear" and settings.batch_size < 2:
        raise UserError(f"{probe.name} normalises pooled features over the batch: batch_size must be 2 or more")
    if probe.kind == "segmentation" and len(context.data.classes) < 2:
        raise UserError(f"dataset {spec.name!r} has {len(context.data.classes)} class; segmentation needs 2 or more")
    if missing := {"depth_scale", "min_depth", "max_depth"} - set(spec.extra) if probe.kind == "depth" else set():
        raise UserError(f"dataset {spec.name!r} does not declare {', '.join(sorted(missing))}; add them to its extra")
