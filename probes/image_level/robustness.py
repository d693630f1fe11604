"""What else the classifier of ``linear`` shows: calibration, and images of unknown classes."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import normalize

from cliptex_common.errors import UserError
from cliptex_common.settings import read_value
from probes.base import Context, TaskResult
from probes.features.search import nearest_neighbours
from probes.image_level.classification import best_targets, on_device_if_small, own_classes, score
from probes.image_level.encode import encode_split
from probes.image_level.linear import stored_logits
from probes.image_level.metrics import KNOWN, detection_of_unknown


def run_calibration(context: Context) -> TaskResult:
    """``calibration``: are the probabilities of the ``linear`` classifier shares of right answers?

    Its head is scored as it is, and with its logits divided by a temperature, which changes no
    prediction. The temperature minimises the loss on the training images held out for the choice of
    its learning rate (Guo et al. 2017), by the head that was chosen there: the one that is scored
    has seen these images.

    See ``probes.base.FeatureProbe``. Raises ``UserError`` if the head has no temperature.
    """
    assert context.head is not None
    if "temperature" not in context.head.metadata:
        trained = f"{context.training.data.spec.name}/linear"
        raise UserError(
            f"the head of {trained} was stored without a temperature; train it again:"
            f" --task {trained} --force"
        )
    stored = context.head.metadata["temperature"]
    temperature = read_value("temperature", stored, PositiveFloat | None)
    note = "no temperature: with one learning rate, no training image was held out"
    if temperature is not None:
        note = f"temperature {temperature:.4g} on held-out training images"
    logits = stored_logits(context, context.head)
    own_logits = own_classes(context, logits)
    labels = best_targets(context, own_logits)
    scores = probability_scores(own_logits, labels, "")
    if temperature is not None:
        scores |= probability_scores(own_logits / temperature, labels, "_scaled")
    return score(context, logits, [note], more=scores)


def probability_scores(logits: Tensor, labels: Tensor, suffix: str) -> dict[str, np.ndarray]:
    """``confidence``, ``nll`` and ``brier`` of each image, float64.

    Args:
        logits: (N, C). labels: (N,).
    """
    log_probabilities = logits.double().log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    true = labels[:, None]
    right = probabilities.gather(1, true).squeeze(1)
    values = {
        "confidence": probabilities.amax(dim=1),
        "nll": -log_probabilities.gather(1, true).squeeze(1),
        "brier": probabilities.square().sum(dim=1) - 2 * right + 1,
    }
    return {f"{name}{suffix}": value.numpy() for name, value in values.items()}


NEIGHBOUR = 50


def run_ood(context: Context) -> TaskResult:
    """``linear`` on images of no class that was trained on: are they told from those of ``val``?

    Three scores of an image, higher for what looks foreign: ``msp``, minus the largest probability
    of the head (Hendrycks and Gimpel 2017); ``energy``, minus the log of the sum of its
    exponentiated logits (Liu et al. 2020); ``knn``, the distance to the 50th nearest training
    image, of features of unit length (Sun et al. 2022; OpenOOD chooses the number on other sets).
    See ``probes.base.FeatureProbe``.
    """
    head = context.head
    assert head is not None
    context = context.with_head_weights()
    training, device = context.training, context.device
    train = normalize(on_device_if_small(encode_split(training, "train"), device), dim=1)
    neighbour = min(NEIGHBOUR, len(train))
    images, sets, scores = [], [], []
    for each in (training, context):
        logits = stored_logits(each, head).double()
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
            sets.append(KNOWN if each is training else sample.target.name)
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
