"""Phases of the probes that MMEngine trains, a group of heads at once; see
``probes.runner.training``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor

import probes.runner.member  # noqa: F401  registers the wrapper of optimizers
from cliptex_common.device import prefers_bf16
from cliptex_common.live_bytes import real_tensors
from probes.dense.config import dense_config
from probes.dense.group import with_rate
from probes.memory.plan import MemoryPlan, Phases
from probes.runner import bridge
from probes.runner.group_data import GroupDataset

BATCH = 32  # images that are encoded at once, see ``probes.features.feature_dataset``
SAMPLED = 2000  # images of a split whose sizes are read
Sizes = Sequence[tuple[int, ...]]
Encoder = Mapping[str, Any]  # see ``probes.features.feature_dataset``


class FakeHead:
    """A head of a group, of fake tensors; it does what a ``Member`` does in a step."""

    one_batch: Callable[[], AbstractContextManager[None]] = staticmethod(bridge.one_batch)

    def __init__(self, config: Config, plan: MemoryPlan) -> None:
        self.config, self.settings, self.model = config, plan.settings, MODELS.build(config.model)
        wrapper = {**config.optim_wrapper, "type": "QuietOptimWrapper"}
        self.optimizer: Any = build_optim_wrapper(self.model, wrapper)
        self.is_bf16 = prefers_bf16(plan.context.device) and config.default_scope == "mmseg"

    @staticmethod
    def largest(train: Any) -> int:
        """The item of a training set that takes most memory."""
        return 0  # all are crops of one size

    @staticmethod
    def encoded_sizes(train: Any, crop: Tensor, settings: Any) -> Sizes:
        """(height, width) of what is encoded of a training set, whose largest image is given."""
        return [tuple(crop.shape[1:])] * (len(train) * settings.fixed_crops)

    def step(self, data: Mapping[str, Any]) -> None:
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
            losses = self.model._run_forward(data, mode="loss")
        total, _ = self.model.parse_losses(losses)
        self.optimizer.update_params(total)

    def score(self, data: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
        self.model.eval()
        data = {**data, "data_samples": [sample.clone() for sample in data["data_samples"]]}
        evaluator = Evaluator(self.config.val_evaluator)
        evaluator.dataset_meta = classes
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
            predictions = self.model._run_forward(data, mode="predict")
        evaluator.process(data_samples=predictions[:1], data_batch=data)


def probe(*plans: MemoryPlan) -> Phases:
    """See ``probes.dense.group.run_group``."""
    configs = [
        dense_config(plan.probe, with_rate(plan.context, rate))
        for plan in plans
        for rate in plan.settings.lr_grid or (plan.settings.lr,)
    ]
    return together(plans[0], configs, FakeHead)


def together(plan: MemoryPlan, configs: Sequence[Config], head_type: type[FakeHead]) -> Phases:
    """Phases of heads that are trained together."""
    bridge.share(plan.context.backbone_config, plan.backbone)
    with DefaultScope.overwrite_default_scope(configs[0].default_scope):
        loaders = ("train_dataloader", "val_dataloader")
        train, val = (
            GroupDataset([_images(config[name]) for config in configs]) for name in loaders
        )
        images = train.datasets[0]
        with real_tensors():
            sample = train[head_type.largest(images)]
        encoder = None
        if plan.settings.cache != "none":
            encoder = configs[0].train_dataloader.dataset.encoder
            sizes = head_type.encoded_sizes(images, sample["inputs"], plan.settings)
            encode_maps(encoder, [*sizes, *shapes(val.datasets[0])])
            yield "encoding"
        heads = [head_type(config, plan) for config in configs]
        preprocess = heads[0].model.data_preprocessor
        for _ in range(2):
            samples = [sample] * plan.settings.batch_size
            batches = train.batches(preprocess, collated(samples, encoder), True)
            with head_type.one_batch():
                for head, batch in zip(heads, batches, strict=True):
                    head.step(batch)
        yield "training"
        with torch.no_grad():
            for items in largest_batches(val.datasets[0], configs[0].val_dataloader):
                with real_tensors():
                    samples = [val[item] for item in items]
                batches = val.batches(preprocess, collated(samples, encoder), False)
                with head_type.one_batch():
                    for head, batch, index in zip(heads, batches, val.indices, strict=True):
                        head.score(batch, val.datasets[index].metainfo)
        yield "evaluation"


def _images(loader: Config) -> dict[str, Any]:
    """Config of a loader's dataset, which delivers images, not cached features."""
    config: dict[str, Any] = loader.dataset.to_dict()
    return config.get("dataset", config) if "encoder" in config else config


def collated(samples: Sequence[Any], encoder: Encoder | None) -> dict[str, Any]:
    """A batch of samples in the memory of the planned device, with maps in the place of images if
    there is an ``encoder``."""
    samples = [copied(sample) for sample in samples]
    if encoder is not None:
        maps = encoded(encoder, [sample["inputs"] for sample in samples])
        for number, sample in enumerate(samples):
            sample["data_samples"].set_metainfo({"pad_shape": tuple(sample["inputs"].shape[1:])})
            sample["inputs"] = tuple(each[number] for each in maps)
    batch: dict[str, Any] = pseudo_collate(samples)
    return batch


def copied(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample with tensors that are counted, as those that are copied to a device."""

    def copy(data: Any) -> Any:
        data = data.clone()
        for value in data.values():
            if "data" in value:
                value.data = torch.empty_like(value.data)
        return data

    copies = {**sample, "inputs": torch.empty_like(sample["inputs"])}
    copies["data_samples"] = copy(sample["data_samples"])
    if "more_samples" in sample:
        copies["more_samples"] = list(map(copy, sample["more_samples"]))
    return copies


def encode_maps(encoder: Encoder, sizes: Sizes, frozen: Any = None) -> None:
    """Encode the largest batch of images of one shape; see ``encoded``."""
    counts = {size: min(count, BATCH) for size, count in Counter(map(tuple, sizes)).items()}
    height, width = max(counts, key=lambda size: counts[size] * size[0] * size[1])
    images = [torch.empty(3, height, width, dtype=torch.uint8)] * counts[height, width]
    encoded(encoder, images, frozen)


@torch.inference_mode()
def encoded(encoder: Encoder, images: Sequence[Tensor], frozen: Any = None) -> list[Tensor]:
    """Maps of images in fp16, by the ``backbone`` of an encoder's config or by ``frozen``."""
    preprocess = MODELS.build(encoder["data_preprocessor"])
    frozen = frozen or MODELS.build(encoder["backbone"])
    # padded here: mmengine pads by values, which fake tensors have not
    divisor = getattr(preprocess, "pad_size_divisor", 1)
    sides = (max(image.shape[side] for image in images) for side in (1, 2))
    height, width = (-(-side // divisor) * divisor for side in sides)
    padded = [torch.empty(3, height, width, dtype=torch.uint8) for _ in images]
    samples = [BaseDataElement() for _ in images]
    batch = preprocess({"inputs": padded, "data_samples": samples}, False)
    return [each.half() for each in frozen(batch["inputs"])]


class FirstImages:
    """The indices of the first images of a dataset, as of a sampler."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[int]:
        return iter(range(min(len(self.dataset), SAMPLED)))


def shapes(dataset: Any) -> list[tuple[int, ...]]:
    """Of the first images of a dataset."""
    return [tuple(dataset.shape(item)) for item in FirstImages(dataset)]


def largest_batches(dataset: Any, loader: Config) -> list[list[int]]:
    """Of an evaluation: the batches with most pixels of images and of their files."""
    default_args = {"sampler": FirstImages(dataset), "batch_size": loader.batch_size}
    sampler = DATA_SAMPLERS.build(loader.batch_sampler, default_args=default_args)

    def padded(items: Sequence[int]) -> int:
        return len(items) * math.prod(dataset.shape(items[0])[:2])

    def outputs(items: Sequence[int]) -> int:
        return sum(map(math.prod, map(dataset.own_size, items)))

    largest = [max(sampler.batches, key=padded)]
    if sampler.outputs and (batch := max(sampler.batches, key=outputs)) != largest[0]:
        largest.append(batch)
    return largest
