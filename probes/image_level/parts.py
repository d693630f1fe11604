"""How a few images look to a backbone, part by part: by this a report sees where features change
mode between two sizes (``reports.stats.modes``)."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from backbones.backbone import Backbone
from cliptex_common.dense_maps.pictures import spread_indices
from probes.base import Context, EncodeContext
from probes.image_level.encode import ImageViews, square_side
from probes.image_level.settings import Encoding
from probes.layers import map_index

IMAGES = 4
GRID = 4  # parts along each side of an image
_computed: WeakKeyDictionary[Backbone, dict[object, Tensor]] = WeakKeyDictionary()


def part_features(context: Context) -> Mapping[str, np.ndarray]:
    """The means of the feature map that a task reads (else the last one) over the parts of evenly
    spaced images of ``val``, squeezed to squares of the task's size.

    Returns:
        ``image`` (IMAGES,) names and ``features`` (IMAGES, GRID², C) float32.
    """
    backbone, settings = context.backbone, context.settings
    samples = context.data.samples["val"]
    names = [samples[index].image for index in spread_indices(len(samples), IMAGES)]
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
