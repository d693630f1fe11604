"""Pictures of predictions and of features, and what is measured of features without labels.

Predictions stand beside the ground truth, in galleries of small pictures.

Of a backbone's last feature map a report draws the principal components, and the likeness of any
two parts of a few images. Components as DINOv3's notebook draws them (``notebooks/pca.ipynb`` of
facebookresearch/dinov3): PCA of the patches, whitened, sigmoid(2x) as red, green and blue. There it
is of one image, on a foreground that a trained classifier finds; here of all images together, so
that a colour means the same in each, and without a mask. By the likeness of parts a report sees
where features change mode between two sizes (``reports.relations``).

Diagnostics without labels are descriptions, which nothing ranks by: sources disagree whether a
higher intrinsic dimension is better. They depend on the number of features, so all are of the same
number: the mean over ``SUBSAMPLES`` subsamples without replacement, and their standard deviation.
(A bootstrap has copies, which have no distance to their neighbours.) All in float64.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from scipy import linalg
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from backbones.backbone import Backbone
from cliptex_common.errors import NonFiniteLoss, UserError
from cliptex_common.files import atomic_write
from cliptex_common.images import fit_picture, spread_indices
from probes.base import Context, EncodeContext, map_index
from probes.features.store import CacheKey
from probes.image_level.encode import ImageViews, square_side
from probes.image_level.settings import Encoding
from reports import records
from reports.records import LABEL_FREE

GALLERY_IMAGES = 48  # images of a gallery
SMALL = 176  # longest side of a gallery's picture, pixels


def write_gallery(
    folder: Path,
    images: Iterable[tuple[str, Mapping[str, np.ndarray]]],
    legend: np.ndarray | None = None,
    flat: bool = False,
    side: int = SMALL,
) -> Path:
    """Write small pictures for a report as a ZIP of picture files, ``reports.records.GALLERY``,
    completely or not at all.

    Args:
        images: (name of the image, {"image" | "truth" | "prediction": (H, W, 3) uint8 RGB});
            consumed one by one.
        legend: (h, w, 3) uint8, stored as ``legend.png``.
        flat: ground truth and prediction have few colours and sharp edges (label maps) and are
            stored without loss.
        side: longest side of the pictures, pixels.

    Returns:
        its path; its ``index.json`` is
        ``{"images": [{"name", "image", "truth", "prediction"}, …], "legend"}`` with file names.

    Raises:
        UserError: the file cannot be written.
    """
    path = folder / PurePath(records.GALLERY).name
    index: list[dict[str, str]] = []
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as pack:
        for number, (name, pictures) in enumerate(images):
            entry = {"name": name}
            for role, picture in pictures.items():
                lossless = flat and role != "image"
                entry[role] = f"{number:03d}-{role}.{'png' if lossless else 'webp'}"
                pack.writestr(entry[role], _encode(fit_picture(picture, side), lossless))
            index.append(entry)
        if legend is not None:
            pack.writestr("legend.png", _encode(Image.fromarray(legend), True))
        legend_file = "legend.png" if legend is not None else None
        pack.writestr("index.json", json.dumps({"images": index, "legend": legend_file}))
    return path


def _encode(image: Image.Image, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    if lossless:
        if colours := image.getcolors(256):
            image = image.quantize(max(2, len(colours)), dither=Image.Dither.NONE)
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()


PICTURED_IMAGES = 8
DIMENSIONS = 32  # that are stored


def task_feature_pictures(context: Context) -> dict[str, np.ndarray]:
    """``feature_pictures`` of evenly spaced images of a task's ``val``, at the backbone's own size,
    of the layer that the task reads, or of the last one."""
    backbone, root = context.backbone, context.data.root
    samples = context.data.samples["val"]
    paths = [root / samples[index].image for index in spread_indices(len(samples), PICTURED_IMAGES)]
    index = map_index(context.settings, backbone)
    in_process = EncodeContext(context.device, num_workers=0)
    return feature_pictures(in_process, backbone, paths, root, index=index)


class PicturedViews(ImageViews):
    """Images squeezed to a size, (height, width) in pixels or the backbone's own, each alone, whose
    feature maps ``index`` are stored, (C, h, w) float32."""

    def __init__(
        self,
        context: EncodeContext,
        backbone: Backbone,
        paths: Sequence[Path],
        size: tuple[int, int] | None,
        index: int,
    ) -> None:
        encoding = Encoding(size, "fp32", 1)
        encode = lambda pixels: backbone(pixels)[index]
        super().__init__(context, backbone, paths, encoding, "pictures", encode, squash=True)
        self.index, self.are_stored = index, True

    def key(self) -> CacheKey:
        backbone, index = self.backbone, self.index
        key, positions = super().key(), math.prod(self.size) / backbone.strides[index] ** 2
        return replace(
            key,
            kind="pictured maps",
            identity={**key.identity, "squash": True, "map": index},
            item_bytes=[int(4 * backbone.channels[index] * positions)] * len(self.paths),
        )


def feature_pictures(
    context: EncodeContext,
    backbone: Backbone,
    paths: Sequence[Path],
    root: Path,
    size: tuple[int, int] | None = None,
    index: int = -1,
) -> dict[str, np.ndarray]:
    """A feature map of N images, in float32, each image alone and squeezed to the size.

    Args:
        root: folder that the images' names are relative to.
        size: (height, width) in pixels; None for the backbone's own.
        index: of its map.

    Returns:
        ``image`` (N,) names; ``strip``, the bytes of a WebP of all images in a row; ``colours`` (N,
        h, w, 3) uint8; ``map`` (N, h, w, K) int8 and ``scale`` (K,), whose product are the first K
        principal components, K at most ``DIMENSIONS``; ``centre`` (K + 1,), the mean feature in
        these components, and its length outside of them; ``explained`` (K,), their shares of the
        variance.

    Raises:
        UserError: an image cannot be read, the size does not fit the backbone, or a feature is not
            finite.
    """
    views = PicturedViews(context, backbone, paths, size, index)
    try:
        maps = views.embeddings()
    except NonFiniteLoss as error:
        message = f"the feature maps of {backbone.name} have values that are not finite"
        raise UserError(message) from error
    features = maps.flatten(2).transpose(1, 2).double().numpy()
    components, centre, explained = principal_components(features.reshape(-1, features.shape[-1]))
    scale = np.abs(components).max(axis=0).clip(1e-12) / 127
    white = components[:, :3] / components[:, :3].std(axis=0, ddof=1).clip(1e-12)
    colours = np.zeros((len(white), 3))
    colours[:, : white.shape[1]] = 255 / (1 + np.exp(-2 * white))
    shape = (len(paths), *maps.shape[-2:])
    return {
        "image": np.array([path.relative_to(root).as_posix() for path in paths]),
        "strip": np.frombuffer(_strip([views.load(n) for n in range(len(paths))]), np.uint8),
        "colours": colours.round().astype(np.uint8).reshape(*shape, 3),
        "map": (components / scale).round().astype(np.int8).reshape(*shape, -1),
        "scale": scale.astype(np.float32),
        "centre": centre.astype(np.float32),
        "explained": explained.astype(np.float32),
    }


def principal_components(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first ``DIMENSIONS`` principal components of (M, C) float64 features, of each the loading
    that is largest in size positive.

    Returns:
        (M, K) components; (K + 1,) the mean in them, and its length outside of them; (K,) their
        shares of the variance.
    """
    mean = features.mean(axis=0)
    centred = features - mean
    count = max(1, min(DIMENSIONS, len(centred) - 1, centred.shape[1]))
    is_wide = centred.shape[0] < centred.shape[1]
    gram = centred @ centred.T if is_wide else centred.T @ centred
    last = len(gram) - 1
    values, vectors = linalg.eigh(gram, subset_by_index=[last - count + 1, last])
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    loadings = vectors
    if is_wide:
        loadings = centred.T @ vectors
        loadings /= np.linalg.norm(loadings, axis=0).clip(1e-12)
    largest = np.abs(loadings).argmax(axis=0)
    loadings = loadings * np.sign(loadings[largest, np.arange(count)])
    inside = mean @ loadings
    outside = np.sqrt(max(mean @ mean - inside @ inside, 0.0))
    variance = max(float(np.square(centred).sum()), 1e-12)
    return centred @ loadings, np.append(inside, outside), values / variance


def _strip(images: Sequence[Tensor]) -> bytes:
    """(3, H, W) uint8 images as squares in a row."""
    strip = Image.new("RGB", (SMALL * len(images), SMALL))
    for number, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        strip.paste(picture.resize((SMALL, SMALL), Image.Resampling.BOX), (SMALL * number, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()


PART_IMAGES = 4
GRID = 4  # parts along each side of an image
_computed: WeakKeyDictionary[Backbone, dict[object, Tensor]] = WeakKeyDictionary()


def part_features(context: Context) -> Mapping[str, np.ndarray]:
    """The means of the feature map that a task reads (else the last one) over the parts of evenly
    spaced images of ``val``, squeezed to squares of the task's size.

    Returns:
        ``image`` (PART_IMAGES,) names and ``features`` (PART_IMAGES, GRID², C) float32.
    """
    backbone, settings = context.backbone, context.settings
    samples = context.data.samples["val"]
    names = [samples[index].image for index in spread_indices(len(samples), PART_IMAGES)]
    paths = [context.data.root / name for name in names]
    size = (square_side(settings, backbone),) * 2
    encoding = Encoding(size, settings.precision, 1)

    def encode(pixels: Tensor) -> Tensor:
        """(N, GRID², channels of all maps)."""
        parts = [adaptive_avg_pool2d(each.float(), GRID).flatten(2) for each in backbone(pixels)]
        return torch.cat(parts, dim=1).transpose(1, 2)

    cached = _computed.setdefault(backbone, {})
    key = encoding, *paths
    if key not in cached:
        in_process = EncodeContext(context.device, num_workers=0)
        views = ImageViews(in_process, backbone, paths, encoding, encode=encode, squash=True)
        cached[key] = torch.cat([each.cpu() for each in views.tensors()])
    maps = cached[key].split(backbone.channels, dim=2)
    features = maps[map_index(settings, backbone)].numpy()
    return {"image": np.array(names), "features": features}


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
    # ``cdist`` found them by a product of matrices; here are the exact distances
    gaps = features[nearest] - features[:, None]
    _, first, second = gaps.norm(dim=2).sort(dim=1).values.unbind(1)
    return float(1 / (second / first).log().mean())
