"""k-NN classification of Pixio and RADIO: images, features, votes, neighbours and settings."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from tests.protocols.sources import importing, on_cpu, one_process

PROBE = "classification/knn"
TRAIN, VAL, WIDTH, CLASSES = 60, 100, 8, 5
TEMPERATURE = 0.07
SIDE = 224  # of what RADIO's model prefers, here
NEIGHBOURS = (3, 10, 20)


def photograph() -> Image.Image:
    """An RGB image of 403 × 301 px."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    return Image.fromarray(pixels).resize((403, 301))


def summary(pixels: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [0, 1] → 48 means."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten()


def final_norm(passed: bool) -> str:
    return f"{'after' if passed else 'before'} the final norm"


def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors and classes of train, and of val."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    parts: list[torch.Tensor] = []
    for count in (TRAIN, VAL):
        labels = torch.arange(count) % CLASSES
        noise = torch.randn(count, WIDTH, generator=generator)
        parts += [normalize(centres[labels] + 1.5 * noise, dim=1), labels]
    return parts[0], parts[1], parts[2], parts[3]


def suite(protocol: str) -> dict[str, Any]:
    """The fields of a protocol, by this suite."""
    import backbones
    from backbones.backbone import resizing
    from probes.image_level.classification import top1
    from probes.image_level.encode import encoder
    from probes.image_level.neighbours import votes
    from probes.registry import find_preset, find_task

    spec, probe = find_task("imagenet/knn")
    settings = probe.settings_type(**find_preset(protocol, spec, probe).settings)
    train, labels, val, targets = features()
    backbone = backbones.create("random/timm/vit_tiny_patch16_224", seed=0)
    side = settings.size or SIDE
    data = replace(backbone.data, size=(side, side))
    pixels = resizing(data, data.interpolation)(photograph()) / 255
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        embeddings = encoder(backbone, settings.encoding("cpu"))(inputs)
        normed = backbone.model.forward_features(inputs)[:, 0]
    ballots = votes(val, train, labels, NEIGHBOURS, settings.temperature, CLASSES)
    return {
        "image": [list(pixels.shape), *summary(pixels)],
        "normalised black": [-m / s for m, s in zip(data.mean, data.std, strict=True)],
        "class tokens": final_norm(torch.allclose(embeddings, normed, atol=1e-5)),
        "top1": [top1(ballot, targets) for ballot in ballots],
        "neighbours": list(settings.neighbours),
        "temperature": settings.temperature,
        "size": settings.size,
        "chosen_on": "held-out part of train" if len(settings.neighbours) > 1 else "nothing",
        "precision": {"fp32": "float32", "bf16": "bfloat16"}[settings.precision],
    }


def pixio(checkout: Path) -> dict[str, Any]:
    """Pixio's fields, by ``evaluation/eval_knn.py``."""
    with importing(checkout / "evaluation", checkout / "pixio"):
        import eval_knn  # type: ignore[import-not-found]

    train, labels, val, targets = features()
    top1 = [
        eval_knn.knn_classifier(train, labels, val, targets, k, TEMPERATURE, CLASSES)[0]
        for k in NEIGHBOURS
    ]
    arguments = script_defaults(checkout / "evaluation" / "eval_knn.py")
    transforms: list[Any] = []

    class Enough(Exception):
        pass

    def dataset(_: str, transform: Any) -> None:
        transforms.append(transform)
        raise Enough

    with (
        mock.patch.object(eval_knn, "ReturnIndexDataset", dataset),
        contextlib.suppress(Enough),
    ):
        eval_knn.extract_feature_pipeline(argparse.Namespace(data_path=""))
    *parts, normalise = transforms[0].transforms
    black, pixels = normalise(torch.zeros(3, 1, 1)), photograph()
    for part in parts:
        pixels = part(pixels)
    outputs = [{"cls_tokens": torch.zeros(1, 8, 2), "cls_tokens_norm": torch.ones(1, 8, 2)}]
    loader = mock.MagicMock(dataset=[0])
    loader.__iter__.return_value = [(torch.zeros(1, 3, 8, 8), torch.zeros(1).long())]
    with on_cpu(), one_process(), mock.patch.object(eval_knn.misc, "MetricLogger") as logger:
        logger.return_value.log_every = lambda batches, _: batches
        embeddings = eval_knn.extract_features(
            lambda _: outputs, loader, argparse.Namespace(dtype="fp32")
        )
    return {
        "image": [list(pixels.shape), *summary(pixels)],
        "normalised black": black.flatten(),
        "class tokens": final_norm(bool(embeddings.all())),
        "top1": top1,
        "neighbours": arguments["nb_knn"],
        "temperature": arguments["temperature"],
        "size": parts[1].size[0],
        "chosen_on": "val",  # it prints the accuracy on val of each
        "precision": {"bf16": "bfloat16"}[arguments["dtype"]],
    }


def radio(checkout: Path) -> dict[str, Any]:
    """RADIO's fields, by ``examples/knn_classification.py``."""
    with importing(checkout / "examples"):
        for name in ("common", "datasets", "datasets.iterable_dataset", "datasets.distributed"):
            sys.modules[name] = mock.MagicMock()
        import knn_classification  # type: ignore[import-not-found]

    train, labels, val, targets = features()
    options = {"distributed": False, "num_classes": CLASSES, "num_valid": VAL}
    top1 = [
        100
        * knn_classification._knn_top1_accuracy(train, labels, val, targets, K=k, **options)
        / VAL
        for k in NEIGHBOURS
    ]
    weights: list[float] = []
    with mock.patch.object(torch, "exp", lambda ratio: weights.append(ratio.item()) or ratio.exp()):
        knn_classification._get_vote_cls(torch.ones(1, 1), torch.zeros(1, 1).long(), 2)
    arguments = script_defaults(checkout / "examples" / "knn_classification.py")
    with importing(checkout / "examples" / "common"):
        import resize_transform  # type: ignore[import-not-found]
    pixels = resize_transform.get_standard_transform((SIDE, SIDE), arguments["resize_multiple"])(
        photograph()
    )
    return {
        "image": [list(pixels.shape), *summary(pixels)],
        "top1": [float(each) for each in top1],
        "neighbours": [arguments["k"]],
        "temperature": 1 / weights[0],
        "size": arguments["resolution"],  # the model's own
        "chosen_on": "nothing",
        "precision": "float32",
    }


def script_defaults(path: Path) -> dict[str, Any]:
    """Defaults of the options that a script adds to its parser."""
    import ast

    defaults = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "parser.add_argument":
            names = [ast.literal_eval(each) for each in node.args]
            for keyword in node.keywords:
                if keyword.arg == "default":
                    name = max(names, key=len).lstrip("-").replace("-", "_")
                    defaults[name] = ast.literal_eval(keyword.value)
    return defaults
