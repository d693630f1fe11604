"""Images to the feature maps that are kept: decoded in loading processes while the backbone computes, in batches of one
shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from backbones.base import Backbone
from backbones.errors import NonFiniteLoss, UserError
from backbones.files import content_key
from backbones.versions import DENSE, versions
from probes.base import Context
from probes.features import compiling
from probes.features.cost import EncodeRun
from probes.features.store import DTYPES, Builder, CacheKey, as_dtype
from probes.runner import bridge
from probes.runner.shared_parts import SharedPart

BATCH = 32
CPU_PIXELS = 8 * 224**2  # of a batch on a CPU: more leave its cache (8 images of 224 px go twice as fast as 32)
META_KEYS = ("ori_shape", "img_shape", "pad_shape", "img_padding_size", "scale_factor")


@dataclass(frozen=True)
class Images:
    """The images whose maps are kept.

    Attributes:
        about: name of the set.
        load: item → ``inputs`` (3, H, W) and ``data_samples`` as a pipeline packs them.
        sizes: (height, width) of every item, to sort by.
        identity: what the maps follow from besides the encoder: images, pipeline, crops.
    """

    about: str
    load: Callable[[int], dict[str, Any]]
    sizes: Sequence[tuple[int, ...]]
    identity: Mapping[str, Any]


@torch.inference_mode()
def encode_maps(
    wanted: Sequence[Sequence[int]],
    images: Images,
    preprocess: nn.Module,
    backbone: nn.Module,
    dtype: str,
    run: EncodeRun,
) -> Iterator[tuple[int, list[Tensor], Mapping[str, Any]]]:
    """(item, its maps (C, h, w) on the CPU in ``dtype``, shapes of its image) of all that is ``wanted``.

    Items of one shard come in the order of their sizes, so that they go through the backbone together.

    Args:
        wanted: items of each shard; see ``probes.features.store.Builder``.
        preprocess: mmseg's or mmdet's data preprocessor, on the device that computes.
        backbone: a ``FrozenBackbone`` there.
        dtype: key of ``DTYPES``.

    Raises:
        NonFiniteLoss: a map is not finite.
        UserError: an image cannot be read, or a map does not fit into fp16.
    """
    about = f"{backbone.backbone.name} on {images.about}"  # type: ignore[union-attr]
    run.progress.start(f"encoding {about}", sum(map(len, wanted)))
    quick, on_cpu = compiling.compiled(backbone, about), run.device.type == "cpu"
    preprocess._non_blocking = not on_cpu  # type: ignore[assignment]  # images come pinned
    orders = [sorted(shard, key=lambda item: (images.sizes[item], item)) for shard in wanted]
    loaded = _loaded(images.load, [item for order in orders for item in order], run)
    for order in orders:
        for shape, alike in groupby(islice(loaded, len(order)), lambda one: one[1]["inputs"].shape):
            most = min(BATCH, max(2, CPU_PIXELS // shape[1:].numel())) if on_cpu else BATCH
            while part := list(islice(alike, most)):
                batch = preprocess({"inputs": [one["inputs"] for _, one in part],
                                    "data_samples": [one["data_samples"] for _, one in part]}, False)  # fmt: skip
                maps = run.cost.run(backbone, batch["inputs"], quick)
                if not all(bool(one.isfinite().all()) for one in maps):
                    raise NonFiniteLoss(f"feature maps of {about} are not finite")
                kept = [one.cpu() for one in as_dtype(maps, dtype, about)]
                for place, ((item, _), sample) in enumerate(zip(part, batch["data_samples"], strict=True)):
                    metadata = {name: _plain(sample.metainfo[name]) for name in META_KEYS if name in sample.metainfo}
                    yield item, [one[place] for one in kept], metadata
                run.progress.advance(len(part))


def keeping(
    encoder: Mapping[str, Any], scope: str, images: Images, dtype: str, run: EncodeRun
) -> tuple[CacheKey, Builder]:
    """What to hand to ``probes.features.store.get_or_build`` for the maps of a set's items.

    Args:
        encoder: configs of ``backbone`` (a ``FrozenBackbone``) and ``data_preprocessor``, under mmengine's ``scope``.
        run: its device's type is part of the identity, since another one rounds differently.
    """
    with DefaultScope.overwrite_default_scope(scope):
        frozen = MODELS.build(encoder["backbone"])
    backbone, layers = frozen.backbone, list(frozen.out_indices)
    key = CacheKey(
        "dense maps",
        f"{backbone.name} on {images.about}",
        {
            **images.identity, "backbone": backbone.identity(), "layers": layers, "precision": frozen.precision,
            "data_preprocessor": encoder["data_preprocessor"], "device": run.device.type, "libraries": versions(*DENSE),
            **compiling.identity(),
        },
        (dtype,) * len(layers),
        [maps_bytes(backbone, layers, size, dtype) for size in images.sizes],
    )  # fmt: skip

    def build(wanted: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[Tensor], Mapping[str, Any]]]:
        with DefaultScope.overwrite_default_scope(scope):
            preprocess = MODELS.build(encoder["data_preprocessor"]).to(run.device)
        return encode_maps(wanted, images, preprocess, frozen.to(run.device), dtype, run)

    return key, build


def features_key(config: Any, context: Context) -> str:
    """What the features of a config's datasets are found by, whether they are there yet or not."""
    bridge.share(context.backbone_config, context.backbone)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        sets = [DATASETS.build(loader.dataset) for loader in (config.train_dataloader, config.val_dataloader)]
        return content_key([dataset.key() for dataset in sets])


@bridge.in_both_scopes("KeptFeatures")
class KeptFeatures(SharedPart):
    """In the place of ``FrozenBackbone``: what comes in are its maps already; out go float32 ones."""

    def compute(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(one.float() for one in maps)


def maps_bytes(backbone: Backbone, indices: Sequence[int], size: tuple[int, ...], dtype: str) -> int:
    """Bytes that the maps of an image of ``size`` (height, width; padded to the divisor here) take."""
    height, width = (-(-side // backbone.divisor) * backbone.divisor for side in size)
    cells = [backbone.channels[i] * (height // backbone.strides[i]) * (width // backbone.strides[i]) for i in indices]
    return sum(cells) * DTYPES[dtype].itemsize


class _Items(Dataset[tuple[int, Any]]):
    """What ``load`` makes of an item; or the user's error, which would come from a loading process as a page of traceback."""

    def __init__(self, load: Callable[[int], dict[str, Any]]) -> None:
        self.load = load

    def __getitem__(self, item: int) -> tuple[int, Any]:
        try:
            return item, self.load(item)
        except UserError as error:
            return item, error


def _loaded(
    load: Callable[[int], dict[str, Any]], order: Sequence[int], run: EncodeRun
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Items in order, about two batches of which are being loaded."""
    workers = min(run.num_workers, len(order))
    items = DataLoader(
        _Items(load), batch_size=None, sampler=order, num_workers=workers,
        pin_memory=run.device.type == "cuda", prefetch_factor=max(2, 2 * BATCH // workers) if workers else None,
    )  # fmt: skip
    for item, one in items:
        if isinstance(one, UserError):
            raise one
        yield item, one


def _plain(value: Any) -> Any:
    return [float(part) if isinstance(part, float) else int(part) for part in value]
