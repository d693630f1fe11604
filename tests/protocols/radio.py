"""RADIO's linear probe of ADE20K, by its config and code for MMSegmentation and by this suite."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from torch import nn

from probes.dense.losses import TaskObjective
from probes.dense.model import DenseModel
from tests.protocols import dense, nearest
from tests.protocols.dense import CHANNELS, CLASSES, summary
from tests.protocols.mmseg import FLOAT, LABELS, MAPS, curves, settings_of, short, test_sizes

CONFIG = "mmseg/configs/radio/radio_linear_8xb2-80k_ade20k-512x512.py"
TASK = "ade20k/linear"
# its model normalises by itself


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    config = Config.fromfile(checkout / CONFIG)
    location = spec_from_file_location("radio_linear_head", checkout / "mmseg/linear_head.py")
    location.loader.exec_module(module_from_spec(location))  # registers BNHead
    options = {"in_channels": [CHANNELS], "channels": CHANNELS, "num_classes": CLASSES}
    with DefaultScope.overwrite_default_scope("mmseg"):
        built = MODELS.build({**config.model.decode_head.to_dict(), **options})
    fields = trained(built, config.optim_wrapper, short(config))
    prepare, pipeline = config.model.data_preprocessor, config.train_pipeline
    (crop,) = (part.crop_size for part in pipeline if part["type"] == "RandomCrop")
    val = config.val_dataloader.dataset.pipeline
    return {
        "segmentation/linear": {
            **curves(config),
            **fields,
            "settings": {**settings_of(config), "channels": None},  # those of the map
            "iterations": config.train_cfg.max_iters,
            "input": prepare.size,
            "crop": crop,
            "padding": [[prepare.pad_val] * 3, prepare.seg_pad_val],
            "augmentation": dense.augmented(dense.small(pipeline)),
            "layers": config.model.decode_head.in_index,
            "test": [config.model.test_cfg.mode, *test_sizes(val)],
            "edge of a class": edge(EncoderDecoder, padded(val)),
            "head precision": "float32" if config.optim_wrapper.type == "OptimWrapper" else "amp",
        },
        nearest.PROBE: nearest.radio(checkout),
    }


def suite() -> dict[str, dict[str, Any]]:
    config = dense.preset_config("radio", TASK, "tiny-vit14")
    built = dense.head(config, num_classes=CLASSES)
    pad = dense.part_of(config, "train", "PadCrop")
    pipeline = config.train_dataloader.dataset.pipeline
    indices = dense.preset_config("radio", TASK).model.backbone.out_indices
    return {
        "segmentation/linear": {
            **curves(config),
            **trained(built, config.optim_wrapper, short(config)),
            "settings": settings_of(config),
            "iterations": config.train_cfg.max_iters,
            "input": pad["size"],
            "crop": dense.part_of(config, "train", "RandomCrop")["crop_size"],
            "padding": [list(pad["image"]), pad["ground_truth"]],
            "augmentation": dense.augmented(dense.small(pipeline)),
            "layers": [0] if indices == [-1] else indices,
            "test": [
                config.model.test_cfg.mode,
                *test_sizes(config.val_dataloader.dataset.pipeline),
            ],
            "edge of a class": edge(DenseModel, {"img_padding_size": (0, 2, 0, 0)}),
            "head precision": FLOAT,
        },
        nearest.PROBE: own(nearest.suite("radio")),
    }


def own(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what its code does not show: it normalises and joins class tokens in its models."""
    return {k: v for k, v in fields.items() if k not in ("normalised black", "class tokens")}


def trained(built: Any, wrapper: Any, schedule: Any) -> dict[str, Any]:
    """Output, losses and weights of a head with the same weights in the source and here."""
    dense.fill(dense.by_shape(built))
    output = built.eval()((MAPS[0],))
    packed = [dense.samples("gt_sem_seg", targets) for targets in LABELS]
    losses = dense.trained_by(built, (wrapper, schedule), [(maps,) for maps in MAPS], packed)
    return {
        "head output": summary(output),
        "losses": losses,
        "weights after ten steps": dense.weights(dense.by_shape(built)),
    }


def padded(pipeline: Any) -> dict[str, Any]:
    """What the source's pipeline says of an image of 14 × 26 px that it pads to 14 × 28."""
    (pad,) = (dict(part) for part in pipeline if part["type"] == "Pad")
    with DefaultScope.overwrite_default_scope("mmseg"):
        results = TRANSFORMS.build(pad)({"img": dense.photograph(14, 26)})
    assert results["img"].shape == (14, 28, 3)
    return {name: value for name, value in results.items() if "pad" in name}


def edge(kind: type, metainfo: dict[str, Any]) -> int:
    """First column of the second class in the prediction of such an image, where it is the
    twentieth of the padded one."""
    logits = torch.zeros(1, 2, 14, 28)
    logits[:, 0, :, :20], logits[:, 1, :, 20:] = 1, 1
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    model.align_corners = False
    model.decode_head = SimpleNamespace(threshold=None, loss_decode=TaskObjective("segmentation"))
    model.out_channels = 2
    sample = SegDataSample(metainfo={"ori_shape": (14, 26), "img_shape": (14, 28), **metainfo})
    (result,) = model.postprocess_result(logits, [sample])
    return int(result.pred_sem_seg.data[0, 0].argmax())
