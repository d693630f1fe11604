"""Diagnostics of features that need no labels. They are descriptions, which nothing ranks by:
sources disagree whether a higher intrinsic dimension is better.

They depend on the number of features, so all are of the same number: the mean over ``SUBSAMPLES``
subsamples without replacement, and their standard deviation. (A bootstrap has copies, which have no
distance to their neighbours.) All in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probes.base import Context
from reports.cell import LABEL_FREE

MOST = 2048  # features of a subsample
SUBSAMPLES = 5
FITTED = slice(10, 100)  # eigenvalues that α is fitted to: the 11th to the 100th
FEWEST_FITTED = 20


def log_label_free(context: Context, features: Tensor) -> None:
    """Log ``label_free/NAME`` and ``label_free/NAME_spread`` of each diagnostic, and the number of
    ``features`` of a subsample: half of all, at most ``MOST``. Nothing of features that are not
    finite.

    Args:
        features: (N, D) of training images or patches, as the backbone gives them.
    """
    count = min(MOST, len(features) // 2)
    if count < FEWEST_FITTED:
        return
    with context.cost.phase("label_free"):
        _log(context, features, count)


def _log(context: Context, features: Tensor, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(SUBSAMPLES):
        rows = torch.randperm(len(features), generator=generator)[:count]
        sample = features[rows.to(features.device)].cpu().double()
        if not bool(sample.isfinite().all()):
            return
        samples.append(label_free(sample))
    logged = {f"{LABEL_FREE}features": float(count)}
    for name in samples[0]:
        values = torch.tensor([sample[name] for sample in samples], dtype=torch.float64)
        if bool(values.isfinite().all()):
            logged[LABEL_FREE + name] = float(values.mean())
            logged[f"{LABEL_FREE}{name}_spread"] = float(values.std())
    context.log.log_metrics(logged, 0)


def label_free(features: Tensor) -> dict[str, float]:
    """All diagnostics of (N, D) float64 features; NaN where one is not defined."""
    squares = singular_squares(features)
    alpha, fit = alpha_req(singular_squares(features - features.mean(dim=0)))
    rank = rank_me(squares)
    return {
        "rankme": rank,
        "rankme_share": rank / min(features.shape),
        "alpha": alpha,
        "alpha_r2": fit,
        "stable_rank": float(squares.sum() / squares[0]),
        "two_nn": two_nn(features),
    }


def singular_squares(features: Tensor) -> Tensor:
    """(min(N, D),) the squares of the singular values, the largest first."""
    is_wide = features.shape[0] < features.shape[1]
    gram = features @ features.T if is_wide else features.T @ features
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)


def rank_me(squares: Tensor) -> float:
    """RankMe (Garrido et al., ICML 2023, arXiv:2210.02885): the exponential of the entropy of the
    singular values, which sum to 1, of features that are not centred.

    Without the paper's ε, which float64 does not need (0 · ln 0 = 0); ``stable-pretraining`` adds
    1e-5. ``reptrix`` takes eigenvalues of the centred covariance, which is another number.
    """
    share = squares.sqrt() / squares.sqrt().sum()
    return float(torch.special.entr(share).sum().exp())


def alpha_req(eigenvalues: Tensor) -> tuple[float, float]:
    """α-ReQ (Agrawal et al., NeurIPS 2022, arXiv:2202.05808): α of λ_i ∝ i^-α, of the centred
    covariance, and the R² of the fit. The paper finds α near 1 good.

    As ``reptrix``: a line through (ln i, ln λ_i) of the 11th to the 100th eigenvalue, weighted by
    1 / i. Only those above 1e-12 of the largest; NaN for fewer than ``FEWEST_FITTED``.
    """
    positive = eigenvalues[FITTED]
    positive = positive[positive > 1e-12 * eigenvalues[0]]
    if len(positive) < FEWEST_FITTED:
        return math.nan, math.nan
    index = torch.arange(len(positive), dtype=torch.float64) + FITTED.start + 1
    x, y, weights = index.log(), positive.log(), 1 / index / (1 / index).sum()
    x, y = x - weights @ x, y - weights @ y
    slope = weights @ (x * y) / (weights @ x.square())
    residual = weights @ (y - slope * x).square()
    return -float(slope), 1 - float(residual / (weights @ y.square()))


def two_nn(features: Tensor) -> float:
    """The intrinsic dimension by two neighbours (Facco et al., Scientific Reports 7, 2017), by
    maximum likelihood: N / Σ ln(r₂ / r₁) of the distances to the nearest and the second one.
    Copies count once.
    """
    features = features.unique(dim=0)
    if len(features) < 3:
        return math.nan
    nearest = torch.cdist(features, features).topk(3, largest=False).indices
    # a product of matrices has found them; exact distances
    gaps = features[nearest] - features[:, None]
    _, first, second = gaps.norm(dim=2).sort(dim=1).values.unbind(1)
    return float(1 / (second / first).log().mean())
