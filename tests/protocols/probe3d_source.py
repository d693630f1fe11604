"""What probe3d's own code makes of small inputs, which are shared with the suite's side.

It needs einops beside this suite's packages; what its other imports bring is not used.
"""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

import backbones
from cliptex_common.device import isolated_rng
from tests.protocols import dense, sources
from tests.protocols.dense import STEPS, depths, photograph, random, seeded, summary

TASKS = {
    "depth/dpt-probe3d": "nyu-depth/dpt-probe3d",
    "normals/dpt-probe3d": "nyu-normal/dpt-probe3d",
}
IMAGES, WIDTH, HIDDEN, SIDE, FRAME = 8, 6, 8, 32, (480, 640)
VIT = "random/timm/vit_small_patch14_dinov2"
# the source's configs of backbones, and their names here
BACKBONES = {
    "clip_b16": "openai/clip-vit-base-patch16",
    "deit3_b16": "timm/deit3_base_patch16_224.fb_in22k_ft_in1k",
    "dino_b16": "timm/vit_base_patch16_224.dino",
    "dinov2_b14": "timm/vit_base_patch14_dinov2.lvd142m",
    "dinov2_b14_reg": "hub/facebookresearch/dinov2:dinov2_vitb14_reg",
    "dinov2_l14": "hf/facebook/dinov2-large",
    "mae_b16": "timm/vit_base_patch16_224.mae",
    "siglip_b16": "timm/vit_base_patch16_siglip_224.webli",
}
MAPS = [
    [random(IMAGES, WIDTH, 2, 2, seed=100 * step + i) for i in range(4)] for step in range(STEPS)
]
DEPTHS = [depths(IMAGES, 1, SIDE, SIDE, seed=60 + step) for step in range(STEPS)]
NORMALS = [F.normalize(random(IMAGES, 3, SIDE, SIDE, seed=80 + step)) for step in range(STEPS)]
FRAMES, RANGE = 3, [0.0, 0.5, 5.0, 9.9, 12.0]
EDGES, UNROUNDED = [0.0, 0.0005, 0.001, 5.0, 10.0, 10.5], [0.7464, 3.0002, 9.1236]


def depth_frames() -> tuple[Tensor, Tensor]:
    target = depths(FRAMES, 1, *FRAME)
    return (target + 0.5 * random(*target.shape, seed=3)).clamp(0.1, 10), target


def normal_frames() -> tuple[Tensor, Tensor, Tensor]:
    target = F.normalize(random(FRAMES, 3, *FRAME, seed=4))
    predicted = target + 0.3 * random(*target.shape, seed=5)
    return predicted, target, depths(FRAMES, 1, *FRAME) > 0


def frame_depth() -> np.ndarray:
    """Metres that grow along a row; ``RANGE``, ``EDGES`` and ``UNROUNDED`` where the central part
    of the first three starts."""
    depth = np.broadcast_to(np.arange(FRAME[1], dtype=np.float32) / 100, FRAME).copy()
    for row, values in enumerate((RANGE, EDGES, UNROUNDED)):
        depth[row, 80 : 80 + len(values)] = values
    return depth


def row_ends(depth: Tensor) -> list[float]:
    """The depths at both ends of the last row."""
    return depth.reshape(-1, depth.shape[-1])[-1, [0, -1]].tolist()


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    with sources.probe3d():
        return {kind: _source(checkout, kind) for kind in TASKS}


def _source(checkout: Path, kind: str) -> dict[str, Any]:
    from evals.datasets import builder, nyu, utils
    from evals.models.utils import center_padding
    from evals.utils.optim import cosine_decay_linear_warmup

    is_depth = kind.startswith("depth")
    config, training = _configs(checkout, "depth" if is_depth else "snorm")
    loader = builder.build_loader(list(range(795)), "trainval", config["batch_size"])
    steps = training["n_epochs"] * len(loader), training["warmup_epochs"] * len(loader)
    text = (checkout / f"train_{'depth' if is_depth else 'snorm'}.py").read_text(encoding="utf-8")
    (kind_of_optimizer,) = set(re.findall(r"torch\.optim\.(\w+)\(", text))

    def created(
        parameters: Any, end: int, warm: float
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        rate = {"params": parameters, "lr": training["probe_lr"]}
        optimizer = getattr(torch.optim, kind_of_optimizer)([rate])
        curve = lambda step: cosine_decay_linear_warmup(step, end, warm)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, curve)

    optimizer, scheduler = created([torch.zeros(1, requires_grad=True)], *steps)
    (group,) = optimizer.param_groups
    read = text + "".join(map(inspect.getsource, (builder, nyu, utils)))
    settings = {
        "optimizer": kind_of_optimizer.lower(),
        "rate": training["probe_lr"],
        "beta 2": group["betas"][1],
        "decay": group["weight_decay"],
        "clip": "clip_grad" if "clip_grad" in text else "never",
        "batch": config["batch_size"],
        "channels": config["probe"]["hidden_dim"],
    }
    head = _source_head(config["probe"], [WIDTH] * 4, HIDDEN)
    dense.fill(_source_parameters(head.head))
    output = head.eval()([each.clone() for each in MAPS[0]])
    short = created(head.parameters(), dense.SHORT["max_iters"], dense.SHORT["warmup"])
    losses = _source_training(head, *short, is_depth)
    with isolated_rng(0):
        untrained = _source_head(config["probe"], [WIDTH] * 4, config["probe"]["hidden_dim"])
    fields = {
        **dense.followed(optimizer, steps[0], scheduler.step),
        "settings": settings,
        "data": Path(config["dataset"]["train_path"]).name,
        "iterations": steps[0],
        "order": list(loader.sampler)[:10],
        **_source_images(config["dataset"], is_depth),
        **_source_tokens(checkout),
        "padding": _borders(center_padding(torch.ones(1, 1, 480, 480), 14)),
        "initial weights": dense.spread(untrained.head.out_conv[2]),
        "head output": summary(output),
        "losses": losses,
        "weights after ten steps": dense.weights(_source_parameters(head.head)),
        "mean colour": config["dataset"]["image_mean"],
        "head precision": "autocast" if "autocast" in text else "float32",
        "seed": config["system"]["random_seed"] if "seed" in read else "none",
    }
    return fields | (_source_depth_scores() if is_depth else _source_normal_scores())


def _configs(checkout: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source's config with the parts it names, and its optimizer's."""
    folder = checkout / "configs"
    config = yaml.safe_load((folder / f"{kind}_training.yaml").read_text(encoding="utf-8"))
    parts = {
        key: name for part in config["defaults"] if part != "_self_" for key, name in part.items()
    }
    for key, name in parts.items():
        config[key] = yaml.safe_load((folder / key / f"{name}.yaml").read_text(encoding="utf-8"))
    return config, config["optimizer"]


def _source_head(config: dict[str, Any], widths: list[int], hidden: int) -> Any:
    from evals.models import probes

    options = {name: value for name, value in config.items() if name != "_target_"}
    kind = getattr(probes, config["_target_"].rpartition(".")[2])
    return kind(feat_dim=widths, **{**options, "hidden_dim": hidden})


def _source_parameters(head: Any) -> list[Tensor]:
    units = [getattr(head, f"ref_{i}") for i in range(4)]
    parts = [getattr(head, f"conv_{i}") for i in range(4)]
    parts += [unit.resConfUnit1 for unit in units[:3]]
    parts += [unit.resConfUnit2 for unit in units]
    return [tensor for part in [*parts, head.out_conv] for tensor in part.parameters()]


def _source_training(head: Any, optimizer: Any, scheduler: Any, is_depth: bool) -> list[float]:
    import train_depth
    import train_snorm
    from evals.utils.losses import DepthLoss

    values: list[float] = []

    def recorded(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def compute(*arguments: Any, **options: Any) -> Tensor:
            value = loss(*arguments, **options)
            values.append(value.item())
            return value

        return compute

    model = lambda number: [each.clone() for each in MAPS[int(number)]]
    batches = [
        {"image": torch.tensor(step), "depth": DEPTHS[step].clone(), "snorm": NORMALS[step]}
        for step in range(STEPS)
    ]
    options = {"n_epochs": 1, "detach_model": True, "rank": "cpu"}
    parts = model, head, batches, optimizer, scheduler
    if is_depth:
        with patch.object(train_depth, "world_size", 1, create=True):
            train_depth.train(*parts, **options, loss_fn=recorded(DepthLoss()))
    else:
        with patch.object(train_snorm, "angular_loss", recorded(train_snorm.angular_loss)):
            train_snorm.train(*parts, **options)
    return values


def _source_images(config: dict[str, Any], is_depth: bool) -> dict[str, Any]:
    """What of an image is read, in training and in testing, and how it changes."""
    import pickle

    import scipy.io
    from evals.datasets import nyu, utils
    from evals.utils.metrics import evaluate_depth

    crops = sys.modules["albumentations"]
    crops.RandomResizedCrop.reset_mock()
    targets = {"depth": "image", "snorm": "image"}
    options = {"augment": config["augment_train"], "additional_targets": targets}
    transform, _ = utils.get_nyu_transforms("None", FRAME, rotateflip=False, **options)
    enlarged = crops.RandomResizedCrop.call_args.kwargs
    coloured = [summary(255 * transform(photograph(8, 9)).permute(1, 2, 0), 20) for _ in seeded()]
    stored = np.zeros((3, *FRAME), np.uint8)
    depth = frame_depth()
    with tempfile.TemporaryDirectory() as folder:
        frame = {"img": np.zeros((*FRAME, 3)), "depth": depth.copy(), "norm": np.zeros((*FRAME, 3))}
        scipy.io.savemat(f"{folder}/room_0001-1.mat", frame)
        content = {
            "depths": [depth.copy()],
            "images": [stored],
            "snorms": [stored],
            "test_indices": [0],
        }
        content |= {"scene_types": [["room"]]}
        Path(folder, "test.pkl").write_bytes(pickle.dumps(content))
        names = ["room_0001-1.mat", *(f"x{number:05}" for number in range(30_815))]
        crop = config["center_crop"]
        with patch.object(nyu.os, "listdir", return_value=names):
            train = nyu.NYU(folder, "", "trainval", "None", center_crop=crop)[0]
        test = nyu.NYU("", f"{folder}/test.pkl", "test", "None", center_crop=crop)[0]
    fields = {
        "area": [[list(each["image"].shape), row_ends(each["depth"])] for each in (train, test)],
        "mask": (test["depth"] > 0)[0, 0, : len(RANGE)].tolist(),
        "enlarge": [enlarged["p"], *enlarged["scale"]],
        "colours": coloured,
    }
    if not is_depth:
        return fields
    pixels = test["depth"][0, 1, : len(EDGES), None, None]  # an image each
    return fields | {
        "scored pixels": (evaluate_depth(pixels, pixels)["d1"] > 0).tolist(),
        "test depth": test["depth"][0, 2, : len(UNROUNDED)].tolist(),
    }


def _source_tokens(checkout: Path) -> dict[str, Any]:
    from evals.models.dino import DINO

    model: Any = backbones.create(VIT, seed=0).model
    model.set_input_size((56, 70))
    model.prepare_tokens_with_masks = lambda images, masks: model._pos_embed(
        model.patch_embed(images)
    )
    outputs = {
        name: yaml.safe_load((checkout / f"configs/backbone/{name}.yaml").read_text())["output"]
        for name in BACKBONES
    }
    with patch("torch.hub.load", return_value=model), torch.no_grad():
        dino = DINO("dinov2", "vitb14", outputs["dinov2_b14"], return_multilayer=True)
        maps = dino(random(1, 3, 56, 70))
    convnext = (checkout / "evals/models/convnext.py").read_text(encoding="utf-8")
    return {
        "blocks": dino.multilayers,
        "tokens": [[list(each.shape), *summary(each, 10)] for each in maps],
        "backbone precision": str(next(dino.vit.parameters()).dtype).removeprefix("torch."),
        "class tokens": {name: output == "dense-cls" for name, output in outputs.items()},
        "strides": int(re.search(r"self\.patch_size = (\d+)", convnext)[1]),  # type: ignore[index]
    }


def _source_depth_scores() -> dict[str, Any]:
    from evals.utils.metrics import evaluate_depth

    predicted, target = (each[..., 80:-80] for each in depth_frames())
    scores, fitted = (
        evaluate_depth(predicted, target, image_average=True, scale_invariant=fit)
        for fit in (False, True)
    )
    empty = evaluate_depth(predicted[:1], torch.zeros_like(target[:1]), image_average=True)
    return {
        "scores": _listed(scores),
        "scale-invariant scores": _listed(fitted),
        "scores without valid pixels": _listed(empty),
    }


def _source_normal_scores() -> dict[str, Any]:
    from evals.utils.losses import angular_loss
    from evals.utils.metrics import evaluate_surface_norm

    predicted, target, mask = (each[..., 80:-80] for each in normal_frames())
    scores, empty = (
        evaluate_surface_norm(predicted, target, valid, image_average=True)
        for valid in (mask, mask & False)
    )
    up = torch.tensor([0.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1)
    return {
        "scores": _listed(scores),
        "scores without valid pixels": _listed(empty),
        "loss of small angles": angular_loss(up, up[:, :3], up[:, 2:3] > 0, True).item(),
    }


def _listed(scores: dict[str, Tensor]) -> list[float]:
    return [*(100 * float(scores[name]) for name in ("d1", "d2", "d3")), float(scores["rmse"])]


def _borders(padded: Tensor) -> list[int]:
    """How many columns and rows without image are left, right, above and below."""
    borders = []
    for axis in (3, 2):
        filled = padded.amax(dim=5 - axis).flatten().nonzero().flatten()
        borders += [int(filled[0]), padded.shape[axis] - 1 - int(filled[-1])]
    return borders
