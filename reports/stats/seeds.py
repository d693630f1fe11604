"""The seed variance of a comparison, moderated by that of the report's other comparisons.

Three seeds give a variance two degrees of freedom, which decides hardly anything. What comparisons
share is the ratio of their seed variance to their image variance, which has no unit. Over
comparisons it is taken as scaled inverse χ², estimated by the moments of the logarithms (Smyth,
Stat. Appl. Genet. Mol. Biol. 3, 2004), and weighted with a comparison's own variance by degrees of
freedom.

Smyth's thousands of genes are independent; a report's seven comparisons are not. So both moments
are estimated conservatively (``LESS_DF``, ``MORE_NOISE``), what comparisons have in common counts
once, and how much ratios differ is estimated from the single backbones: a noisy baseline makes all
differences look alike. docs/statistics.md has the simulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

LESS_DF = 1.0  # standard errors by which the spread of ratios is taken as larger
MORE_NOISE = 0.5  # standard errors by which the typical ratio is taken as larger
LEAST_SEEDS = 3  # two cannot show whether subjects share their noise
LEAST_SUBJECTS = 3


@dataclass(frozen=True)
class SeedNoise:
    """How the seeds of a number or a difference vary.

    Attributes:
        seeds: in order.
        values: (S,) with each seed.
        scale: the variance that theirs is divided by.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    scale: float

    @property
    def deviations(self) -> np.ndarray:
        """(S,) from the mean."""
        return self.values - self.values.mean()

    @property
    def ratio(self) -> float:
        """Of the variance between seeds to the scale."""
        return float(self.values.var(ddof=1)) / self.scale

    @property
    def is_usable(self) -> bool:
        return len(self.seeds) >= LEAST_SEEDS and self.scale > 0


@dataclass(frozen=True)
class SeedPrior:
    """What is known of a seed variance before its own seeds.

    Attributes:
        ratio: of the variance between seeds to the scale.
        df: degrees of freedom of that knowledge; 0 for none.
    """

    ratio: float = 0.0
    df: float = 0.0

    def moderate(self, variance: float, df: float, scale: float) -> tuple[float, float]:
        """The posterior mean of a variance between seeds, and its degrees of freedom."""
        total = self.df + df
        return (self.df * self.ratio * scale + df * variance) / total, total


NO_PRIOR = SeedPrior()


def seed_prior(numbers: Sequence[SeedNoise], compared: Sequence[SeedNoise]) -> SeedPrior:
    """The prior of what is compared.

    Args:
        numbers: of single backbones, which its degrees of freedom come from.
        compared: differences of these (or themselves), which its ratio comes from.
    """
    numbers = [number for number in numbers if number.is_usable]
    compared = [each for each in compared if each.is_usable]
    if min(len(numbers), len(compared)) < LEAST_SUBJECTS:
        return NO_PRIOR
    df = np.array([len(number.seeds) - 1 for number in numbers])
    shared = shared_noise(numbers)
    independent = _independent(len(numbers), shared)
    logs = _log_ratios(numbers)
    if not logs.any():
        return NO_PRIOR
    # moments of log χ²: its variance, and its excess kurtosis
    noise = special.polygamma(1, df / 2).mean()
    excess = special.polygamma(3, df / 2).mean() / noise**2
    spread = np.var(logs, ddof=1) / max(1 - shared, 1 / len(numbers))
    spread *= 1 + LESS_DF * np.sqrt((2 + excess) / independent)
    prior_df = (independent - 1) * df.mean()  # of all variances but its own
    if spread > noise:
        prior_df = min(prior_df, 2 * inverse_trigamma(spread - noise))
    if prior_df <= 0:
        return NO_PRIOR
    logs = _log_ratios(compared)
    error = np.sqrt(np.var(logs, ddof=1) / _independent(len(compared), shared_noise(compared)))
    mean = logs.mean() + MORE_NOISE * error
    ratio = np.exp(mean + special.digamma(prior_df / 2) - np.log(prior_df / 2))
    return SeedPrior(float(ratio), float(prior_df))


def pooled_variance(values: Sequence[Sequence[float]]) -> tuple[np.ndarray, int]:
    """Variance of each mean over seeds, from the variance that all share, and its degrees of
    freedom. Zero where none has several seeds."""
    counts = np.array([len(each) for each in values])
    squares = sum(np.var(each) * len(each) for each in values)
    df = int((counts - 1).sum())
    return squares / max(df, 1) / counts, df


def _log_ratios(subjects: Sequence[SeedNoise]) -> np.ndarray:
    """Logarithms of the ratios without the bias of few seeds (Smyth 2004, section 6.2)."""
    ratios = np.array([each.ratio for each in subjects])
    if not ratios.any():
        return ratios
    half = np.array([len(each.seeds) - 1 for each in subjects]) / 2
    ratios = np.maximum(ratios, 1e-5 * np.median(ratios[ratios > 0]))  # as limma does
    return np.log(ratios) - special.digamma(half) + np.log(half)


def _independent(count: int, shared: float) -> float:
    """The number of independent variances that tell as much as ``count`` dependent ones."""
    return count / (1 + (count - 1) * shared)


def shared_noise(subjects: Sequence[SeedNoise]) -> float:
    """The share of the noise that two subjects have in common, 0–1, the mean over all pairs.

    It is the squared correlation over seeds beyond what independent deviations have by chance.
    """
    every = sorted(set().union(*(each.seeds for each in subjects)))
    member = np.array([[seed in each.seeds for seed in every] for each in subjects], float)
    unit = np.zeros(member.shape)
    for row, each in enumerate(subjects):
        length = np.linalg.norm(each.deviations)
        if length > 0:
            unit[row, member[row] > 0] = each.deviations / length
    count = member.sum(axis=1)
    common = member @ member.T
    # the trace of the product of the centring matrices over the seeds of both
    chance = common * (1 - 1 / count - 1 / count[:, None] + common / np.outer(count, count))
    chance = np.clip(chance, 0, None) / np.outer(count - 1, count - 1)
    pairs = ~np.eye(len(count), dtype=bool)
    beyond = ((unit @ unit.T) ** 2 - chance)[pairs].sum() / (1 - chance)[pairs].sum()
    return float(np.clip(beyond, 0, 1))


def inverse_trigamma(value: float) -> float:
    """x > 0 with ψ'(x) = value > 0."""
    return float(
        optimize.brentq(
            lambda x: special.polygamma(1, x) - value, 0.25 / np.sqrt(1 + value), 2 + 2 / value
        )
    )
