"""CAPI's attentive classification: its ``eval_classification.py`` on tokens that need no model.

The source needs ``jaxtyping``, ``omegaconf`` and ``torchmetrics``.
"""

from __future__ import annotations

import ast
import inspect
import tempfile
import textwrap
from contextlib import suppress
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tests.protocols import sources

PROBE = "classification/attentive"
IMAGES, CLASSES, SIDE, WIDTH = 40, 3, 2, 128
SMALL = {
    "learning_rates": (1e-3, 1e-2),
    "weight_decays": (5e-4, 5e-2),
    "n_iters": 10,
    "warmup_iters": 3,
    "batch_size": 8,
    "num_classes": CLASSES,
}
SMALL_HEADS = 4 * 2 * 2  # of four pooled representations
GPUS = 8  # that its benchmark runs on
NAMES = {"0.query": "query_token", "0.key_value": "kv", "1": "linear"}
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
TOLERANCE = {"weights": 2e-5}


def tokens() -> torch.Tensor:
    """(images, patches, channels)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, SIDE * SIDE, WIDTH, generator=generator)


def weights() -> dict[str, torch.Tensor]:
    """Initial weights of every head, by the names of this suite's."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "0.query": (WIDTH,),
        "0.key_value.weight": (2 * WIDTH, WIDTH),
        "0.key_value.bias": (2 * WIDTH,),
        "1.weight": (CLASSES, WIDTH),
        "1.bias": (CLASSES,),
    }
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}


def renamed() -> dict[str, torch.Tensor]:
    """The weights by the source's names."""
    state = {}
    for name, tensor in weights().items():
        prefix = next(each for each in NAMES if name.startswith(each))
        state[name.replace(prefix, NAMES[prefix])] = tensor
    return state


class Images(torch.utils.data.Dataset):
    """Each image is its number."""

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 2, 2), float(index)), index % CLASSES


class Model(torch.nn.Module):
    """What CAPI's encoder returns; keeps the numbers of the images it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        numbers = images[:, 0, 0, 0].long()
        self.batches.append(numbers.tolist())
        patches = tokens()[numbers]
        return patches[:, 0], patches, patches.view(len(numbers), SIDE, SIDE, WIDTH)


def source() -> dict[str, Any]:
    """The fields, by the source's code."""
    trained: dict[Any, Any] = {}
    transforms: list[Any] = []
    model = Model()

    class Trained(Exception):
        pass

    def make_dataset(transform: Any, **_: Any) -> Images:
        transforms.append(transform)
        return Images()

    def evaluate(backbone: Any, heads: Any, *_: Any, **__: Any) -> None:
        trained.update(dict(zip(heads.idx_to_key, heads, strict=True)))
        raise Trained

    with sources.capi(), tempfile.TemporaryDirectory() as out:
        import eval_classification as code

        original = code.AttnPoolClassifier

        def head(*arguments: int) -> Any:
            built = original(*arguments)
            built.load_state_dict(renamed())
            return built

        with (
            mock.patch.object(code, "make_dataset", make_dataset),
            mock.patch.object(code, "AttnPoolClassifier", head),
            mock.patch.object(code, "evaluate", evaluate),
            mock.patch.object(code.MetricLogger, "synchronize_between_processes"),
            suppress(Trained),
        ):
            code.eval_model(
                model,
                lambda _: None,
                out,
                use_compile=False,
                num_workers=0,
                save_checkpoint_period=1000,
                eval_period=0,
                **SMALL,
            )
        defaults = {
            name: each.default
            for name, each in inspect.signature(code.eval_model).parameters.items()
        }
        logits = head(WIDTH, CLASSES)(tokens()[:4])
        names = {"np": np, **{key: defaults[key] for key in ("n_iters", "warmup_iters")}}
        peaks = []
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(code.eval_model)))):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
                "warmup",
                "decay",
                "lr_schedule",
            ):
                exec(ast.unparse(node), names)
            if isinstance(node, ast.Dict) and ast.unparse(node).startswith("{'base_lr'"):
                world = SimpleNamespace(distributed=SimpleNamespace(get_world_size=lambda: GPUS))
                for rate in defaults["learning_rates"]:
                    scope = {"lr": rate, "batch_size": defaults["batch_size"], "torch": world}
                    peaks.append(eval(ast.unparse(node.values[0]), scope))
        uses_autocast = "autocast" in inspect.getsource(code)
    schedule = names["lr_schedule"]
    representations = len(trained) / len(SMALL["learning_rates"]) / len(SMALL["weight_decays"])
    return {
        "normalised black": transforms[-1](Image.new("RGB", (8, 8)))[:, 0, 0],
        "precision": "bfloat16" if uses_autocast else "float32",
        "logits": logits,
        "order": model.batches[1 : 1 + SMALL["n_iters"]],
        "weights": {
            str(pair): [head.linear.weight[0, :8], head.kv.bias[WIDTH::16]]
            for (kind, pair), head in trained.items()
            if kind == "patch"
        },
        "rates": schedule[:: len(schedule) // 40],
        "learning_rates": peaks,
        "weight_decays": defaults["weight_decays"],
        "iterations": defaults["n_iters"],
        "batch_size": GPUS * defaults["batch_size"],
        "held_out": defaults["val_proportion"],
        "epsilon": 1e-8 * representations * len(peaks) * len(defaults["weight_decays"]),
    }


def normalised_black() -> torch.Tensor:
    """A black pixel as a backbone gets it that has a mean of its own."""
    from probes.image_level.encode import ImageViews
    from probes.image_level.settings import AttentiveSettings
    from tests.probes.tiny_mmlab import context

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "black.png"
        Image.new("RGB", (8, 8)).save(path)
        task = context(Path(folder), backbone="tiny-vit")
        encoding = AttentiveSettings().encoding("cpu")
        views = ImageViews(task, task.backbone, [path], encoding, encode=torch.clone)
        (images,) = views.tensors()
    return images[0, :, 0, 0]


def suite(order: list[list[int]]) -> dict[str, Any]:
    """The fields, by this suite, which trains in the order of the source's images."""
    import probes.catalog  # noqa: F401  registers every protocol
    from probes.image_level.attentive import AttentiveHeads, adamw, create_head
    from probes.image_level.linear import cosine, train_step
    from probes.registry import find_preset, find_task

    spec, probe = find_task("imagenet/attentive")
    settings = probe.settings_type(**find_preset("capi", spec, probe).settings)
    small = probe.settings_type(
        **find_preset("capi", spec, probe).settings
        | {
            "learning_rates": tuple(rate * 8 / 256 for rate in SMALL["learning_rates"]),
            "weight_decays": SMALL["weight_decays"],
            "epsilon": 1e-8 * SMALL_HEADS,
        }
    )
    heads = AttentiveHeads(create_head(small.pool, WIDTH, CLASSES) for _ in small.grid)
    for head in heads:
        head.load_state_dict(weights())
    logits = heads[0](tokens()[:4])
    optimizer = adamw(heads, small)
    for step, batch in enumerate(order):
        numbers = torch.tensor(batch)
        share = cosine(step, SMALL["n_iters"], SMALL["warmup_iters"])
        train_step(heads, optimizer, tokens()[numbers], numbers % CLASSES, share)
    length = settings.epochs * settings.epoch_length
    warmup = round(settings.warmup * length)
    return {
        "normalised black": normalised_black(),
        "precision": PRECISIONS[settings.precision],
        "logits": logits,
        "order": order,
        "weights": {
            str(pair): [head[1].weight[0, :8], head[0].key_value.bias[WIDTH::16]]
            for pair, head in zip(
                product(SMALL["learning_rates"], SMALL["weight_decays"]), heads, strict=True
            )
        },
        "rates": [cosine(step, length, warmup) for step in range(0, length, length // 40)],
        "learning_rates": settings.learning_rates,
        "weight_decays": settings.weight_decays,
        "iterations": length,
        "batch_size": settings.batch_size,
        "held_out": settings.holdout,
        "epsilon": settings.epsilon,
    }
