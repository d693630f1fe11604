"""MMSegmentation's recipes, by its configs and code and by this suite.

The source is a checkout of onedl-mmsegmentation, or the folder of its installed package.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATA_SAMPLERS, DefaultScope
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation import IoUMetric
from mmseg.registry import MODELS
from torch import Tensor

from cliptex_common.device import prefers_bf16
from probes.registry import find_preset, find_task
from tests.protocols import dense, segmented
from tests.protocols.dense import CHANNELS, CLASSES, IMAGES, STEPS, labels, random, summary

FILES = {
    "deeplabv3": "deeplabv3/deeplabv3_r50-d8_4xb4-{}-512x512.py",
    "pspnet": "pspnet/pspnet_r50-d8_4xb4-{}-512x512.py",
    "dpt": "dpt/dpt_vit-b16_8xb2-{}-512x512.py",
}
VARIANTS = {"voc": "40k_voc12aug", "ade20k": "160k_ade20k"}
MAPS = [random(IMAGES, CHANNELS, 6, 6, seed=20 + step) for step in range(STEPS)]
LABELS = [labels(IMAGES, 24, 24, seed=40 + step) for step in range(STEPS)]
WIDTHS = [3, 6, 12, 24]  # of DPT for ``CHANNELS`` channels
TOLERANCE = {"from image to score": 0.01}  # scores are rounded
FLOAT = "bfloat16" if prefers_bf16("cuda") else "float32"  # of heads on a GPU


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    folder = checkout / "configs"
    folder = folder if folder.is_dir() else checkout / "mmseg/.mim/configs"
    fields = {}
    for head, name in FILES.items():
        variants = ("ade20k",) if head == "dpt" else tuple(VARIANTS)
        configs = {
            dataset: Config.fromfile(folder / name.format(VARIANTS[dataset]))
            for dataset in variants
        }
        fields[f"segmentation/{head}"] = source_head(head, configs)
    return fields


def source_head(head: str, configs: Mapping[str, Config]) -> dict[str, Any]:
    config = configs[next(iter(configs))]
    built = source_module(head, config)
    inputs = [source_inputs(head, maps) for maps in MAPS]
    output = built.eval()(inputs[0])
    losses = dense.trained_by(built, (config.optim_wrapper, short(config)), inputs, packed())
    backbone = config.model.backbone
    fields = {
        **curves(config),
        "settings": settings_of(config),
        "lengths": {name: each.train_cfg.max_iters for name, each in configs.items()},
        "head output": summary(output),
        "losses": losses,
        "weights after ten steps": dense.weights(dense.by_name(built)),
        "augmentation": dense.augmented(dense.small(config.train_pipeline)),
        "padding": {name: padding(each) for name, each in configs.items()},
        "test": [config.model.test_cfg.mode, *test_sizes(config.test_pipeline)],
        "backbone": {
            "trained": backbone.get("frozen_stages", -1) < 0,
            "auxiliary head": (config.model.auxiliary_head or {}).get("in_index"),
        },
        "normalised black": dense.black(config),
        "head precision": "float32" if config.optim_wrapper.type == "OptimWrapper" else "amp",
        "order": source_order(config),
    }
    if head == "dpt":
        token = config.model.decode_head.readout_type
        fields["layers"] = {"blocks": backbone.out_indices, "class token": token}
        fields["final norm"] = backbone.final_norm
        return fields
    stride = 4 * torch.tensor(backbone.strides).prod().item()
    fields["layers"] = {"map": config.model.decode_head.in_index, "stride": stride}
    if head == "deeplabv3":
        fields["dilations"] = config.model.decode_head.dilations
    fields["from image to score"] = source_scores(head, configs["ade20k"])
    lists = [each.ann_file for each in configs["voc"].train_dataloader.dataset.datasets]
    fields["train list"] = [Path(name).stem for name in lists]
    return fields


def suite() -> dict[str, dict[str, Any]]:
    return {f"segmentation/{head}": suite_head(head) for head in FILES}


def suite_head(head: str) -> dict[str, Any]:
    variants = ("ade20k",) if head == "dpt" else tuple(VARIANTS)
    task = f"{variants[0]}/{head}"
    settings, config = dense.preset_settings("mmseg", task), dense.preset_config("mmseg", task)
    options = {"map_channels": [2 * CHANNELS] * 4} if head == "dpt" else {}
    width = 8 * CHANNELS if head == "dpt" else CHANNELS
    built = dense.head(config, width, num_classes=CLASSES, channels=CHANNELS, **options)
    inputs = [suite_inputs(head, maps) for maps in MAPS]
    output = built.eval()(inputs[0])
    short_settings = dense.preset_settings("mmseg", task, **SHORT[head])
    losses = dense.trained(built, short_settings, inputs, packed())
    layers = dense.read_layers(config)
    model = config.model
    fields = {
        **dense.curves(settings),
        "settings": settings_of(config),
        "lengths": {
            name: dense.preset_settings("mmseg", f"{name}/{head}").max_iters for name in variants
        },
        "head output": summary(output),
        "losses": losses,
        "weights after ten steps": dense.weights(dense.by_name(built)),
        "augmentation": dense.augmented(dense.small(config.train_dataloader.dataset.pipeline)),
        "padding": {
            name: dense.padding(dense.preset_config("mmseg", f"{name}/{head}")) for name in variants
        },
        "test": [model.test_cfg.mode, *test_sizes(config.val_dataloader.dataset.pipeline)],
        "backbone": {"trained": False, "auxiliary head": model.get("auxiliary_head")},
        "normalised black": dense.black(config),
        "head precision": FLOAT,
        "order": dense.order_of_passes(dense.order(settings), 7),
    }
    if head == "dpt":
        fields["layers"] = {**layers, "class token": model.decode_head.readout_type}
        fields["final norm"] = True  # of every map of a plain ViT
        return fields
    (index,) = model.backbone.out_indices
    fields["layers"] = {"map": range(4)[index], "stride": model.neck.stride}
    if head == "deeplabv3":
        fields["dilations"] = model.decode_head.dilations
    fields["from image to score"] = suite_scores(f"ade20k/{head}")
    required = find_preset("mmseg", *find_task(task)).required["train_list"]
    fields["train list"] = {"trainaug": ["train", "aug"]}.get(required)
    return fields


# ---------------------------------------------------------------- whole evaluations

SCORED = [0, 12, 24]  # pictures of whole patches at the size of a test


def source_scores(head: str, config: Config) -> dict[str, float]:
    """Scores of the pictures of ``segmented`` by MMSegmentation's data set, pipeline, model and
    metric."""
    classes = segmented.CLASSES
    options = {"in_channels": 6, "in_index": 0, "channels": CHANNELS, "num_classes": len(classes)}
    with DefaultScope.overwrite_default_scope("mmseg"), tempfile.TemporaryDirectory() as folder:
        segmented.write(Path(folder), "golden-void-0", [0], SCORED)
        model = MODELS.build(
            {
                "type": "EncoderDecoder",
                "data_preprocessor": config.model.data_preprocessor,
                "backbone": {"type": "torch.nn.Identity"},
                "decode_head": {**config.model.decode_head, **options},
                "test_cfg": config.model.test_cfg,
            }
        ).eval()
        model.backbone.forward = lambda images: [
            torch.nn.functional.interpolate(
                segmented.features(images), scale_factor=2, mode="bilinear", align_corners=False
            )
        ]  # at stride 8, as that of the configs
        dense.fill_head(model.decode_head)
        dataset = BaseSegDataset(
            data_root=folder,
            data_prefix={"img_path": "images/val", "seg_map_path": "labels/val"},
            img_suffix=".png",
            pipeline=config.test_pipeline,
            reduce_zero_label=True,
            metainfo={"classes": classes},
            test_mode=True,
        )
        metric = IoUMetric(iou_metrics=["mIoU"])
        metric.dataset_meta = dataset.metainfo
        with torch.no_grad():
            for item in dataset:
                results = model.test_step(pseudo_collate([item]))
                metric.process({}, [result.to_dict() for result in results])
        scores = metric.evaluate(len(dataset))
    return {name: scores[name] for name in ("mIoU", "mAcc", "aAcc")}


def suite_scores(task: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        data = segmented.write(Path(folder), "golden-void-0", [0], SCORED)
        scores = dense.scored_images("mmseg", task, data, channels=CHANNELS)
    return {name: scores[name] for name in ("mIoU", "mAcc", "aAcc")}


def source_order(config: Config) -> dict[str, Any]:
    """The order of seven images by the sampler of a config."""
    options = {**config.train_dataloader.sampler, "dataset": list(range(7)), "seed": 0}
    sampler = DATA_SAMPLERS.build(options)
    return dense.order_of_passes([*islice(sampler, 21)], 7)


# ---------------------------------------------------------------- both, from configs of mmengine

SHORT = {
    "deeplabv3": {"max_iters": 20},
    "pspnet": {"max_iters": 20},
    "dpt": dense.SHORT,
}


@lru_cache
def _curves(name: str) -> dict[str, list[float]]:
    config = Config.fromstring(name, ".py")
    return dense.scheduled_curves(
        config.optim_wrapper, config.param_scheduler, config.train_cfg.max_iters
    )


def curves(config: Config) -> dict[str, list[float]]:
    names = ("optim_wrapper", "param_scheduler", "train_cfg")
    return _curves(Config({name: config[name] for name in names}).pretty_text)


def short(config: Config) -> list[dict[str, Any]]:
    """The schedulers of a config for 20 iterations, 4 of them of warm-up."""
    lengths = {1500: 4, config.train_cfg.max_iters: 20}
    return [
        {
            name: lengths.get(value, value) if name in ("begin", "end") else value
            for name, value in part.items()
        }
        for part in config.param_scheduler
    ]


def settings_of(config: Config) -> dict[str, Any]:
    """Settings of a config of mmseg's or of this suite's."""
    wrapper = config.optim_wrapper
    head, loader = config.model.decode_head, config.train_dataloader
    devices = {2: 8, 4: 4}.get(loader.batch_size, 1)  # as the names of mmseg's files say
    return {
        **wrapper.optimizer.to_dict(),
        "clip": wrapper.get("clip_grad"),
        "batch": loader.batch_size * devices,
        "channels": head.get("channels"),
        "dropout": head.get("dropout_ratio", 0.1),
        "align corners": head.get("align_corners", False),
        "loss over": "labelled" if head.loss_decode.get("avg_non_ignore") else "all",
    }


def source_module(head: str, config: Config) -> Any:
    options = {**config.model.decode_head.to_dict(), "channels": CHANNELS, "num_classes": CLASSES}
    if head == "dpt":
        options |= {
            "in_channels": (CHANNELS,) * 4,
            "embed_dims": CHANNELS,
            "post_process_channels": WIDTHS,
        }
    else:
        options |= {"in_channels": CHANNELS, "in_index": 0}
    with DefaultScope.overwrite_default_scope("mmseg"):
        built = MODELS.build(options)
    dense.fill(dense.by_name(built))
    return built


def tokens(maps: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Four maps and their class tokens."""
    return [(maps.roll(level, 1), maps[:, :, level, 0]) for level in range(4)]


def source_inputs(head: str, maps: Tensor) -> tuple[Any, ...]:
    return tuple(tokens(maps)) if head == "dpt" else (maps,)


def suite_inputs(head: str, maps: Tensor) -> tuple[Tensor, ...]:
    if head != "dpt":
        return (maps,)
    pairs = [(each, token[:, :, None, None].expand_as(each)) for each, token in tokens(maps)]
    return (torch.cat([part for pair in pairs for part in pair], dim=1),)


def packed() -> list[Any]:
    return [dense.samples("gt_sem_seg", targets) for targets in LABELS]


def padding(config: Config) -> dict[str, Any]:
    """As ``dense.padding``: before normalisation with 0 (``Pad``'s default), or after it."""
    prepare = config.model.data_preprocessor
    is_raw = any(part["type"] == "Pad" for part in source_pipeline(config))
    return {"image": "black" if is_raw else prepare.pad_val, "label": prepare.seg_pad_val}


def source_pipeline(config: Config) -> Sequence[Mapping[str, Any]]:
    dataset = config.train_dataloader.dataset
    return dataset.datasets[0].pipeline if "datasets" in dataset else dataset.pipeline


def test_sizes(pipeline: Sequence[Mapping[str, Any]]) -> list[Any]:
    (resize,) = (part for part in pipeline if part["type"] == "Resize")
    sizes = [(40, 30), (30, 40), (70, 25), (50, 10)]
    return [list(dense.transform(resize, dense.photograph(*size))["img_shape"]) for size in sizes]
