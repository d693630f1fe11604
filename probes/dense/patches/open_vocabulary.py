"""``open-vocabulary`` segmentation: a patch is of the class whose text is nearest (MaskCLIP, Zhou,
Loy, Dai, ECCV 2022).

Patches come from ``Backbone.encode_dense``; there is no head, no training, and no label except for
scoring. A class with several names, separated by commas or semicolons, has the score of the best;
so has a class called ``background``, whose names are a setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from probes.base import Context, TaskResult
from probes.dense.patches.images import PatchImages, TextSpaceEncoder, evaluate_patches
from probes.dense.patches.pixels import Patches, average_windows, label_map
from probes.dense.patches.probe import OpenVocabularySettings
from probes.image_level.text import embed_names, templates_for


def class_synonyms(classes: Sequence[str], background: Sequence[str]) -> list[list[str]]:
    """The names of each class."""
    synonyms = []
    for name in classes:
        names = re.split(r"\s*[,;]\s*", name.replace("_", " ").replace("-", " "))
        is_background = names[0] == "background" and background
        synonyms.append(list(background) if is_background else names)
    return synonyms


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings: OpenVocabularySettings = context.settings
    set_name, templates = templates_for(settings.templates, context.data.spec)
    synonyms = class_synonyms(context.data.classes, settings.background)
    names = [name for class_names in synonyms for name in class_names]
    texts = embed_names(context, names, templates).to(context.device)
    counts = torch.tensor([len(class_names) for class_names in synonyms])
    owner = torch.arange(len(synonyms)).repeat_interleave(counts).to(context.device)

    encoder = TextSpaceEncoder(context.backbone, settings.precision, settings.slide)
    split = PatchImages(context, "val", encoder)

    def predict(images: Sequence[Patches]) -> Iterator[Tensor]:
        for patches in images:
            features = patches.features.unflatten(1, (-1, texts.shape[1]))  # of each window
            similar = normalize(features, dim=2) @ texts.T
            best = similar.new_full((*similar.shape[:2], len(synonyms)), -torch.inf)
            best = best.scatter_reduce(2, owner.expand_as(similar), similar, "amax")
            if not settings.slide:
                yield label_map(best[:, 0], patches)
                continue
            maps = best.permute(1, 2, 0).unflatten(2, patches.grid)
            size = split.dataset.resized_shape(patches.index)
            probabilities = average_windows(maps, size, settings.slide)[None]
            yield interpolate(probabilities, size=patches.size, mode="bilinear")[0].argmax(dim=0)

    prompts = f"prompts: {set_name} ({len(templates)} for each of {len(texts)} names)"
    with torch.inference_mode():
        return evaluate_patches(context, split, predict, [prompts])
