"""Pixio's dense probes by its own code. Its encoder is a stub that gives tokens; its ``main``
functions need eight GPUs, so that the formulas in them are read from the file and run.
"""

from __future__ import annotations

import ast
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from tests.protocols import dense, sources
from tests.protocols.dense import (
    CHANNELS,
    CLASSES,
    IMAGES,
    STEPS,
    UNEVEN,
    depths,
    photograph,
    random,
    seeded,
    summary,
)
from tests.protocols.pixio_inputs import (
    BLOCKS,
    DEPTHS,
    DEVICES,
    FRAME,
    LABELS,
    POSITIONS,
    RANGE,
    TALL,
    TARGETS,
    WIDE,
    WIDTHS,
    generator,
    tokens,
)

FILES = {
    "segmentation/linear": ("semseg", "ade20k_linear", "pascal_linear"),
    "segmentation/dpt": ("semseg", "ade20k_dpt", "pascal_dpt"),
    "depth/linear": ("monodepth", "nyuv2_linear"),
    "depth/dpt": ("monodepth", "nyuv2_dpt"),
}
HEADS = {"linear": "Linear", "dpt": "DPT"}
TASKS = {"ade20k": "ade20k", "pascal": "voc", "nyuv2": "nyu-depth"}


class Stub(nn.Module):
    """In place of the encoder; ``read`` has the blocks that were read."""

    embed_dim = CHANNELS // 2
    patch_embed = SimpleNamespace(patch_size=(4, 4))

    def __init__(self) -> None:
        super().__init__()
        self.step, self.read = 0, set[int]()

    def forward(self, images: Tensor) -> Any:
        read = self.read

        class Blocks(list):
            def __getitem__(self, index: int) -> Any:
                read.add(index % BLOCKS)
                return super().__getitem__(index)

        return Blocks(
            {"patch_tokens_norm": patches, "cls_tokens_norm": classes}
            for classes, patches in tokens(self.step)
        )


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    folder = checkout / "evaluation"
    imported = modules(folder)
    with on_cpu():
        return {
            "segmentation/linear": source_segmentation(folder, imported, "linear"),
            "segmentation/dpt": source_segmentation(folder, imported, "dpt"),
            "depth/linear": source_depth(folder, imported, "linear"),
            "depth/dpt": source_depth(folder, imported, "dpt"),
        }


def modules(folder: Path) -> dict[str, Any]:
    """The source's modules."""
    sys.path[:0] = [str(folder), str(folder / "common")]
    names = ["eval_semseg", "eval_monodepth", "semseg.data.transform", "monodepth.data.transform"]
    names += [f"{part}.models.{head}" for part in ("semseg", "monodepth") for head in HEADS]
    names += ["monodepth.data.nyuv2", "monodepth.util.misc"]
    return {name: import_module(name) for name in names}


@contextmanager
def on_cpu() -> Iterator[None]:
    with sources.on_cpu(), patch("torch.distributed.all_reduce", lambda tensor: None):
        yield


def statement(path: Path, name: str, mentions: str = "") -> Any:
    """The statement of a file that sets a variable, and has the word, as code."""
    for node in ast.walk(ast.parse(path.read_text())):
        targets = [
            target.id
            for part in ast.walk(node)
            if isinstance(node, ast.Assign | ast.If) and isinstance(part, ast.Assign)
            for target in part.targets
            if isinstance(target, ast.Name)
        ]
        if name in targets and mentions in ast.dump(node) and "__name__" not in ast.dump(node):
            return compile(ast.Module([node], []), str(path), "exec")
    raise LookupError(name)


def call(path: Path, function: str) -> ast.Call:
    """The first call of a function in a file."""
    return next(
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == function
    )


def rate_of(path: Path, config: dict[str, Any], batches: int) -> Callable[[int], float]:
    """The rate that ``main`` sets after an iteration."""
    rate, scope = statement(path, "lr"), {"args": SimpleNamespace(**config)}
    scope |= {"total_iters": config["epochs"] * batches, "trainloader": range(batches)}
    if "warmup_iters" in path.read_text():
        exec(statement(path, "warmup_iters"), scope)

    def of(iteration: int) -> float:
        exec(rate, scope | (values := {"iters": iteration}), values)
        return values["lr"]

    return of


def adamw(path: Path, config: dict[str, Any], parameters: Any) -> torch.optim.Optimizer:
    options = {
        each.arg: ast.literal_eval(each.value)
        for each in call(path, "AdamW").keywords
        if each.arg != "lr"
    }
    return torch.optim.AdamW(parameters, lr=config["lr"], **options)


def batches(folder: Path, part: str, config: dict[str, Any]) -> int:
    """Of an epoch on one of the GPUs."""
    lines = (folder / part / "splits" / config["dataset"] / "train.txt").read_text().splitlines()
    sampler = torch.utils.data.DistributedSampler(lines, num_replicas=DEVICES, rank=0)
    loader = torch.utils.data.DataLoader(
        lines, config["batch_size"], drop_last=True, sampler=sampler
    )
    return len(loader)


def source_fields(
    folder: Path, key: str, model: Any, loss: Callable[[Tensor, int], Tensor], flipped: float
) -> dict[str, Any]:
    """Fields that segmentation and depth share."""
    part, *names = FILES[key]
    path = folder / f"eval_{part}.py"
    configs = [
        yaml.safe_load((folder / part / "configs" / f"{name}.yaml").read_text()) for name in names
    ]
    config, lengths = configs[0], {}
    for each in configs:
        length = each["epochs"] * batches(folder, part, each)
        lengths[TASKS[each["dataset"]]] = [length, DEVICES * each["batch_size"]]
    optimizer = adamw(path, config, model.head.parameters())
    (group,), total = optimizer.param_groups, lengths[TASKS[config["dataset"]]][0]
    fields = {
        "settings": {
            "optimizer": "adamw",
            "rate": config["lr"],
            "beta 2": group["betas"][1],
            "decay": group["weight_decay"],
            "crop": [config["crop_size"]] * 2,
            "flip": flipped,
        },
        "lengths": lengths,
        "validations": config["epochs"],
        "initial weights": dense.spread(
            next(m for m in reversed(list(model.head.modules())) if isinstance(m, nn.Conv2d))
        ),
    }
    if key.endswith("linear"):
        after, count = rate_of(path, config, total // config["epochs"]), iter(range(total))

        def step() -> None:
            group["lr"] = after(next(count))

        fields |= dense.followed(optimizer, total, step)
    dense.fill(parameters(model))
    images = torch.zeros(IMAGES, 3, 24, 24)
    fields["head output"] = summary(model.eval()(images))
    optimizer = adamw(path, config, model.head.parameters())
    after, losses = rate_of(path, {**config, "epochs": 4}, 5), []
    model.train()
    for iteration in range(STEPS):
        model.encoder.step = iteration
        outputs = model(images).split(config["batch_size"])
        values = [loss(output, iteration, index) for index, output in enumerate(outputs)]
        value = torch.stack(values).mean()  # as the gradients over GPUs
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = after(iteration)
        losses.append(value.item())
    suffix = " of depth" if part == "monodepth" else ""
    fields[f"losses{suffix}"] = losses
    fields[f"weights after ten steps{suffix}"] = dense.weights(parameters(model))
    width = next(each.in_channels for each in model.modules() if isinstance(each, nn.Conv2d))
    has_token = width == 2 * model.encoder.embed_dim
    fields["layers"] = {"blocks": sorted(model.encoder.read), "class token": has_token}
    return fields


def parameters(model: Any) -> list[Tensor]:
    """Of a head of the source, in the order of ``suite_parameters``."""
    head = model.head
    if isinstance(head, nn.Sequential):
        return dense.by_shape(head)
    parts = [*head.projects, *(layer for layer in head.resize_layers if list(layer.parameters()))]
    scratch = head.scratch
    parts += [getattr(scratch, f"layer{level}_rn") for level in (1, 2, 3, 4)]
    for level in (4, 3, 2, 1):
        block = getattr(scratch, f"refinenet{level}")
        units = [block.resConfUnit2] if level == 4 else [block.resConfUnit1, block.resConfUnit2]
        parts += [conv for unit in units for conv in (unit.conv1, unit.conv2)] + [block.out_conv]
    parts += [scratch.output_conv[0], scratch.output_conv[2]]
    return [tensor for part in parts for tensor in (part.weight, part.bias) if tensor is not None]


def built(module: Any, name: str, *arguments: Any) -> Any:
    """A model of the source on ``Stub``, with narrow DPT."""
    module.pixio.stub = Stub
    kind = getattr(module, name)
    narrow = {"features": CHANNELS, "out_channels": list(WIDTHS)} if "DPT" in name else {}
    torch.manual_seed(0)
    return kind("stub", None, *arguments, **narrow)


def head_defaults(module: Any, name: str) -> dict[str, Any]:
    """The widths of DPT that a preset has."""
    parameters = inspect.signature(getattr(module, name).__init__).parameters
    return {
        "channels": parameters["features"].default,
        "widths": parameters["out_channels"].default,
        "norm": parameters["use_bn"].default,
    }


def by_numpy(module: Any) -> Any:
    """Let a module's random numbers be numpy's, which this suite draws from."""
    replacement = SimpleNamespace(
        randint=lambda low, high: np.random.randint(low, high + 1), random=np.random.random
    )
    return patch.object(module, "random", replacement)


def share(flips: Callable[[], bool]) -> float:
    np.random.seed(0)
    return round(sum(flips() for _ in range(2000)) / 2000, 1)


def source_segmentation(folder: Path, imported: dict[str, Any], head: str) -> dict[str, Any]:
    eval_semseg, transform = imported["eval_semseg"], imported["semseg.data.transform"]
    module, name = imported[f"semseg.models.{head}"], f"{HEADS[head]}Seg"
    criterion = nn.CrossEntropyLoss(ignore_index=255)

    def loss(output: Tensor, step: int, index: int) -> Tensor:
        return criterion(output, LABELS[step].split(len(output))[index])

    picture, mask = Image.fromarray(np.arange(2, dtype=np.uint8)[None]), Image.new("L", (2, 1))
    with by_numpy(transform):
        flipped = share(lambda: np.asarray(transform.hflip(picture, mask)[0])[0, 0] == 1)
    fields = source_fields(
        folder, f"segmentation/{head}", built(module, name, CLASSES), loss, flipped
    )
    fields["backbone precision"] = eval_semseg.parser.get_default("dtype")
    if head == "dpt":
        return {**fields, "head": head_defaults(module, name)}
    crops, resized = [], []
    with by_numpy(transform):
        for _ in seeded(4):
            size = Image.fromarray(photograph(20, 24)), Image.fromarray(UNEVEN)
            image, target = transform.resize(*size, (0.5, 2.0))
            resized.append([list(image.size), summary(image, 8), np.asarray(target).tolist()])
            for height, width in (TALL, WIDE):
                image, target = transform.crop(
                    Image.fromarray(photograph(height, width)),
                    Image.fromarray(UNEVEN[:height, :width]),
                    9,
                )
                crops.append([summary(image, 4), int(np.asarray(target).sum())])
    small = transform.crop(Image.new("RGB", (2, 2), (9, 9, 9)), Image.new("L", (2, 2), 9), 4)
    averager = dense.Averager()
    arguments = SimpleNamespace(crop_size=256, nclass=CLASSES)
    loader = [(random(1, 3, 300, 420, seed=8), TARGETS)]
    _, ious = eval_semseg.evaluate(averager, loader, arguments)
    without = [(random(1, 3, 300, 420, seed=8), torch.where(TARGETS == 4, 255, TARGETS))]
    mean, _ = eval_semseg.evaluate(dense.Averager(-1e3), without, arguments)
    return {
        **fields,
        "resized": resized,
        "crops": crops,
        "normalised black": transform.normalize(Image.new("RGB", (1, 1))).flatten(),
        "padding": [np.asarray(each)[3, 3].tolist() for each in small],
        "windows": ious,
        "mIoU with an absent class": mean,
        "head precision": eval_semseg.parser.get_default("dtype"),
    }


def source_depth(folder: Path, imported: dict[str, Any], head: str) -> dict[str, Any]:
    eval_monodepth, transform = imported["eval_monodepth"], imported["monodepth.data.transform"]
    misc, nyuv2 = imported["monodepth.util.misc"], imported["monodepth.data.nyuv2"]
    module, name = imported[f"monodepth.models.{head}"], f"{HEADS[head]}Depth"
    path = folder / "eval_monodepth.py"
    config = yaml.safe_load((folder / f"monodepth/configs/nyuv2_{head}.yaml").read_text())
    args, criterion, (cut, black) = SimpleNamespace(**config), misc.SiLogLoss(), frame(nyuv2)
    mask = compile(ast.Expression(call(path, "criterion").args[2]), str(path), "eval")

    def trained(depth: Tensor) -> Tensor:
        return eval(mask, {"valid_mask": depth > 0, "depth": depth, "args": args})

    def loss(output: Tensor, step: int, index: int) -> Tensor:
        target = DEPTHS[step].split(len(output))[index]
        output = (output * args.max_depth).clamp(min=args.min_depth)
        return criterion(output, target, trained(target))

    flip, row = transform.HorizontalFlip(), np.arange(2)[None]
    with by_numpy(transform):
        flipped = share(lambda: flip({"image": row})["image"][0, 0] == 1)
    fields = source_fields(folder, f"depth/{head}", built(module, name), loss, flipped)
    fields["backbone precision"] = eval_monodepth.parser.get_default("dtype")
    if head == "dpt":
        return {**fields, "head": head_defaults(module, name)}
    averager = dense.Averager()
    windows = eval_monodepth.infer_model(
        lambda crop: averager(crop)[:, 0].sigmoid(), random(1, 3, 300, 420, seed=8), args
    )
    scope = {"args": args, "depth": torch.tensor(RANGE), "valid_mask": torch.tensor(RANGE) > 0}
    exec(statement(path, "valid_mask", "min_depth"), scope)
    target, predicted = depths(40, 50) + 0.01, 0.5 + 9 * torch.rand(40, 50, generator=generator())
    scores = misc.eval_depth(predicted[target > 0], target[target > 0])
    return {
        **fields,
        "output": (torch.tensor([-8.0, 0.0, 8.0]).sigmoid() * args.max_depth).tolist(),
        "windows": summary(windows / args.max_depth),
        "normalised black": black,
        "trained pixels": trained(torch.tensor(RANGE)).tolist(),
        "scored pixels": scope["valid_mask"].tolist(),
        "scores": [
            *(scores[name] for name in ("rmse", "abs_rel", "log10")),
            *(100 * scores[name] for name in ("d1", "d2", "d3")),
        ],
        "area": {"train": cut, "val": cut},
        "head precision": eval_monodepth.parser.get_default("dtype"),
    }


def frame(nyuv2: Any) -> tuple[list[Any], Any]:
    """Shape and corners of what the source reads of a frame, of either split; a black pixel."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        lists = Path("monodepth/splits/nyuv2")
        lists.mkdir(parents=True)
        (lists / "val.txt").write_text("image.png depth.png")
        cv2.imwrite("image.png", photograph(*FRAME))
        cv2.imwrite("depth.png", POSITIONS)
        dataset = nyuv2.NYUv2(folder, "val")
        depth = dataset[0]["depth"] * 1000
    black = dataset.transform.transforms[0]({"image": np.zeros(3)})["image"]
    return [list(depth.shape), round(depth[0, 0].item()), round(depth[-1, -1].item())], black
