"""``calibration`` of the ``linear`` classifier: are its probabilities shares of right answers?

Its head is scored as it is, and with its logits divided by a temperature that minimises the loss on
the training images held out for the choice of its learning rate (Guo et al. 2017), by the head that
was chosen there: the one that is scored has seen these images. That changes no prediction.
"""

from __future__ import annotations

import numpy as np
from pydantic import PositiveFloat
from torch import Tensor

from cliptex_common.errors import UserError
from cliptex_common.settings import read_value
from probes.base import Context, TaskResult
from probes.image_level.classification import best_targets, own_classes, score
from probes.image_level.linear import stored_logits


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``. Raises ``UserError`` if the head has no temperature."""
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
