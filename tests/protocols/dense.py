"""What the records of dense protocols share: seeded inputs, summaries of long values, and the
suite's own config, head and training of a preset."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample
from mmseg.utils import stack_batch
from torch import Tensor, nn

import backbones.registry  # noqa: F401  registers the families of names
import probes.catalog  # noqa: F401
from cliptex_common.device import isolated_rng
from cliptex_common.settings import with_changes
from probes.dense.config import dense_config
from probes.dense.heads import LinearHead
from probes.dense.model import DenseModel
from probes.registry import find_preset, find_task
from probes.train import loop as training
from probes.train.config import training_config
from probes.train.sampling import EndlessSampler, SeededSamples
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context

IMAGES, CHANNELS, CLASSES, STEPS = 4, 8, 5, 10
SHORT = {"max_iters": 20, "warmup": 4}  # of training in which ten steps move the weights


# ---------------------------------------------------------------- inputs and summaries


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, classes: int = CLASSES, ignored: int = 255, seed: int = 1) -> Tensor:
    """Class indices, a tenth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, classes, shape, generator=generator)
    values[torch.rand(shape, generator=generator) < 0.1] = ignored
    return values


def depths(*shape: int, seed: int = 2) -> Tensor:
    """Metres in (0.5, 9.5), a tenth of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    values = 0.5 + 9 * torch.rand(shape, generator=generator)
    values[torch.rand(shape, generator=generator) < 0.1] = 0
    return values


def photograph(height: int, width: int, seed: int = 3) -> np.ndarray:
    """An RGB image, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def summary(values: Any, count: int = 40) -> list[float]:
    """Evenly spread values, the mean and the mean square of a long array."""
    flat = np.asarray(values.detach() if isinstance(values, Tensor) else values, float).ravel()
    spread = flat[np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(int)]
    return [*spread, flat.mean(), (flat**2).mean()]


def by_shape(module: nn.Module) -> list[Tensor]:
    """The parameters of a linear head, whatever their names: kernels first, then by their length,
    biases before factors."""
    named = sorted(
        module.named_parameters(),
        key=lambda pair: (-pair[1].ndim, pair[1].numel(), pair[0].rpartition(".")[2]),
    )
    return [parameter for _, parameter in named]


def by_name(module: nn.Module) -> list[Tensor]:
    """The parameters of a head of mmseg's."""
    return [parameter for _, parameter in sorted(module.named_parameters())]


def fill(parameters: Sequence[Tensor], std: float = 0.05) -> None:
    """Give parameters the same values wherever they have the same order."""
    for seed, parameter in enumerate(parameters):
        parameter.data = std * random(*parameter.shape, seed=100 + seed)


# ---------------------------------------------------------------- the suite's side


@lru_cache
def _data(kind: str) -> Any:
    return tiny_dense.make(Path(tempfile.mkdtemp()), kind, train=2, val=1)


@lru_cache
def preset_settings(protocol: str, task: str, **changes: Any) -> Any:
    spec, probe = find_task(task)
    preset = find_preset(protocol, spec, probe).settings
    return with_changes(probe.settings_type(), {**preset, **changes})


@lru_cache
def _config(protocol: str, task: str, backbone: str, changes: tuple[tuple[str, Any], ...]) -> Any:
    spec, probe = find_task(task)
    settings = preset_settings(protocol, task, **dict(changes))
    data = _data(spec.kind)
    if crop := spec.extra.get("crop"):
        data = tiny_dense.with_declared(data, extra={**data.spec.extra, "crop": crop})
    return dense_config(probe, context(data.root / "work", data, settings, backbone))


def preset_config(
    protocol: str, task: str, backbone: str = "random/timm/vit_tiny_patch16_224", **changes: Any
) -> Config:
    """The config that a preset gives for a small dataset."""
    return _config(protocol, task, backbone, tuple(changes.items()))


def curves(settings: Any) -> dict[str, list[float]]:
    """Rate and beta 1 of the iterations of a training by this suite."""
    config = training_config(settings)
    return scheduled_curves(config.optim_wrapper, config.param_scheduler, settings.max_iters)


def scheduled_curves(
    wrapper: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], iterations: int
) -> dict[str, list[float]]:
    """Likewise, of mmengine's configs."""
    options = dict(wrapper["optimizer"])
    kind = getattr(torch.optim, options.pop("type"))
    stepped = kind([torch.zeros(1, requires_grad=True)], **options)
    schedulers = [
        PARAM_SCHEDULERS.build({**part, "optimizer": OptimWrapper(stepped)}) for part in parts
    ]

    def step() -> None:
        for scheduler in schedulers:
            scheduler.step()

    return followed(stepped, iterations, step)


def followed(
    stepped: torch.optim.Optimizer, iterations: int, step: Callable[[], Any]
) -> dict[str, list[float]]:
    """Summaries of an optimizer's rate and beta 1 (momentum of SGD) over a training."""
    (group,) = stepped.param_groups
    rates, betas = [], []
    for _ in range(iterations):
        rates.append(group["lr"])
        betas.append(group["betas"][0] if "betas" in group else group["momentum"])
        step()
    return {"rates": summary(rates), "beta 1": summary(betas)}


class Headed(DenseModel):
    """A decode head with what the suite's model makes of its outputs, without a backbone."""

    def __init__(self, head: Any, loss_images: int | None) -> None:
        BaseModule.__init__(self)
        self.decode_head, self.loss_images = head, loss_images
        self.align_corners = head.align_corners

    def forward(self, maps: Any) -> Tensor:
        return self.objective.task.read_output(self.decode_head(maps))

    def loss(self, maps: Any, samples: Any, _: Any) -> dict[str, Tensor]:
        losses = self._decode_head_forward_train(maps, samples)
        return {name.removeprefix("decode."): value for name, value in losses.items()}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("decode_head"), name)


def head(config: Config, width: int = CHANNELS, **changes: Any) -> Headed:
    """The decode head of a config for maps of ``width`` channels, with weights by ``fill``."""
    options = {**config.model.decode_head.to_dict(), "in_channels": width, **changes}
    with DefaultScope.overwrite_default_scope("mmseg"):
        built = MODELS.build(options)
    fill(by_shape(built) if isinstance(built, LinearHead) else by_name(built))
    return Headed(built, config.model.loss_images)


def samples(field: str, targets: Tensor) -> list[SegDataSample]:
    """Samples with ground truth (N, …, H, W)."""
    packed = []
    for target in targets:
        sample = SegDataSample(metainfo={"ori_shape": tuple(target.shape[-2:])})
        target = target if target.ndim == 3 else target[None]
        packed.append(sample.set_data({field: PixelData(data=target)}) or sample)
    return packed


def trained(built: Any, settings: Any, inputs: Sequence[Any], packed: Sequence[Any]) -> list[float]:
    """The losses of ``STEPS`` steps of this suite, each seeded by its number."""
    config = training_config(settings)
    return trained_by(built, (config.optim_wrapper, config.param_scheduler), inputs, packed)


def trained_by(
    built: Any, configs: tuple[Any, Any], inputs: Sequence[Any], packed: Sequence[Any]
) -> list[float]:
    """Likewise, by mmengine's ``configs`` of the optimizer's wrapper and of the schedulers."""
    wrapper = build_optim_wrapper(built, dict(configs[0]))
    parts = [PARAM_SCHEDULERS.build({**part, "optimizer": wrapper}) for part in configs[1]]
    losses = []
    built.train()
    for step in range(STEPS):
        torch.manual_seed(step)
        values = built.loss(inputs[step], packed[step], None)
        (loss,) = (value for name, value in values.items() if "loss" in name)
        wrapper.update_params(loss)
        for part in parts:
            part.step()
        losses.append(loss.item())
    return losses


def weights(parameters: Sequence[Tensor]) -> list[float]:
    """Summaries of each parameter."""
    return [value for tensor in parameters for value in summary(tensor, 8)]


def transform(part: Mapping[str, Any], image: np.ndarray, target: Any = None) -> dict[str, Any]:
    """What a transform of the suite's makes of an RGB image and its ground truth, as RGB."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        built = TRANSFORMS.build(dict(part))
    results = {"img": image[..., ::-1].copy(), "img_shape": image.shape[:2]}
    if target is not None:
        dtype = np.uint16 if target.dtype.kind in "ui" else np.float32  # as they are loaded
        results |= {"gt_seg_map": target.astype(dtype), "seg_fields": ["gt_seg_map"]}
    results = built.transform(results)
    results["img"] = results["img"][..., ::-1]
    return results


def part_of(config: Config, split: str, kind: str) -> dict[str, Any]:
    """The transform of a type in the pipeline of ``train`` or ``val``; empty without one."""
    pipeline = config[f"{split}_dataloader"].dataset.pipeline
    return next((part.to_dict() for part in pipeline if part["type"] == kind), {})


def seeded(count: int = 8) -> Iterator[int]:
    """Seeds, each of which numpy's generator has when it comes."""
    for seed in range(count):
        with isolated_rng(seed):
            yield seed


def read_layers(config: Config) -> dict[str, Any]:
    """Which blocks of a ViT of 12 a config reads, and whether its class token."""
    indices = config.model.backbone.out_indices
    blocks = [2, 5, 8, 11]
    return {
        "blocks": [blocks[index] for index in indices] if indices else blocks,
        "class token": bool(config.model.backbone.get("class_token")),
    }


def plain_settings(settings: Any) -> dict[str, Any]:
    """Settings that sources have too, under one name each."""
    return {
        "optimizer": settings.optimizer,
        "rate": settings.lr,
        "beta 2": settings.betas[1],
        "decay": settings.weight_decay,
        "clip": settings.clip_norm or "never",
        "batch": settings.batch_size,
        "iterations": settings.max_iters,
        "crop": list(settings.crop),
        "flip": settings.flip,
    }


class Averager(nn.Module):
    """In place of a model: images → outputs of ``CLASSES`` at their own resolution, from patches of
    16 px and the place in the crop.

    Args:
        last: added to the last class.
    """

    def __init__(self, last: float = 0.0) -> None:
        super().__init__()
        self.last = last

    def forward(self, images: Tensor) -> Tensor:
        low = nn.functional.avg_pool2d(images, 16, ceil_mode=True)
        mixed = torch.einsum("nchw,kc->nkhw", low, random(CLASSES, 3, seed=9))
        mixed = mixed + 0.1 * random(1, CLASSES, *mixed.shape[2:], seed=10)
        mixed[:, -1] += self.last
        return nn.functional.interpolate(
            mixed, images.shape[2:], mode="bilinear", align_corners=False
        )


def slid(config: Config, images: Tensor, last: float = 0.0) -> Tensor:
    """The outputs of ``Averager`` (of a regressor its first) in the windows of a config."""
    model, averager = DenseModel.__new__(DenseModel), Averager(last)
    nn.Module.__init__(model)
    model.test_cfg, model.decode_head = config.model.test_cfg, head(config).decode_head
    is_segmenter = model.objective.field == "sem_seg"
    model.out_channels = CLASSES if is_segmenter else 1
    model.encode_decode = lambda crop, metas: averager(crop)[:, : model.out_channels]
    padded, _ = stack_batch([*images], **config.model.data_preprocessor.test_cfg)
    height, width = images.shape[2:]
    return model.slide_inference(padded, [{}])[:, :, :height, :width]


def scored_images(protocol: str, task: str, data: Any, **changes: Any) -> dict[str, float]:
    """Metrics of the files of a dataset by a preset's probe, whose head has weights by
    ``fill_head`` instead of a training, on the backbone of ``segmented``."""
    _, probe = find_task(task)
    settings = preset_settings(protocol, task, **changes)

    def fill_heads(members: Sequence[Any], *_: Any) -> None:
        for member in members:
            fill_head(member.model.decode_head)

    with tempfile.TemporaryDirectory() as folder, patch.object(training, "_train", fill_heads):
        work = Path(folder, "work")
        return probe.run(context(work, data, settings, "golden-projection")).metrics


def fill_head(built: nn.Module) -> None:
    """Give a head such weights that images have several classes."""
    fill(by_shape(built) if isinstance(built, LinearHead) else by_name(built), 0.5)


def order_of_passes(order: Sequence[int], size: int) -> dict[str, Any]:
    """What records have of the order of ``size`` images in three passes or more."""
    passes = [tuple(order[start : start + size]) for start in range(0, 3 * size, size)]
    return {
        "each image once a pass": all(sorted(each) == list(range(size)) for each in passes),
        "orders of three passes": len(set(passes)),
    }


def order(settings: Any, size: int = 7) -> list[int]:
    """The first images that a training by these settings takes of ``size``."""
    samples = SeededSamples(list(range(size)), seed=0, shuffle=settings.shuffle)  # type: ignore[arg-type]
    return [samples[number] for number in islice(EndlessSampler(samples), 3 * size)]


def black(config: Config) -> list[float]:
    """A black pixel as the backbone gets it."""
    prepare = config.model.data_preprocessor
    return [-mean / std for mean, std in zip(prepare["mean"], prepare["std"], strict=True)]


def padding(config: Config) -> dict[str, Any]:
    """What a crop is filled up with: black, or so far from the mean; and the label."""
    pad, prepare = part_of(config, "train", "PadCrop"), config.model.data_preprocessor
    colours = zip(reversed(pad["image"]), prepare["mean"], prepare["std"], strict=True)
    distance = max(abs(value - mean) / std for value, mean, std in colours)
    return {"image": distance if any(pad["image"]) else "black", "label": pad["ground_truth"]}


def initial_weights(config: Config, width: int = 256, **changes: Any) -> list[float]:
    """Spread of the weights of the last convolution before training, and its largest bias."""
    built = head(config, width, **changes)
    with isolated_rng(0):
        built.init_weights()
    return spread(built.conv_seg)


def spread(convolution: nn.Module) -> list[float]:
    weight, bias = convolution.weight, convolution.bias
    return [weight.std().item(), weight.abs().max().item(), bias.abs().max().item()]


def augmented(parts: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """What transforms of mmcv, mmseg and this suite make of a small image and its labels."""
    results = []
    for _ in seeded():
        image, target = photograph(20, 24), UNEVEN
        for part in parts:
            step = transform(part, image, target)
            image, target = step["img"], step["gt_seg_map"]
        results.append([*image.shape[:2], *summary(image, 4), float(target.sum())])
    return results


# most pixels are of one class, so that some crops are drawn again
UNEVEN = np.where(np.random.default_rng(5).random((20, 24)) < 0.75, 0, 3).astype(np.uint8)
SMALL = {"RandomResize": {"scale": (64, 16)}, "RandomCrop": {"crop_size": (12, 12)}}
EDGES = (
    *("LoadImageFromFile", "LoadAnnotations", "LoadGroundTruth"),
    *("Pad", "PadCrop", "PackSegInputs", "PackRGB"),
)


def small(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The random transforms of a training pipeline, for small images."""
    return [
        {**part, **SMALL.get(part["type"], {})} for part in pipeline if part["type"] not in EDGES
    ]
