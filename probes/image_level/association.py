"""``zero-shot`` association (WinoGAViL, Bitton et al. 2022): which of 5 to 12 images belong to a
cue, by cosine.

As many images are picked as are right; an instance's score is the Jaccard index of the two sets.
DataComp's figure is the mean over instances of 10 or 12 candidates.
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import torch
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.features.cost import EncodeRun
from probes.image_level.embeddings import encode_split
from probes.image_level.encode import encode_texts, text_flops
from probes.image_level.linear import linear_flops


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    started, encoding = time.perf_counter(), EncodeRun.of(context)
    instances: dict[int, list[tuple[int, str, bool]]] = defaultdict(list)
    for place, sample in enumerate(context.data.samples["val"]):
        for number, cue, right in sample.target:
            instances[number].append((place, cue, right))
    images = normalize(encode_split(context, "val", encoding), dim=1)
    encoded, order = time.perf_counter(), sorted(instances)
    prompts = [prompt(instances[number][0][1]) for number in order]
    texts = normalize(
        encode_texts(context.backbone, prompts, encoding, context.settings.precision), dim=1
    )
    scores = []
    for number, text in zip(order, texts, strict=True):
        places, _, truth = zip(*instances[number], strict=True)
        right = torch.tensor(truth)
        picked = torch.zeros_like(right)
        picked[(images[list(places)] @ text).topk(int(right.sum())).indices] = True
        scores.append(100 * int((picked & right).sum()) / max(int((picked | right).sum()), 1))
    found, sizes = np.array(scores), np.array([len(instances[number]) for number in order])
    parts = {"jaccard_10-12": sizes >= 10, "jaccard_5-6": sizes <= 6, "jaccard": sizes > 0}
    metrics = {
        name: float(found[part].mean()) if part.any() else float("nan")
        for name, part in parts.items()
    }
    per_image = {
        "image": np.array([f"instance {number:05d}" for number in order]),
        "jaccard": found,
        "candidates": sizes,
    }
    cost = encoding.cost.added_to(
        {
            "text_seconds": time.perf_counter() - encoded,
            "eval_seconds": time.perf_counter() - started,
            "text_flops": text_flops(context, prompts),
            "eval_flops": linear_flops(images.shape[1], 1, 0, int(sizes.sum())),
        }
    )
    return TaskResult(
        metrics, per_image, cost=cost, notes=[f"{len(order)} cues, {len(images)} images"]
    )


def prompt(cue: str) -> str:
    """``A dog``, ``An owl``."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in 'aeiou' else 'A'} {cue}"
