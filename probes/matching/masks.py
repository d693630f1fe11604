"""How well a mask fits: region similarity J and contour accuracy F (Perazzi et al., CVPR 2016)."""

from __future__ import annotations

import cv2
import numpy as np

TOLERANCE = 0.008  # of the diagonal: how far contours may be apart


def region_similarity(target: np.ndarray, predicted: np.ndarray) -> float:
    """J: intersection over union of two masks (H, W) bool; 1 if both are empty."""
    union = np.logical_or(target, predicted).sum()
    return float(np.logical_and(target, predicted).sum() / union) if union else 1.0


def contour_accuracy(target: np.ndarray, predicted: np.ndarray) -> float:
    """F: F1 of the contours of two masks (H, W) bool; 1 if both are empty, 0 if one is."""
    contours = contour(target), contour(predicted)
    if not all(each.any() for each in contours):
        return float(not any(each.any() for each in contours))
    radius = np.ceil(TOLERANCE * np.hypot(*target.shape))
    recall, precision = (
        (_distance(b) <= radius)[a].mean() for a, b in (contours, reversed(contours))
    )
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def contour(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that differ from the one to their right, below, or below that."""
    mask = mask.astype(bool)
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def _distance(contour: np.ndarray) -> np.ndarray:
    """Pixels from the contour, (H, W) float32."""
    elsewhere = np.logical_not(contour).astype(np.uint8)
    distance = cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance.round(3)
