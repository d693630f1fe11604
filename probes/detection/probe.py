"""The detection probes: a config generated from backbone, dataset and settings, trained and scored
by COCO's rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.base import Context, TaskResult
from probes.datasets.base import Kind, PreparedDataset, Split
from probes.detection.settings import DetectionSettings, MaskRCNNSettings, SSDSettings
from probes.runner.settings import optimizer, schedule
from reports.metrics import Metric

if TYPE_CHECKING:
    from mmengine.config import Config

Part = dict[str, Any]  # of a config
# orientation tags are ignored: annotations lie over the stored pixels, as is checked when a dataset
# is prepared
LOAD: Part = {"type": "LoadImageFromFile", "color_type": "color_ignore_orientation"}
OWN_MODULES = (
    "probes.detection.coco",
    "probes.detection.models",
    "probes.detection.per_shape",
    "probes.runner.batches",
)
AT_ONCE = 16  # images of an evaluation's batch at most
META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")


@dataclass
class DetectionProbe:
    """A detector on the maps of a frozen backbone; see ``probes.base.Probe``."""

    name: str
    settings_type: type
    metrics: Mapping[str, Metric]
    kind: Kind = "detection"
    version: int = 3
    needs_text: bool = False
    splits: tuple[Split, ...] = ("train", "val")

    @property
    def masks(self) -> bool:
        """Whether instance masks are predicted too."""
        return "segm_mAP" in self.metrics

    def config(self, context: Context) -> str:
        """The resolved MMEngine config; it runs with plain mmengine."""
        from probes.runner.training import resolved

        context = replace(context, data=context.data.without_unused)
        return resolved(detection_config(self, context), context).pretty_text

    def run(self, context: Context) -> TaskResult:
        """Train the detector on ``train`` and score ``val`` by COCO's rules."""
        from probes.detection.preview import draw_preview
        from probes.predictor import mmlab_head
        from probes.runner.training import run_training

        spec, samples = context.data.spec, context.data.samples["val"]
        trained = run_training(
            detection_config(self, context), context, description=f"{spec.name}/{self.name}"
        )
        (scores,) = trained.evaluator.metrics
        names = {sample.target: sample.image for sample in samples}
        if sorted(scores.image_ids) != sorted(names):
            raise RuntimeError(
                f"{len(scores.image_ids)} images were scored, not the {len(names)} of the split"
            )
        context.cost.add(trained.cost)
        notes, train = [], trained.train_dataset
        if dropped := train.dropped_empty:
            notes.append(
                f"{dropped} of {dropped + len(train)} training images have no object and were left"
                " out of training"
            )
        if missing := [name for name in self.metrics if name not in trained.metrics]:
            notes.append(f"val has no object of that size, so there is no {', '.join(missing)}")
        found = Counter(one["image_id"] for one in scores.detections)
        return TaskResult(
            metrics=trained.metrics,
            per_image={
                "image": np.array([names[image] for image in scores.image_ids]),
                "image_id": np.array(scores.image_ids, dtype=np.int64),
                "detections": np.array(
                    [found[image] for image in scores.image_ids], dtype=np.int64
                ),
                "objects": scores.class_objects.sum(axis=1),
                "class_objects": scores.class_objects,
            },
            detections=scores.detections,
            preview=draw_preview(
                context.work_dir / "preview.png",
                context.data.root,
                scores.ann_file,
                names,
                scores.detections,
                self.masks,
            ),
            head=mmlab_head(trained.model, trained.config, context),
            notes=[*notes, *trained.notes],
        )


def detection_config(probe: DetectionProbe, context: Context) -> Config:
    """Config of model, data, optimizer, schedule and scores; ``probes.runner.training.resolved``
    adds the shared parts."""
    from mmengine.config import Config

    from probes.detection import coco, models  # noqa: F401 - register what the config names
    from probes.detection.per_shape import per_shape
    from probes.runner import batches  # noqa: F401 - as does this

    data, backbone = context.data, context.backbone
    settings: DetectionSettings = context.settings
    frozen = {"type": "FrozenBackbone", "precision": settings.precision, **context.backbone_config}
    if isinstance(settings, MaskRCNNSettings):
        model = models.mask_rcnn(backbone, frozen, len(data.classes), settings)
        grouped, largest = settings.aspect_ratio_groups, settings.short_side * settings.long_side
    else:
        assert isinstance(settings, SSDSettings)
        model = models.ssd(backbone, frozen, len(data.classes), settings)
        grouped, largest = False, settings.size**2
    train, test = _pipelines(settings, [255 * value for value in backbone.data.mean])
    train_set, val_set = coco_set(data, "train", train), coco_set(data, "val", test)
    train_set |= {
        "drop_empty": True,
        "min_size": settings.min_size,
        "aspect_groups": settings.batch_size if grouped else 0,
    }
    # a GPU that can train on a batch can evaluate as many; a CPU gains nothing from more than a few
    # small ones
    room = settings.batch_size * largest if context.device.type == "cuda" else 0
    ann_file = f"{val_set['data_root']}/{val_set['ann_file']}"
    config = Config(
        {
            "custom_imports": {"imports": list(OWN_MODULES)},
            "default_scope": "mmdet",
            "model": model,
            "train_dataloader": {"batch_size": settings.batch_size, "dataset": train_set},
            "val_dataloader": {"dataset": {**val_set, "test_mode": True}},
            "val_evaluator": {"type": "CocoMeanAP", "ann_file": ann_file, "masks": probe.masks},
            "optim_wrapper": optimizer(settings),
            "param_scheduler": schedule(settings),
            "train_cfg": {"max_iters": settings.max_iters},
        }
    )
    if settings.cache != "none":
        from probes.detection.cache import cached

        config = cached(config, settings.cache, settings.flip, context.device)
    config.model = per_shape(config.model)
    config.val_dataloader |= {
        "batch_size": AT_ONCE,
        "batch_sampler": {"type": "SameShapeBatches", **({"pixels": room} if room else {})},
    }
    return config


def coco_set(data: PreparedDataset, split: Split, pipeline: list[Part]) -> Part:
    """Config of the ``CocoInstances`` that has the samples of a split.

    The image ids are named unless the split is the complete official one (their list would be
    long).
    """
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


def _pipelines(settings: DetectionSettings, fill: list[float]) -> tuple[list[Part], list[Part]]:
    """Of train and val. ``fill`` is the colour (R, G, B, 0–255) around an image that is zoomed
    out."""
    zoom: list[Part] = []
    color_jitter: list[Part] = []
    if isinstance(settings, MaskRCNNSettings):
        resize = {
            "type": "Resize",
            "scale": (settings.long_side, settings.short_side),
            "keep_ratio": True,
        }
    else:
        assert isinstance(settings, SSDSettings)
        resize = {"type": "Resize", "scale": (settings.size, settings.size), "keep_ratio": False}
        if settings.augment:  # the amounts are mmdet's defaults, which are SSD's own
            zoom = [{"type": "Expand", "mean": fill}, {"type": "MinIoURandomCrop"}]
            color_jitter = [{"type": "PhotoMetricDistortion"}]
    train: list[Part] = [
        LOAD,
        {
            "type": "LoadAnnotations",
            "with_bbox": True,
            "with_mask": isinstance(settings, MaskRCNNSettings),
        },
        *zoom,
        resize,
        {"type": "RandomFlip", "prob": settings.flip},
        *color_jitter,
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False},
        {"type": "PackDetInputs"},
    ]
    return train, [LOAD, resize, {"type": "PackDetInputs", "meta_keys": META_KEYS}]
