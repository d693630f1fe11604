"""``normal``: surface normals."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from backbones.cliptex.ground_truth import MapFolders
from backbones.cliptex.targets import VectorMap
from backbones.cliptex.tasks.angmf import angle, expected_angle
from backbones.cliptex.tasks.base import Summed
from cliptex_common.dense_maps.scores import angles


class NormalLabels(VectorMap):
    """Directions, learned by their angle."""

    name = "normal"
    folders = MapFolders("nyu", "normals", val="test")

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        """Sum of angles in radians (Bae et al. 2021, ICCV, eq. 4) and number of labelled pixels."""
        theta = angle(self.activate(prediction), target.float())
        return torch.where(self.valid(target), theta, 0.0).sum(), self.count(target)

    def accuracy(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """``normal_mean``, ``normal_median`` in degrees, ``normal_11.25`` in per cent.

        With a ``confidence`` also ``kappa_expected``: the mean angle that κ predicts, in degrees,
        to compare with ``normal_mean``.
        """
        valid = np.square(target).sum(1) > 0.25
        maps = (torch.from_numpy(each).movedim(1, 0) for each in (outputs[self.name], target))
        errors = angles(*maps).numpy()[valid]
        metrics = {
            "normal_mean": float(errors.mean()),
            "normal_median": float(np.median(errors)),
            "normal_11.25": 100 * float(np.mean(errors < 11.25)),
        }
        if "confidence" in outputs:
            expected = expected_angle(torch.from_numpy(outputs["confidence"][valid])).mean()
            metrics["kappa_expected"] = math.degrees(float(expected))
        return metrics


TASK = NormalLabels()
