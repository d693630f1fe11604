"""MAE's fine-tuning on ImageNet: rates and decay by blocks, by its own code; the rest was read."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch

from cliptex_common.settings import with_changes
from probes.image_level.linear import cosine
from probes.image_level.tuned import WARMUP
from probes.registry import find_preset, find_task
from tests.protocols import tuned

PROBE = "classification/linear"
IMAGES = 1_281_167
TOLERANCE = {"curve": 6e-4}  # ``lowest rate``


def network() -> Any:
    return timm.create_model("vit_tiny_patch16_224", num_classes=10)


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    """By ``util/lr_decay.py`` and ``util/lr_sched.py``, with FINETUNE.md's command for ViT-B."""
    decay, schedule = (import_module(f"util.{name}") for name in ("lr_decay", "lr_sched"))
    command = (checkout / "FINETUNE.md").read_text().partition("vit_base_patch16 \\\n")[2]
    words = command.partition("```")[0].replace("\\", "").split()
    options = {key: value for key, value in pairwise(words) if key[0] == "-"}
    batch, weight_decay = 32 * 4 * 8, float(options["--weight_decay"])
    rate, epochs = float(options["--blr"]) * batch / 256, int(options["--epochs"])
    arguments = SimpleNamespace(lr=rate, min_lr=1e-6, warmup_epochs=5, epochs=epochs)
    length = IMAGES // batch
    model, factor = network(), float(options["--layer_decay"])
    parts = decay.param_groups_lrd(model, weight_decay, model.no_weight_decay(), factor)
    optimizer = torch.optim.AdamW(parts, lr=rate)

    def adjust(iteration: int) -> Any:
        return schedule.adjust_learning_rate(optimizer, iteration / length, arguments)

    fields = tuned.groups(optimizer, weights(model), adjust)
    return {
        PROBE: {
            "warm-up": fields["rates"],
            "decay": fields["decay"],
            "curve": [adjust(share * epochs * length // 20) / rate for share in range(21)],
            "drop path": float(options["--drop_path"]),
            "batch, epochs, size": [batch, epochs, 224],
        }
    }


def suite() -> dict[str, dict[str, Any]]:
    import backbones
    from backbones.tuning import Tuning

    spec, probe = find_task("imagenet/linear")
    settings = with_changes(probe.settings_type(), find_preset("mae", spec, probe).settings)
    ((rate,), (decay,)) = settings.backbone_rates, settings.weight_decays
    length = -(-IMAGES // settings.batch_size)
    iterations = settings.epochs * length

    def share(iteration: int) -> float:
        return cosine(iteration, iterations, round(WARMUP * iterations))

    backbone = backbones.create("random/timm/vit_tiny_patch16_224")
    tuning = Tuning(backbone, "all", lambda copy, images: [copy.encode_image(images)], (224, 224))
    head = torch.nn.Linear(2, 2)
    parts = tuning.groups(rate, decay, settings.layer_decay)
    parts.append({"params": [*head.parameters()], "lr": rate, "weight_decay": decay})
    optimizer = torch.optim.AdamW(parts)
    highest = [group["lr"] for group in optimizer.param_groups]

    def adjust(iteration: int) -> None:
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * share(iteration)

    named = {kind: tuning.trained[name] for kind, name in tuned.WEIGHTS.items()}
    fields = tuned.groups(optimizer, {**named, "head": head.weight}, adjust)
    return {
        PROBE: {
            "warm-up": fields["rates"],
            "decay": fields["decay"],
            "curve": [share(part * iterations // 20) for part in range(20)] + [0.0],
            "drop path": settings.drop_path,
            "batch, epochs, size": [settings.batch_size, settings.epochs, settings.size],
        }
    }


def weights(model: Any) -> dict[str, Any]:
    named = dict(model.named_parameters())
    return {kind: named[name] for kind, name in tuned.WEIGHTS.items()} | {"head": model.head.weight}
