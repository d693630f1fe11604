"""``linear`` on images of no class that was trained on: are they told from those of ``val``?

Three scores of an image, higher for what looks foreign: ``msp``, minus the largest probability of
the head (Hendrycks and Gimpel 2017); ``energy``, minus the log of the sum of its exponentiated
logits (Liu et al. 2020); ``knn``, the distance to the 50th nearest training image, of features of
unit length (Sun et al. 2022; OpenOOD chooses the number on other sets).
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from probes.base import Context, TaskResult
from probes.features.search import nearest_neighbours
from probes.image_level.classification import on_device_if_small
from probes.image_level.encode import encode_split
from probes.image_level.linear import stored_logits
from probes.image_level.metrics import KNOWN, detection_of_unknown

NEIGHBOUR = 50


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    assert context.head is not None
    training, device = context.training, context.device
    train = normalize(on_device_if_small(encode_split(training, "train"), device), dim=1)
    neighbour = min(NEIGHBOUR, len(train))
    images, sets, scores = [], [], []
    for each in (training, context):
        logits = stored_logits(each, context.head).double()
        features = normalize(encode_split(each, "val"), dim=1)
        similar = torch.cat(
            [
                nearest_neighbours(part.to(device), train, neighbour)[0][:, -1].cpu()
                for part in features.split(4096)
            ]
        )
        msp = -logits.softmax(dim=1).amax(dim=1)
        distance = (2 - 2 * similar.double()).clamp_min(0).sqrt()
        scores.append(torch.stack([msp, -logits.logsumexp(dim=1), distance]))
        for sample in each.data.samples["val"]:
            images.append(sample.image)
            sets.append(KNOWN if each is training else sample.target)
    msp, energy, knn = torch.cat(scores, dim=1).numpy()
    per_image = {
        "image": np.array(images),
        "set": np.array(sets),
        "msp": msp,
        "energy": energy,
        "knn": knn,
    }
    notes = [f"{sets.count(KNOWN)} images of {training.data.spec.name} are what is known"]
    metrics = detection_of_unknown(tuple(images), per_image).values()
    return TaskResult(metrics, per_image, notes=notes)
