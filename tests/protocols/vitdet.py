"""ViTDet: decay of the rate by blocks, by its own code; the schedule, by fvcore's formula; the rest
was read in its configs."""

from __future__ import annotations

import ast
import tempfile
from bisect import bisect_right
from pathlib import Path
from typing import Any

from tests.protocols import tuned

PROBE = "detection/mask-rcnn"
LENGTH = 184_375
AT = (0, 1, 100, 249, 250, 1000, 163_888, 163_889, 177_545, 177_546)


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    tree = ast.parse((checkout / "detectron2/modeling/backbone/vit.py").read_text())
    (function,) = (
        node for node in tree.body if getattr(node, "name", "") == "get_vit_lr_decay_rate"
    )
    space: dict[str, Any] = {}
    exec(compile(ast.Module([function], []), "vit.py", "exec"), space)

    def share(name: str) -> float:
        full = f"backbone.net.{name}" if name else "roi_heads.box_predictor.weight"
        return space["get_vit_lr_decay_rate"](full, lr_decay_rate=0.7, num_layers=12)

    names = tuned.without(tuned.WEIGHTS, ["token"]) | {"head": ""}
    warm = [rate(iteration) for iteration in tuned.ITERATIONS]
    return {
        PROBE: {
            "rates": {
                kind: [1e-4 * share(name) * each for each in warm] for kind, name in names.items()
            },
            # ``weight_decay_norm``; ``get_default_optimizer_params`` lets biases decay
            "decay": {kind: 0.0 if kind == "norm" else 0.1 for kind in names},
            "curve": [1e-4 * rate(iteration) for iteration in AT],
            "drop path": 0.1,
            "optimizer": {"type": "AdamW", "betas": [0.9, 0.999], "weight_decay": 0.1},
            "clipping": "None",
            "batch": 64,
            "test size": [1024, 1024],
            "flip": 0.5,
            "by_aspect_ratio": True,
            "smallest_image": 0,
            "without_objects": False,
            "heads": {"box": "4conv1fc", "rpn": 2, "norm": "LN"},
            "rois, proposals, detections": [512, 1000, 100],
            "anchors": [32, 64, 128, 256, 512],
        }
    }


def rate(iteration: int) -> float:
    """``WarmupParamScheduler`` of ``MultiStepParamScheduler``, as a share."""
    if iteration < 250:
        return 1e-3 + (1 - 1e-3) * iteration / 250
    return (1.0, 0.1, 0.01)[bisect_right((163_889, 177_546), iteration)]


def suite() -> dict[str, dict[str, Any]]:
    from mmengine.config import Config

    import backbones.registry  # noqa: F401  registers the families of names
    from cliptex_common.settings import with_changes
    from probes.registry import find_preset, find_task
    from tests.probes import tiny_coco
    from tests.probes.tiny_mmlab import context
    from tests.protocols.mmdet1x import scheduled

    spec, probe = find_task("coco/mask-rcnn")
    settings = with_changes(probe.settings_type(), find_preset("vitdet", spec, probe).settings)
    vit = "random/timm/vit_tiny_patch16_224"
    with tempfile.TemporaryDirectory() as folder:
        data = tiny_coco.prepared(tiny_coco.write(Path(folder, "data")))
        text = probe.config(context(Path(folder, "work"), data, settings, vit))
    config = Config.fromstring(text, ".py")
    model, loader = config.model, config.train_dataloader
    options = {"type": "AdamW", **config.optim_wrapper.optimizer}
    fields = tuned.of_suite(config, model.backbone.backbone)
    parts = {part["type"]: part for part in loader.dataset.dataset.pipeline}
    generator, roi = model.rpn_head.anchor_generator, model.roi_head
    return {
        PROBE: {
            **{name: tuned.without(each, ["token"]) for name, each in fields.items()},
            "curve": scheduled(config.param_scheduler, settings.lr, AT),
            "drop path": model.backbone.backbone.drop_path,
            "optimizer": {name: options[name] for name in ("type", "betas", "weight_decay")},
            "clipping": str(config.optim_wrapper.get("clip_grad")),
            "batch": loader.batch_size,
            "test size": list(parts["Resize"]["scale"]),
            "flip": parts["RandomFlip"]["prob"],
            "by_aspect_ratio": bool(loader.dataset.dataset.aspect_groups),
            "smallest_image": loader.dataset.dataset.min_size,
            "without_objects": not loader.dataset.dataset.drop_empty,
            "heads": {
                "box": roi.bbox_head.type,
                "rpn": model.rpn_head.get("num_convs", 1),
                "norm": "GN",
            },
            "rois, proposals, detections": [
                model.train_cfg.rcnn.sampler.num,
                model.train_cfg.rpn_proposal.max_per_img,
                model.test_cfg.rcnn.max_per_img,
            ],
            "anchors": [generator.scales[0] * stride for stride in generator.strides],
        }
    }
