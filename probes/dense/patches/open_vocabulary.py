"""``open-vocabulary`` segmentation: a patch is the class whose text is nearest (MaskCLIP, Zhou,
Loy, Dai, ECCV 2022).

Patches come from ``Backbone.encode_dense``; no head, no training, no label but for scoring. A class
called ``background`` is what its settings list, the best of which counts; so is a class whose name
lists several, separated by commas or semicolons.
"""

from __future__ import annotations

import re
import time

import torch
from torch import Tensor
from torch.nn.functional import normalize

from probes.base import Context, Probe, TaskResult
from probes.dense.patches.images import Encoder, Patches, PatchImages, evaluate
from probes.dense.patches.settings import OpenVocabularySettings
from probes.features.cost import EncodeRun
from probes.image_level.encode import encode_texts, text_flops
from probes.image_level.linear import linear_flops
from probes.image_level.zero_shot import templates_for


def names_of(classes: tuple[str, ...], settings: OpenVocabularySettings) -> list[list[str]]:
    """What each class is called."""
    named = [re.split(r"\s*[,;]\s*", name.replace("_", " ").replace("-", " ")) for name in classes]
    known = {"background": list(settings.background)} if settings.background else {}
    return [known.get(names[0], names) for names in named]


def run(probe: Probe, context: Context) -> TaskResult:
    """See ``probes.dense.patches.probe``."""
    settings: OpenVocabularySettings = context.settings
    started, encoding = time.perf_counter(), EncodeRun.of(context)
    which, templates = templates_for(settings.templates, context.data.spec)
    names = names_of(context.data.classes, settings)
    prompts = [template(name) for each in names for name in each for template in templates]
    embedded = normalize(
        encode_texts(context.backbone, prompts, encoding, settings.precision), dim=1
    )
    texts = normalize(embedded.unflatten(0, (-1, len(templates))).mean(dim=1), dim=1).to(
        context.device
    )
    owner = torch.tensor(
        [place for place, each in enumerate(names) for _ in each], device=context.device
    )
    prompted, patched = time.perf_counter(), 0

    def predict(patches: Patches) -> Tensor:
        nonlocal patched
        patched += len(patches.features)
        similar = normalize(patches.features, dim=1) @ texts.T
        best = similar.new_full((len(similar), len(names)), -torch.inf)
        return best.scatter_reduce(1, owner.expand_as(similar), similar, "amax")

    with torch.inference_mode():
        images = PatchImages(context, "val", Encoder(context.backbone, settings.precision))
        result = evaluate(probe, context, images, encoding, predict)
    result.notes = [
        f"prompts: {which} ({len(templates)} for each of {len(texts)} names)",
        *result.notes,
    ]
    result.cost = encoding.cost.added_to(
        {
            "text_seconds": prompted - started,
            "eval_seconds": time.perf_counter() - prompted,
            "text_flops": text_flops(context, prompts),
            "eval_flops": linear_flops(texts.shape[1], len(texts), 0, patched),
        }
    )
    return result
