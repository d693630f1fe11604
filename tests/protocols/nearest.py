"""k-NN classification of Pixio and RADIO: votes, neighbours and settings."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn.functional import normalize

PROBE = "classification/knn"
TRAIN, VAL, WIDTH, CLASSES = 60, 100, 8, 5
TEMPERATURE = 0.07
NEIGHBOURS = (3, 10, 20)


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
    from probes.image_level.classification import top1
    from probes.image_level.knn import votes
    from probes.protocols.base import find_preset
    from probes.registry import find_task

    spec, probe = find_task("imagenet/knn")
    settings = probe.settings_type(**find_preset(protocol, spec, probe).settings)
    train, labels, val, targets = features()
    ballots = votes(val, train, labels, NEIGHBOURS, settings.temperature, CLASSES)
    return {
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
    sizes: list[int] = []

    class Enough(Exception):
        pass

    def dataset(_: str, transform: Any) -> None:
        sizes.append(transform.transforms[1].size[0])
        raise Enough

    with (
        mock.patch.object(eval_knn, "ReturnIndexDataset", dataset),
        contextlib.suppress(Enough),
    ):
        eval_knn.extract_feature_pipeline(argparse.Namespace(data_path=""))
    return {
        "top1": top1,
        "neighbours": arguments["nb_knn"],
        "temperature": arguments["temperature"],
        "size": sizes[0],
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
    return {
        "top1": [float(each) for each in top1],
        "neighbours": [arguments["k"]],
        "temperature": 1 / weights[0],
        "size": arguments["resolution"],  # the model's own
        "chosen_on": "nothing",
        "precision": "float32",
    }


@contextlib.contextmanager
def importing(*folders: Path) -> Iterator[None]:
    """Import from folders; what is imported is forgotten."""
    import torch._dynamo  # noqa: F401  patch.dict would drop it, and it cannot be imported again
    import torchvision.datasets  # noqa: F401

    with (
        mock.patch.dict(sys.modules),
        mock.patch.object(sys, "path", [*map(str, folders), *sys.path]),
    ):
        yield


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
