"""What a report draws of a backbone's last feature map: its principal components, and the likeness
of any two parts of a few images.

Components as DINOv3's notebook draws them (``notebooks/pca.ipynb`` of facebookresearch/dinov3):
PCA of the patches, whitened, sigmoid(2x) as red, green and blue. There it is of one image, on a
foreground that a trained classifier finds; here of all images together, so that a colour means the
same in each, and without a mask.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import linalg
from torch import Tensor

from backbones.backbone import Backbone
from cliptex_common.dense_maps.pictures import spread_indices
from cliptex_common.errors import UserError
from probes.base import Context, EncodeContext
from probes.image_level.encode import ImageViews
from probes.image_level.settings import Encoding
from probes.layers import map_index
from probes.pictures import SMALL

IMAGES = 8
DIMENSIONS = 32  # that are stored


def task_feature_pictures(context: Context) -> dict[str, np.ndarray]:
    """``feature_pictures`` of evenly spaced images of a task's ``val``, at the backbone's own size,
    of the layer that the task reads, or of the last one."""
    backbone, root = context.backbone, context.data.root
    samples = context.data.samples["val"]
    paths = [root / samples[index].image for index in spread_indices(len(samples), IMAGES)]
    index = map_index(context.settings, backbone)
    in_process = EncodeContext(context.device, num_workers=0)
    return feature_pictures(in_process, backbone, paths, root, index=index)


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
    grids: list[torch.Size] = []

    def encode(pixels: Tensor) -> Tensor:
        features = backbone(pixels)[index].float()
        grids.append(features.shape[-2:])
        return features.flatten(2).transpose(1, 2)

    views = ImageViews(
        context, backbone, paths, Encoding(size, "fp32", 1), encode=encode, squash=True
    )
    features = torch.cat([each.cpu() for each in views.tensors()]).double().numpy()
    if not np.isfinite(features).all():
        raise UserError(f"the feature maps of {backbone.name} have values that are not finite")
    components, centre, explained = principal_components(features.reshape(-1, features.shape[-1]))
    scale = np.abs(components).max(axis=0).clip(1e-12) / 127
    white = components[:, :3] / components[:, :3].std(axis=0, ddof=1).clip(1e-12)
    colours = np.zeros((len(white), 3))
    colours[:, : white.shape[1]] = 255 / (1 + np.exp(-2 * white))
    shape = (len(paths), *grids[0])
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
