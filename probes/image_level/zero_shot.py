"""``zero-shot`` classification: an image is of the class whose description is nearest (Radford et
al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cliptex_common.errors import UserError, suggest
from probes.base import Context, TaskResult
from probes.datasets.base import DatasetSpec
from probes.image_level.classification import score
from probes.image_level.encode import encode_split, encode_texts

Template = Callable[[str], str]

# of TCL (Cha, Mun, Roh, CVPR 2023): seven of CLIP's 80, and two for several objects
TCL_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    set_name, templates = templates_for(context.settings.templates, context.data.spec)
    weights = embed_names(context, class_names(context), templates)
    images = normalize(encode_split(context, "val"), dim=1)
    logits = torch.cat([part @ weights.T for part in images.split(4096)])
    prompts = f"prompts: {set_name} ({len(templates)} for each of {len(weights)} classes)"
    return score(context, logits, [prompts])


def templates_for(name: str, spec: DatasetSpec) -> tuple[str, Sequence[Template]]:
    """(name of the set, templates) for a dataset; ``auto`` depends on it."""
    # slow to import
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    sets: dict[str, Sequence[Template]] = {
        "openai": OPENAI_IMAGENET_TEMPLATES,
        "openai-7": SIMPLE_IMAGENET_TEMPLATES,
        "photo": ("a photo of a {}.".format,),
        "tcl": [text.format for text in TCL_TEMPLATES],
    }
    own = spec.extra.get("templates", ())
    if own:
        sets["dataset"] = [partial(text.replace, "{c}") for text in own]
    if name == "auto":
        default = "openai" if spec.name == "imagenet" else "photo"
        name = "dataset" if own else default
    if name not in sets:
        raise UserError(f"zero-shot: no templates {name!r}; {suggest(name, ['auto', *sets])}")
    return name, sets[name]


def class_names(context: Context) -> tuple[str, ...]:
    """Readable class names. Those of a dataset with its own prompts stay as they are."""
    names = context.data.classes
    if "templates" in context.data.spec.extra:
        return names
    return tuple(name.replace("_", " ") for name in names)


def embed_names(context: Context, names: Sequence[str], templates: Sequence[Template]) -> Tensor:
    """(names, D) unit vectors: the normalised mean of the unit embeddings of each name's prompts.

    Float32 on the CPU.
    """
    prompts = [template(name) for name in names for template in templates]
    by_name = normalize(encode_texts(context, prompts), dim=1).unflatten(0, (-1, len(templates)))
    return normalize(by_name.mean(dim=1), dim=1)
