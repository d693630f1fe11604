"""The one MMEngine config of all dense probes: mmseg's encoder-decoder over the frozen backbone,
whose maps are brought to one stride and concatenated."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

import probes.dense.dataset
import probes.dense.metrics
import probes.dense.segmentors
import probes.features.crops
import probes.runner.schedules  # noqa: F401  registers what configs name
from backbones.base import Backbone
from probes.base import Context
from probes.datasets.base import Lister, PreparedDataset, Split
from probes.dense.data import pipelines
from probes.dense.decode_heads.base import DenseHead, feature_maps, reads_class_token, round_up
from probes.dense.decode_heads.module import head_config, try_head
from probes.dense.settings import DenseSettings, in_iterations
from probes.dense.tasks import DENSE_TASKS
from probes.features.crops import image_size
from probes.features.feature_dataset import encoder_config, loader_config
from probes.runner.batches import at_once
from probes.runner.settings import optimizer, schedule

AT_ONCE = 32  # images of an evaluation's batch at most


def dense_config(probe: Any, context: Context, held_out: frozenset[str] = frozenset()) -> Config:
    """Config of model, data, optimizer, schedule and scores; ``probes.runner.training.resolved``
    adds what all probes share.

    Args:
        probe: a ``DenseProbe``.
        held_out: training images to score instead of ``val``; training leaves them out.
    """
    data, backbone = context.data, context.backbone
    spec, classes = data.spec, len(data.classes)
    task = DENSE_TASKS.find(spec.kind)
    images = sum(sample.image not in held_out for sample in data.samples["train"])
    settings = in_iterations(context.settings, images)

    prepare = preprocessor(backbone)
    head = checked_head(probe.head, context.settings, data, backbone)
    crop = feature_maps(settings, backbone).crop

    test: dict[str, Any] = {"mode": "whole", "flip": settings.flip_test}
    if settings.slide:
        side, step = settings.slide
        window = (round_up(side, backbone.divisor),) * 2
        test |= {
            "mode": "slide",
            "crop_size": window,
            "stride": (step, step),
            "padded": settings.slide_padded,
        }
        # windows end with the image, which is padded where it is smaller than a window
        prepare["test_cfg"] = {"size_divisor": 1} if settings.slide_padded else {"size": window}
    frozen = {
        **frozen_backbone(context, [-1] if settings.layers == "last" else None),
        "class_token": reads_class_token(settings, backbone),
    }
    encoder = encoder_config(frozen, prepare, settings.cache, context.device.type)
    rounded = {"rounded": "fp16"} if settings.cache == "fp16" else {}
    model = {
        "type": "DenseModel",
        "data_preprocessor": {**prepare, "type": "ViewsPreprocessor"},
        "backbone": {**frozen, **rounded},
        **head,
        "train_cfg": {},
        "test_cfg": test,
    }
    outputs = classes or task.outputs
    train_pipeline, test_pipeline = pipelines(spec, classes, settings, crop, prepare["mean"])

    # importing them registers what the config names
    declared_in = spec.module or getattr(spec.list_samples, "__module__", "probes.catalog")
    modules = [__name__, declared_in, type(task).__module__, probe.head.declared_in]
    return Config(
        {
            "default_scope": "mmseg",
            "custom_imports": {"imports": list(filter(None, modules))},
            "model": model,
            "train_dataloader": {
                "batch_size": settings.batch_size,
                "dataset": dataset_config(data, "train", train_pipeline, encoder),
                **loader_config(encoder),
            },
            "val_dataloader": {
                **at_once(AT_ONCE, context.device, outputs),
                "dataset": {
                    **dataset_config(
                        data, "train" if held_out else "val", test_pipeline, encoder, held_out
                    ),
                    "test_mode": True,
                },
                **loader_config(encoder),
            },
            "val_evaluator": task.evaluator(settings, spec),
            "optim_wrapper": optimizer(settings),
            "param_scheduler": schedule(settings),
            "train_cfg": {"max_iters": settings.max_iters},
        },
        format_python_code=False,  # yapf takes a second, and is hardly easier to read
    )


def checked_head(
    head: DenseHead, settings: DenseSettings, data: PreparedDataset, backbone: Any
) -> dict[str, Any]:
    """``head_config`` of a head that fits.

    Args:
        backbone: see ``feature_maps``.

    Raises:
        UserError: dataset, settings or backbone do not fit the head.
    """
    head.check(settings, data, backbone)
    maps = feature_maps(settings, backbone)
    task = DENSE_TASKS.find(data.spec.kind)
    objective = task.objective(settings, data.spec, len(data.classes))
    config = head_config(head, settings, maps, objective)
    if head.config is not None:
        # without samples where the data are not checked yet
        test = test_size(settings, data, backbone.divisor) if data.samples else maps.crop
        try_head(json.dumps(config["decode_head"]), settings.batch_size, (maps.crop, test))
    return config


def test_size(settings: DenseSettings, data: PreparedDataset, divisor: int) -> tuple[int, int]:
    """(height, width) of the first test image, or of a window of it, as the backbone gets it."""
    if settings.slide:
        return (round_up(settings.slide[0], divisor),) * 2
    width, height = image_size(data.root / data.samples["val"][0].image)
    factor = settings.size / min(width, height) if settings.size else 1
    return round_up(round(factor * height), divisor), round_up(round(factor * width), divisor)


def frozen_backbone(context: Context, out_indices: list[int] | None) -> dict[str, Any]:
    """Config of the backbone; ``out_indices`` are those of the maps that it gives, None for all."""
    indices = {"out_indices": out_indices, "precision": context.settings.precision}
    return {"type": "FrozenBackbone", **indices, **context.backbone_config}


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


def dataset_config(
    data: PreparedDataset,
    split: Split,
    pipeline: list[dict[str, Any]],
    encoder: dict[str, Any] | None,
    only: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Config of a split's usable images (all of train, see ``PreparedDataset.encoded``), or of
    those in ``only``."""
    usable = {sample.image for sample in data.encoded(split)}
    usable &= only or usable
    listed = _listed(data.spec.list_samples, data.root, split, data.fingerprint)
    return {
        "type": "DenseDataset",
        "dataset": data.spec.name,
        "root": str(data.root),
        "split": split,
        "exclude": [image for image in listed if image not in usable],
        "pipeline": pipeline,
        "encoder": encoder,
    }


@lru_cache(maxsize=4)
def _listed(list_samples: Lister, root: Path, split: Split, fingerprint: str) -> tuple[str, ...]:
    """All images of a split; walking through a large dataset takes seconds."""
    return tuple(sample.image for sample in list_samples(root, split))
