"""How well one number of backbones follows another."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import special

from reports.stats.intervals import LEVEL


def spearman(x: pd.Series, y: pd.Series) -> tuple[float, float, float]:
    """Spearman's ρ over what both have, and the ends of its 95 % interval; NaN for four or fewer,
    and where one does not vary.

    Fisher's z with the standard error of Bonett and Wright (Psychometrika 65, 2000).
    """
    both = pd.concat([x, y], axis=1).dropna().rank()
    if len(both) <= 4 or (both.nunique() == 1).any():
        return np.nan, np.nan, np.nan
    rho = float(np.corrcoef(both.to_numpy().T)[0, 1])
    reach = special.ndtri(1 - LEVEL / 2) * np.sqrt((1 + rho**2 / 2) / (len(both) - 3))
    z = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    return rho, float(np.tanh(z - reach)), float(np.tanh(z + reach))
