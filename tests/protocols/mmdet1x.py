"""MMDetection's 1x schedule of Mask R-CNN: heads, assigners, rates, images, and the RPN's loss."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

PROBE = "detection/mask-rcnn"
IMAGES = 117_266  # of train2017 that have an object
SAMPLED = 40


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    """The fields, by the source's configs and the installed MMDetection."""
    from mmengine.config import Config

    base = checkout / "configs" / "_base_"
    config = Config()
    for part in ("models/mask-rcnn_r50_fpn", "datasets/coco_instance", "schedules/schedule_1x"):
        config.merge_from_dict(Config.fromfile(base / f"{part}.py").to_dict())
    batch = config.auto_scale_lr.base_batch_size
    epoch = -(-IMAGES // batch)  # the last batch is not full
    warmup, steps = config.param_scheduler
    iterations = config.train_cfg.max_epochs * epoch
    milestones = [epoch * milestone for milestone in steps.milestones]
    by_iteration = {**steps, "milestones": milestones, "by_epoch": False, "end": iterations}
    dataset = config.train_dataloader.dataset
    fields = shared(config, dataset.pipeline, [warmup, by_iteration], iterations)
    return {
        PROBE: {
            **fields,
            "batch_size": batch,
            "iterations": iterations,
            "smallest_image": dataset.filter_cfg.min_size,
            "without_objects": not dataset.filter_cfg.filter_empty_gt,
            "by_aspect_ratio": config.train_dataloader.batch_sampler.type
            == "AspectRatioBatchSampler",
            "fpn_norm": str(config.model.neck.get("norm_cfg")),
            "frozen": config.model.backbone.frozen_stages == config.model.backbone.num_stages,
            "boxes_below_1_px": any(p.type == "FilterAnnotations" for p in dataset.pipeline),
        }
    }


def suite() -> dict[str, dict[str, Any]]:
    """The fields, by this suite."""
    from mmengine.config import Config

    import backbones.registry  # noqa: F401  registers the families of names
    from cliptex_common.settings import with_changes
    from probes.registry import find_preset, find_task
    from tests.probes import tiny_coco
    from tests.probes.tiny_mmlab import context

    spec, probe = find_task("coco/mask-rcnn")
    settings = with_changes(probe.settings_type(), find_preset("mmdet1x", spec, probe).settings)
    with tempfile.TemporaryDirectory() as folder:
        data = tiny_coco.prepared(tiny_coco.write(Path(folder, "data")))
        text = probe.config(context(Path(folder, "work"), data, settings, "random/timm/resnet18"))
    config = Config.fromstring(text, ".py")
    dataset = config.train_dataloader.dataset.dataset
    iterations = config.train_cfg.max_iters
    fields = shared(config, dataset.pipeline, config.param_scheduler, iterations)
    return {
        PROBE: {
            **fields,
            "batch_size": config.train_dataloader.batch_size,
            "iterations": iterations,
            "smallest_image": dataset.min_size,
            "without_objects": not dataset.drop_empty,
            "by_aspect_ratio": bool(dataset.aspect_groups),
            "fpn_norm": config.model.backbone.neck.norm_cfg.type,
            "frozen": config.model.backbone.backbone.type == "FrozenBackbone",
            "boxes_below_1_px": any(p.type == "FilterAnnotations" for p in dataset.pipeline),
        }
    }


def shared(
    config: Any, pipeline: list[Any], schedulers: list[Any], iterations: int
) -> dict[str, Any]:
    """What the two configs say in the same words."""
    parts = {part["type"]: part for part in pipeline}
    optimizer = config.optim_wrapper.optimizer
    return {
        "rpn_head": comparable(config.model.rpn_head),
        "roi_head": comparable(config.model.roi_head),
        "train_cfg": comparable(config.model.train_cfg),
        "test_cfg": comparable(config.model.test_cfg),
        "preprocessing": [config.model.data_preprocessor[name] for name in ("mean", "std")],
        "optimizer": comparable(optimizer),
        "clipping": str(config.optim_wrapper.get("clip_grad")),
        "scale": list(parts["Resize"]["scale"]),
        "flip": parts["RandomFlip"]["prob"],
        "rates": rates(schedulers, optimizer.lr, iterations),
        "rpn_losses": rpn_losses(config),
    }


def comparable(value: Any) -> Any:
    """A part of a config without the number of classes and the implementation of RoIAlign."""
    if isinstance(value, dict):
        left_out = ("num_classes", "use_torchvision")
        return {key: comparable(item) for key, item in value.items() if key not in left_out}
    return [comparable(item) for item in value] if isinstance(value, list | tuple) else value


def rates(schedulers: list[Any], peak: float, iterations: int) -> list[float]:
    """The learning rate at some iterations."""
    return scheduled(schedulers, peak, {250, 500, *range(0, iterations, iterations // SAMPLED)})


def scheduled(schedulers: list[Any], peak: float, at: Collection[int]) -> list[float]:
    """The learning rate at these iterations, in their order."""
    from mmengine.optim import OptimWrapper
    from mmengine.registry import PARAM_SCHEDULERS

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    wrapper = OptimWrapper(optimizer)
    built = [PARAM_SCHEDULERS.build({**part, "optimizer": wrapper}) for part in schedulers]
    values = []
    for iteration in range(max(at) + 1):
        if iteration in at:
            values.append(optimizer.param_groups[0]["lr"])
        for scheduler in built:
            scheduler.step()
    return values


def rpn_losses(config: Any) -> list[float]:
    """Losses of the built RPN with seeded weights on seeded features, for two boxes."""
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.registry import DefaultScope
    from mmengine.structures import InstanceData

    import probes.detection.models  # noqa: F401  prepares MMDetection

    rpn = {**config.model.rpn_head, "train_cfg": config.model.train_cfg.rpn, "test_cfg": None}
    with DefaultScope.overwrite_default_scope("mmdet"):  # a Runner of another test may set its own
        head = MODELS.build(rpn)
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        parameter.data.normal_(0, 0.01, generator=generator)
    features = [torch.randn(1, 256, 64 >> k, 64 >> k, generator=generator) for k in range(5)]
    boxes = torch.tensor([[20.0, 30.0, 120.0, 90.0], [150.0, 100.0, 200.0, 240.0]])
    sample = DetDataSample(
        metainfo={"img_shape": (256, 256), "pad_shape": (256, 256)},
        gt_instances=InstanceData(bboxes=boxes, labels=torch.zeros(2).long()),
    )
    torch.manual_seed(0)  # the sampler of anchors
    losses = head.loss(features, [sample])
    return [float(sum(losses[name])) for name in ("loss_rpn_cls", "loss_rpn_bbox")]
