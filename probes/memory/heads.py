"""Phases of the dense probes that MMEngine trains, a group of heads at once; see
``probes.runner.training``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from common.device import prefers_bf16
from common.live_bytes import real_tensors
from probes.dense.config import dense_config
from probes.dense.lr_grid import with_rate
from probes.memory.plan import MemoryPlan, Phases
from probes.runner import bridge
from probes.runner.group_data import GroupDataset

BATCH = 32  # images that are encoded at once, see ``probes.features.feature_dataset``
SAMPLED = 2000  # images of val whose sizes are read
Sizes = Sequence[tuple[int, ...]]


class FakeHead:
    """A head of a group, of fake tensors; it does what a ``Member`` does in a step."""

    def __init__(self, config: Config, plan: MemoryPlan) -> None:
        self.config, self.model = config, MODELS.build(config.model)
        wrapper = {**config.optim_wrapper, "type": "QuietOptimWrapper"}
        self.optimizer: Any = build_optim_wrapper(self.model, wrapper)
        self.is_bf16 = prefers_bf16(plan.context.device) and config.default_scope == "mmseg"

    def step(self, data: Mapping[str, Any]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
            losses = self.model._run_forward(data, mode="loss")
        total, _ = self.model.parse_losses(losses)
        self.optimizer.update_params(total)

    def score(self, data: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
        data = {**data, "data_samples": [sample.clone() for sample in data["data_samples"]]}
        evaluator = Evaluator(self.config.val_evaluator)
        evaluator.dataset_meta = classes
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
            predictions = self.model._run_forward(data, mode="predict")
        evaluator.process(data_samples=predictions[:1], data_batch=data)


def dense(plans: Sequence[MemoryPlan]) -> Phases:
    """See ``probes.dense.group.run_group``."""
    plan = plans[0]
    configs, uncached = [], []  # of each head
    for each in plans:
        for rate in each.settings.lr_grid or (each.settings.lr,):
            context = with_rate(each.context, rate)
            configs.append(dense_config(each.probe, context))
            settings = replace(context.settings, cache="none")  # delivers images
            uncached.append(dense_config(each.probe, replace(context, settings=settings)))
    bridge.share(plan.context.backbone_config, plan.backbone)
    with DefaultScope.overwrite_default_scope("mmseg"):
        train = GroupDataset([config.train_dataloader.dataset.to_dict() for config in uncached])
        val = GroupDataset([config.val_dataloader.dataset.to_dict() for config in uncached])
        with real_tensors():
            sample = train[0]
        encoder = None
        if plan.settings.cache != "none":
            encoder = uncached[0]
            crops = [sample["inputs"].shape[1:]] * (len(train) * plan.settings.fixed_crops)
            encode_maps(encoder, [*crops, *shapes(val)])
            yield "encoding"
        heads = [FakeHead(config, plan) for config in configs]
        preprocess = heads[0].model.data_preprocessor
        for _ in range(2):
            samples = [sample] * plan.settings.batch_size
            batches = train.batches(preprocess, collated(samples, encoder), True)
            with bridge.one_batch():
                for head, batch in zip(heads, batches, strict=True):
                    head.model.train()
                    head.step(batch)
        yield "training"
        with torch.no_grad():
            for items in largest_batches(val, uncached[0].val_dataloader):
                with real_tensors():
                    samples = [val[item] for item in items]
                batches = val.batches(preprocess, collated(samples, encoder), False)
                with bridge.one_batch():
                    for head, batch, index in zip(heads, batches, val.indices, strict=True):
                        head.model.eval()
                        head.score(batch, val.datasets[index].metainfo)
        yield "evaluation"


def collated(samples: Sequence[Any], encoder: Config | None) -> dict[str, Any]:
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


def encode_maps(config: Config, sizes: Sizes, frozen: Any = None) -> None:
    """Encode the largest batch of images of one shape; see ``encoded``."""
    counts = {size: min(count, BATCH) for size, count in Counter(map(tuple, sizes)).items()}
    height, width = max(counts, key=lambda size: counts[size] * size[0] * size[1])
    images = [torch.empty(3, height, width, dtype=torch.uint8)] * counts[height, width]
    encoded(config, images, frozen)


@torch.inference_mode()
def encoded(config: Config, images: Sequence[Tensor], frozen: Any = None) -> list[Tensor]:
    """Maps of images in fp16, by the ``backbone`` of a model's config or by ``frozen``."""
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmseg")):
        preprocess = MODELS.build(config.model.data_preprocessor)
        frozen = frozen or MODELS.build(config.model.backbone)
    samples = [BaseDataElement() for _ in images]
    batch = preprocess({"inputs": list(images), "data_samples": samples}, False)
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

    batches = sampler.batches()
    largest = [max(batches, key=padded)]
    if sampler.outputs and (batch := max(batches, key=outputs)) != largest[0]:
        largest.append(batch)
    return largest
