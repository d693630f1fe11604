"""Whether features change mode between two image sizes.

Some encoders have another kind of features above some resolution (RADIO v2.1: Heinrich et al. 2024,
RADIOv2.5, "mode switching"), and no score of a probe that is trained at each size says so. The rule
here is this project's own: a part of an image should look like itself at the next size, more than
it looks like other parts.
"""

from __future__ import annotations

import numpy as np

MIN_LIKENESS = 0.25


def part_likeness(small: np.ndarray, large: np.ndarray) -> float:
    """How much of what tells parts of images apart survives a change of size.

    ::

        (s - o) / (1 - o)

    s is the mean cosine of a part at one size and the same part at the other, o that of different
    parts at one size. 1: sizes change nothing; 0: a part is no more like itself than like others.
    Below ``MIN_LIKENESS`` the features have changed mode. EfficientNet-Lite0, trained at 224 px,
    keeps 0.8 from 224 to 320 px and 0.6 from 224 to 448 px in its last map, ViTs with random
    weights 0.9; a network that switches to other weights keeps 0.

    Args:
        small, large: (parts, C), the same parts in the same order.
    Returns:
        NaN where all parts look the same at both sizes, or a feature is not finite.
    """
    sides = [each.astype(np.float64) for each in (small, large)]
    sides = [each / (np.linalg.norm(each, axis=1, keepdims=True) + 1e-12) for each in sides]
    same = (sides[0] * sides[1]).sum(axis=1).mean()
    count = len(small)
    pairs = count * (count - 1)
    references = [(np.square(each.sum(axis=0)).sum() - count) / pairs for each in sides]
    reference = float(np.mean(references))
    return float((same - reference) / (1 - reference)) if reference < 1 - 1e-6 else float("nan")
