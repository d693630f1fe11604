"""``zero-shot`` classification: an image is the class whose description is nearest (Radford et al.
2021, section 3.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from common.errors import UserError, nearest
from probes.base import Context, TaskResult
from probes.datasets.base import DatasetSpec
from probes.features.cost import EncodeRun
from probes.image_level.classification import score
from probes.image_level.embeddings import encode_split
from probes.image_level.encode import encode_texts, text_flops
from probes.image_level.linear import linear_flops

Template = Callable[[str], str]


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    which, templates = templates_for(context.settings.templates, context.data.spec)
    started, encoding = time.perf_counter(), EncodeRun.of(context)
    weights = class_embeddings(context, templates)
    prompted = time.perf_counter()
    images = normalize(encode_split(context, "val", encoding), dim=1)
    result = score(context, torch.cat([part @ weights.T for part in images.split(4096)]))
    result.cost = encoding.cost.added_to(
        {
            "text_seconds": prompted - started,
            "eval_seconds": time.perf_counter() - started,
            "text_flops": text_flops(context, prompts_of(context, templates)),
            "eval_flops": linear_flops(images.shape[1], len(weights), 0, len(images)),
        }
    )
    result.notes = [f"prompts: {which} ({len(templates)} for each of {len(weights)} classes)"]
    return result


def templates_for(name: str, spec: DatasetSpec) -> tuple[str, Sequence[Template]]:
    """(name of the set, templates): what ``auto`` means for a dataset, and the prompts
    themselves."""
    from open_clip import (
        OPENAI_IMAGENET_TEMPLATES,
        SIMPLE_IMAGENET_TEMPLATES,
    )  # slow to import: only when used

    sets: dict[str, Sequence[Template]] = {
        "openai": OPENAI_IMAGENET_TEMPLATES,
        "openai-7": SIMPLE_IMAGENET_TEMPLATES,
        "photo": ("a photo of a {}.".format,),
    }
    own = spec.extra.get("templates", ())
    if own:
        sets["dataset"] = [partial(_filled, text) for text in own]
    if name == "auto":
        name = "dataset" if own else "openai" if spec.name == "imagenet" else "photo"
    if name not in sets:
        raise UserError(f"zero-shot: no templates {name!r}; {nearest(name, ['auto', *sets])}")
    return name, sets[name]


def _filled(template: str, name: str) -> str:
    return template.replace("{c}", name)


def prompts_of(context: Context, templates: Sequence[Template]) -> list[str]:
    """Every prompt of every class, class by class. Names of a dataset that brings its own prompts
    are taken as they are."""
    names = context.data.classes
    if "templates" not in context.data.spec.extra:
        names = tuple(name.replace("_", " ") for name in names)
    return [template(name) for name in names for template in templates]


def class_embeddings(context: Context, templates: Sequence[Template]) -> Tensor:
    """(classes, D) unit vectors: the mean of the unit embeddings of each class's prompts, brought
    to unit length again."""
    prompts = prompts_of(context, templates)
    embedded = encode_texts(
        context.backbone, prompts, EncodeRun.of(context), context.settings.precision
    )
    return normalize(
        normalize(embedded, dim=1).unflatten(0, (-1, len(templates))).mean(dim=1), dim=1
    )
