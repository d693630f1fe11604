"""Dense probes on kept features: in mmseg's terms the dataset delivers feature maps and the backbone only reads them.

Head, loss, schedule and evaluator are those of the uncached config; three parts of it are replaced (see ``cached``).
The dataset carries the whole recipe of its features, so that a dumped config makes what is missing wherever it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import probes.runner.bridge  # first: it gives mmcv the operators that mmseg's import asks for

# isort: split
import mmcv
import torch
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS, MODELS
from torch.utils.data import Dataset

import probes.runner.batches  # noqa: F401  registers what the config names
from backbones.files import content_key
from probes.base import Progress
from probes.dense.data import FIELDS, LoadTruth, channels_first, dense_sample
from probes.features.content_hashes import digests
from probes.features.cost import EncodeCost
from probes.features.crops import View, all_views, draw_view, image_size
from probes.features.precompute import keeping
from probes.features.store import Maker, Recipe, Store, ensure
from probes.runner.stream import once

Part = dict[str, Any]  # of a config
OWN_MODULES = ("probes.dense.cached", "probes.features.precompute", "probes.runner.batches")
AT_ONCE = 32  # images of an evaluation's batch at most


def cached(config: Config, dtype: str, views: int, flip: float, device: torch.device) -> Config:
    """``config`` (of ``probes.dense.probe``, with deterministic views) on features that are kept in ``dtype``."""
    encoder = {"backbone": config.model.backbone, "data_preprocessor": config.model.data_preprocessor}
    config = copy.deepcopy(config)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset = {
            "type": "CachedDense", "dataset": loader.dataset, "encoder": copy.deepcopy(encoder), "dtype": dtype,
            "views": 0 if loader.dataset.test_mode else views, "flip": flip, "device": device.type,
        }  # fmt: skip
        loader.num_workers = 0  # reading what is mapped is quicker than passing it between processes
        loader.persistent_workers = False
    config.val_dataloader.update(batch_size=AT_ONCE, batch_sampler={"type": "SameShapeBatches"})
    config.model.data_preprocessor = {"type": "StackFeatures"}
    config.model.backbone = {"type": "KeptFeatures"}
    config.custom_imports.imports = [*config.custom_imports.imports, *OWN_MODULES]
    return config


@DATASETS.register_module()
class CachedDense(Dataset):
    """Feature maps and truth of a ``DenseDataset``; what is not kept yet is made when the set is first used.

    An item has ``inputs``: the maps (C, h, w) of the frozen backbone in ``dtype``, ``data_samples`` as the uncached
    pipeline packs them, and ``kept``: what the maps are found by, the same for all tasks on these images. In training
    the view is drawn by numpy's generator, as the uncached pipeline draws it.

    Args:
        dataset: config of the ``DenseDataset`` with its uncached pipeline.
        encoder: configs of ``backbone`` (a ``FrozenBackbone``) and ``data_preprocessor``.
        dtype: that features are kept in: ``fp32``, ``fp16`` or ``bf16``.
        views, flip: see ``probes.features.crops``; 0 views for the whole images of a test pipeline.
        device: type of the device that encodes (``cpu``, ``cuda``), which is part of the features' identity.
    """

    def __init__(
        self, dataset: Mapping[str, Any], encoder: Mapping[str, Any], dtype: str, views: int, flip: float, device: str
    ) -> None:
        self.config, self.encoder, self.dtype = dict(dataset), dict(encoder), dtype
        self.views, self.flip, self.device = views, flip, device
        pipeline = [dict(part) for part in self.config["pipeline"]]
        # the same views of the same images are the same features, whatever the task
        blind = [_blind(part) for part in pipeline if part["type"] not in ("LoadTruth", "TurnFlippedNormals")]
        self.images = DATASETS.build({**self.config, "pipeline": blind})
        self.images.full_init()
        self.spec = self.images.spec
        self.field = FIELDS[self.spec.kind]
        self.all_views = all_views(views, flip) if views else []
        self._blind, self._pipeline = blind, pipeline
        self._load_truth = LoadTruth(**{k: v for k, v in _part(pipeline, "LoadTruth").items() if k != "type"})
        self._features: Store | None = None
        self._truth: Store | None = None

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.images.metainfo

    @property
    def notes(self) -> list[str]:
        """What was found damaged and made again."""
        return [note for store in (self._features, self._truth) if store for note in store.notes]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def features(self) -> Store:
        """What is kept: opened, and made where it is not there, when it is first asked for."""
        if self._features is None:
            self.open()
        assert self._features is not None
        return self._features

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = self.features
        info = self.images.get_data_info(index)
        if not self.views:
            facts = {**info, **_tuples(features.facts(index))}
            truth = channels_first(self._load_truth.transform(dict(facts))["gt_seg_map"])
            return self._item(index, facts, truth)
        assert self._truth is not None
        place = self.place(index, draw_view(self.views, self.flip))
        facts = {"image": info["image"], "img_path": info["img_path"], **_tuples(self._truth.facts(place))}
        (truth,) = self._truth[place]
        return self._item(place, facts, truth)

    def _item(self, place: int, facts: Mapping[str, Any], truth: torch.Tensor) -> dict[str, Any]:
        return {
            "inputs": tuple(self.features[place]),
            "data_samples": dense_sample(facts, self.field, truth),
            "kept": f"{self.features.folder.name}/{place}",
        }

    def shape(self, index: int) -> tuple[int, ...]:
        """Height and width of a test image as the backbone saw it, padded, and within its padding."""
        facts = self.features.facts(index)
        return *facts["pad_shape"][:2], *facts["img_shape"][:2]

    def place(self, index: int, view: View) -> int:
        """Where the features of a view of an image are."""
        return index * len(self.all_views) + self.all_views.index(view)

    def key(self) -> str:
        """The identity of the features, whether they are kept yet or not."""
        images = digests([self.images.root / info["image"] for info in self._infos()])
        return self._encoding(images, None, 0, torch.device(self.device), EncodeCost())[0].key

    def open(
        self,
        progress: Progress | None = None,
        workers: int = 2,
        device: torch.device | None = None,
        cost: EncodeCost | None = None,
    ) -> None:
        """Open what is kept, making what is not. Raises as ``ensure`` and ``encode_maps`` do."""

        def wait() -> None:
            if progress:
                progress.start(f"waiting for the process that encodes {self.spec.name}", 1)

        self.close()
        cost = cost or EncodeCost()
        images = digests([self.images.root / info["image"] for info in self._infos()])
        recipe, make = self._encoding(images, progress, workers, torch.device(device or self.device), cost)
        with cost.timed():
            self._features = ensure(recipe, make, wait=wait)
        if self.views:
            recipe, make = self._cutting(images, progress)
            self._truth = ensure(recipe, make, wait=wait)

    def close(self) -> None:
        """Let go of the files."""
        for store in (self._features, self._truth):
            if store is not None:
                store.close()
        self._features = self._truth = None

    def _infos(self) -> list[dict[str, Any]]:
        return [self.images.get_data_info(index) for index in range(len(self.images))]

    def _info(self, item: int) -> dict[str, Any]:
        """The sample of an item of a store, with the view to take."""
        if not self.views:
            return self.images.get_data_info(item)
        image, view = divmod(item, len(self.all_views))
        return {**self.images.get_data_info(image), "view": tuple(self.all_views[view])}

    def _encoding(
        self,
        images: Sequence[str],
        progress: Progress | None,
        workers: int,
        device: torch.device,
        cost: EncodeCost,
    ) -> tuple[Recipe, Maker]:
        if self.views:
            sizes = [(_part(self._pipeline, "DeterministicView")["crop"],) * 2] * (len(images) * len(self.all_views))
        else:
            scale = tuple(_part(self._pipeline, "Resize")["scale"])
            sizes = [mmcv.rescale_size(image_size(info["img_path"]), scale)[::-1] for info in self._infos()]
        identity = {"images": content_key(images, 64), "pipeline": self._blind, "views": self.all_views}
        return keeping(
            self.encoder, "mmseg", lambda item: self.images.pipeline(self._info(item)), sizes, identity, self.dtype,
            about=f"{self.spec.name} ({self.images.split})", device=device, workers=workers, progress=progress,
            cost=cost,
        )  # fmt: skip

    def _cutting(self, images: Sequence[str], progress: Progress | None) -> tuple[Recipe, Maker]:
        """The truth of each view: it depends on no backbone, and cutting it anew would mean to decode it anew."""
        pipeline = [self._without_colour(part) for part in self._pipeline]
        truth = digests([self.images.root / info["truth_path"] for info in self._infos()])
        view = _part(self._pipeline, "DeterministicView")
        dtype = {"gt_sem_seg": "uint8" if _part(pipeline, "LoadTruth").get("classes", 0) <= 255 else "uint16"}
        kept = dtype.get(self.field, "fp32")
        if kept == "uint8" and not 0 <= self.spec.ignore_index <= 255:
            kept = "uint16"
        cells = view["crop"] ** 2 * (3 if self.field == "gt_normal_map" else 1)
        each = [cells * {"uint8": 1, "uint16": 2, "fp32": 4}[kept]] * (len(images) * len(self.all_views))
        identity = {
            "images": content_key(images, 64), "truth": content_key(truth, 64), "pipeline": pipeline,
            "views": self.all_views,
        }  # fmt: skip
        recipe = Recipe("truth", f"{self.spec.name} ({self.images.split})", identity, (kept,), each)

        def make(wanted: Sequence[Sequence[int]]) -> Any:
            with DefaultScope.overwrite_default_scope("mmseg"):
                cutter = DATASETS.build({**self.config, "pipeline": pipeline})
            if progress:
                progress.start(f"cutting the truth of {self.spec.name}", sum(map(len, wanted)))
            for item in (item for shard in wanted for item in shard):
                sample = cutter.pipeline(self._info(item))["data_samples"]
                data = sample.get(self.field).data
                numpy_type = {"uint8": torch.uint8, "uint16": torch.uint16}.get(kept, torch.float32)
                facts = {key: [int(side) for side in sample.metainfo[key]] for key in ("ori_shape", "img_shape")}
                yield item, [data.to(numpy_type)], facts
                if progress:
                    progress.advance()

        return recipe, make

    @staticmethod
    def _without_colour(part: Part) -> Part:
        """Truth needs no pixels, only their number."""
        if part["type"] == "LoadImageFromFile":
            return {"type": "LoadBlank"}
        return {**part, "image": [0, 0, 0]} if part["type"] == "PadTruth" else part


@MODELS.register_module()
class StackFeatures(BaseDataPreprocessor):
    """In the place of ``SegDataPreProcessor``: a batch of kept maps to the device, each map stacked over the batch.

    Tasks that are trained side by side on the same features stack them once.
    """

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        inputs = once(("stack", str(self.device)), data["kept"], lambda: self._stack(data["inputs"]))
        return {"inputs": inputs, "data_samples": self.cast_data(data.get("data_samples"))}

    def _stack(self, maps: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        return self.cast_data(tuple(torch.stack(list(each)) for each in maps))


def _blind(part: Part) -> Part:
    """A transform's config without what only concerns the truth."""
    if part["type"] == "PackDense":
        return {**part, "kind": "segmentation"}
    return {**part, "truth": 0} if part["type"] == "PadTruth" else part


def _part(pipeline: Sequence[Part], kind: str) -> Part:
    return next(part for part in pipeline if part["type"] == kind)


def _tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) for key, value in facts.items()}


__all__ = ["CachedDense", "StackFeatures", "cached"]
