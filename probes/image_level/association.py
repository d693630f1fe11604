"""``zero-shot`` association (WinoGAViL, Bitton et al. 2022): which of 5 to 12 images belong to a
cue, by cosine.

As many images are selected as are right; an instance's score is the Jaccard index of the two sets.
DataComp's figure is the mean over instances of 10 or 12 candidates.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.image_level.encode import encode_split, encode_texts
from probes.image_level.metrics import association


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    instances: dict[int, list[tuple[int, str, bool]]] = defaultdict(list)
    for index, sample in enumerate(context.data.samples["val"]):
        for number, cue, belongs in sample.target:
            instances[number].append((index, cue, belongs))
    images = normalize(encode_split(context, "val"), dim=1)
    order = sorted(instances)
    prompts = [prompt(instances[number][0][1]) for number in order]
    texts = encode_texts(context, prompts)
    scores = []
    for number, text in zip(order, normalize(texts, dim=1), strict=True):
        indices, _, belongs = zip(*instances[number], strict=True)
        target = torch.tensor(belongs)
        selected = torch.zeros_like(target)
        selected[(images[list(indices)] @ text).topk(int(target.sum())).indices] = True
        union = int((selected | target).sum())
        scores.append(100 * int((selected & target).sum()) / max(union, 1))
    candidates = [sorted(index for index, *_ in instances[number]) for number in order]
    per_image = {
        "image": np.array([f"instance {number:05d}" for number in order]),
        # several cues may have the same candidates
        "unit": np.array([" ".join(map(str, indices)) for indices in candidates]),
        "jaccard": np.array(scores),
        "candidates": np.array([len(indices) for indices in candidates]),
    }
    metrics = association(tuple(per_image["image"]), per_image).values()
    return TaskResult(metrics, per_image, notes=[f"{len(order)} cues, {len(images)} images"])


def prompt(cue: str) -> str:
    """``A dog``, ``An owl``, in lower case as DataComp's."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in 'aeiou' else 'A'} {cue}"
