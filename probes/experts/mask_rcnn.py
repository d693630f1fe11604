"""``mask-rcnn``: semantic maps from MMDetection's instances (He, Gkioxari, Dollár, Girshick, ICCV 2017).

Instances are merged into one hard map, the surer over the less sure. It lives on this floor because MMDetection does;
it keeps the contract of ``backbones.cliptex.experts``; ``probes.experts`` makes it known there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor

from backbones.base import DataConfig
from backbones.checkpoint import read_checkpoint
from backbones.cliptex.data.augment import random_geometry, warp_images
from backbones.cliptex.experts.base import BACKGROUND, CONFIG, IGNORE, Expert, read_settings, resize
from backbones.cliptex.experts.data import CocoImage, ExpertData, coco_instances, square
from backbones.cliptex.experts.fit import FitSettings, draw, jitter, optimise
from backbones.cliptex.experts.nll_angmf import scaled
from backbones.cliptex.experts.unet import timm_encoder
from backbones.cliptex.protocols import Progress, RunLog
from backbones.errors import UserError, nearest
from backbones.files import canonical
from probes.detection import models
from probes.detection.settings import MaskRCNNSettings as DetectorSettings
from probes.runner import bridge

bridge.install()
import mmdet  # noqa: E402
from mmdet.datasets import CocoDataset  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402


@dataclass(frozen=True)
class MaskRCNNSettings(FitSettings):
    """A Mask R-CNN to train here (a pretrained one brings its own configuration).

    Attributes (besides those of ``FitSettings``):
        size: short side of its input in pixels. Training data are read at ``size`` and square.
        encoder, pretrained: timm backbone, as in ``UNet``.
        out_channels, fc_out_channels, anchor_scale, proposals, rois_per_image: see ``probes.detection.settings``.
        mask_convs: 3×3 convolutions of the mask head.
        score_threshold: instances of at least this score are labelled.
        ignore_threshold: where the best instance has a score between this and ``score_threshold``, the pixel is ignored;
            below it is background.
    """

    batch_size: int = 16
    size: int = 800
    encoder: str = "tf_efficientnet_lite0"
    pretrained: bool = True
    out_channels: int = 256
    fc_out_channels: int = 1024
    anchor_scale: float = 8.0
    rois_per_image: int = 512
    proposals: int = 1000
    mask_convs: int = 4
    score_threshold: float = 0.5
    ignore_threshold: float = 0.2


class MaskRCNN(Expert):
    """Mask R-CNN, or any other instance segmenter of MMDetection.

    WHERE: ``CONFIG:CHECKPOINT`` – a config file, or the name of one that comes with MMDetection such as
    ``mask-rcnn_r50_fpn_1x_coco``, and a ``.pth`` or safetensors file – or a folder that ``experts train`` wrote.
    """

    name = "mask-rcnn"
    task = "seg"
    settings_type = MaskRCNNSettings
    settings: MaskRCNNSettings

    def __init__(
        self, settings: MaskRCNNSettings, classes: tuple[str, ...], *, model: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(settings, classes)
        if len(classes) > IGNORE:
            raise UserError(f"mask-rcnn: {len(classes) - 1} classes; at most {IGNORE - 1} fit a map of 8 bits")
        # as JSON keeps it, so that an expert and its saved copy are one
        config = Config(dict(model or own_config(settings, len(classes) - 1))).to_dict()
        self.model_config: dict[str, Any] = json.loads(canonical(config))
        with DefaultScope.overwrite_default_scope("mmdet"):
            self.net: Any = MODELS.build(Config(self.model_config)._cfg_dict)

    @classmethod
    def create(cls, settings: MaskRCNNSettings, classes: tuple[str, ...]) -> Self:
        expert = cls(settings, classes)
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)  # it would tell of every layer
        expert.net.init_weights()
        logger.setLevel(level)
        if settings.pretrained:
            expert.net.backbone.encoder.load_state_dict(timm_encoder(settings.encoder, True)[0].state_dict())
        return expert

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Self:
        return cls(
            read_settings(cls.settings_type, config["settings"]), tuple(config["classes"]), model=config["model"]
        )

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "model": self.model_config}

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        size = (int(images.shape[-2]), int(images.shape[-1]))
        inner = scaled(size, self.settings.size)
        pixels = resize(images.to(self.device).float(), inner).flip(1)  # MMDetection's images are BGR
        samples = []
        for _ in images:
            sample = DetDataSample()
            factor = (inner[1] / size[1], inner[0] / size[0])
            sample.set_metainfo({"img_shape": inner, "ori_shape": size, "pad_shape": inner, "scale_factor": factor})
            samples.append(sample)
        data = self.net.data_preprocessor({"inputs": list(pixels), "data_samples": samples}, False)
        results = self.net.predict(data["inputs"], data["data_samples"], rescale=True)
        return {"seg": np.stack([self._merge(result.pred_instances, size) for result in results])}

    def _merge(self, found: InstanceData, size: tuple[int, int]) -> np.ndarray:
        return merge(
            found.masks.cpu().numpy().astype(bool),
            found.scores.cpu().numpy(),
            found.labels.cpu().numpy() + 1,
            size,
            self.settings.score_threshold,
            self.settings.ignore_threshold,
        )

    def train_on(
        self, data: ExpertData, *, seed: int, device: torch.device, log: RunLog, progress: Progress, state: Path | None
    ) -> None:
        instances = _read_instances(coco_instances(data.folder, data.split)[1], self.settings.size)

        def loss_at(step: int) -> Tensor:
            inputs, samples = _batch(data, instances, self.settings, seed, step)
            batch = self.net.data_preprocessor({"inputs": inputs, "data_samples": samples}, True)
            return self.net.parse_losses(self.net.loss(batch["inputs"], batch["data_samples"]))[0]

        more: dict[str, Any] = {"log": log, "progress": progress, "state": state}
        self.spent = optimise(self, loss_at, data, self.settings, seed=seed, device=device, **more)

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        if (Path(source) / CONFIG).is_file():
            return super().load(source, device)
        name, colon, checkpoint = source.partition(":")
        path = find_config(name)
        if not colon:
            raise UserError(
                f"mask-rcnn needs the weights of {path.stem}: fetch its .pth from MMDetection's model zoo and give "
                f"mask-rcnn={name}:FILE"
            )
        config = Config.fromfile(path)
        model = {key: value for key, value in config.model.to_dict().items() if key not in ("init_cfg", "pretrained")}
        _no_downloads(model)
        settings = MaskRCNNSettings(size=_test_size(config))
        expert = cls(settings, (BACKGROUND, *_class_names(config)), model=model)
        weights = read_checkpoint(checkpoint)
        try:
            expert.net.load_state_dict(weights.state)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1].strip()[:150]
            raise UserError(f"{checkpoint} does not hold the weights of {path.stem} ({first}); check both") from error
        expert.source = source
        return expert.freeze(device)


def merge(
    masks: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    size: tuple[int, int],
    score_threshold: float,
    ignore_threshold: float,
) -> np.ndarray:
    """Instances → one hard class map (H, W) uint8: each pixel is its surest instance's.

    Args:
        masks: (N, H, W) bool. scores: (N,) in [0, 1]. classes: (N,) 1 … .
        score_threshold, ignore_threshold: a pixel whose surest instance has at least the first is of its class, at least
            the second is ignored (255), and with less, or without any instance, is background (0).
    """
    merged = np.zeros(size, np.uint8)
    for place in np.argsort(scores, kind="stable"):
        if scores[place] >= ignore_threshold:
            merged[masks[place]] = classes[place] if scores[place] >= score_threshold else IGNORE
    return merged


def find_config(name: str) -> Path:
    """A config file, by path or by the name of one that comes with MMDetection (``_`` and ``-`` are the same).

    Raises:
        UserError: there is none; names the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    folder = Path(mmdet.__file__).parent / ".mim" / "configs"
    known = {path.stem: path for path in sorted(folder.rglob("*.py")) if "_base_" not in path.parts}
    alike = {stem.replace("_", "-"): path for stem, path in known.items()}
    found = alike.get(Path(name).stem.replace("_", "-"))
    if found is None:
        hint = nearest(name, [stem for stem in known if "mask" in stem]) if known else "give the path of a config file"
        raise UserError(f"no MMDetection config {name!r}; {hint}")
    return found


def own_config(settings: MaskRCNNSettings, classes: int) -> dict[str, Any]:
    """MMDetection's config of the Mask R-CNN that is trained here: the probes' own, over a trainable timm encoder."""
    encoder, mean, std = timm_encoder(settings.encoder, False)
    strides = encoder.feature_info.reduction()
    like: Any = SimpleNamespace(
        channels=tuple(encoder.feature_info.channels()),
        strides=tuple(strides),
        divisor=max(strides),
        data=DataConfig((settings.size, settings.size), _three(mean), _three(std)),
    )
    backbone = {"type": "TrainedEncoder", "encoder": settings.encoder}
    names = ("out_channels", "fc_out_channels", "anchor_scale", "proposals", "rois_per_image")
    sizes = DetectorSettings(**{name: getattr(settings, name) for name in names})
    config = models.mask_rcnn(like, backbone, classes, sizes)
    config["roi_head"]["mask_head"]["num_convs"] = settings.mask_convs
    return config


@MODELS.register_module()
class TrainedEncoder(torch.nn.Module):
    """A timm encoder as MMDetection's backbone: all of it is trained. ``out_indices``: which of its maps."""

    def __init__(self, encoder: str, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.encoder = timm_encoder(encoder, False)[0]
        self.out_indices = tuple(out_indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.encoder(images)
        return tuple(maps[index] for index in self.out_indices)


@dataclass(frozen=True)
class _Instances:
    """One image's instances at the training size: masks (n, S, S) bool and classes (n,) from 0."""

    masks: np.ndarray
    labels: np.ndarray


def _read_instances(images: Sequence[CocoImage], size: int) -> list[_Instances]:
    from PIL.Image import Resampling

    read = []
    for image in images:
        kept = [one for one in image.instances if not one.get("iscrowd")]
        masks = [square(image.mask(one).astype(np.uint8), size, Resampling.NEAREST).astype(bool) for one in kept]
        labels = [one["category"] - 1 for one in kept]
        read.append(_Instances(np.array(masks, bool).reshape(-1, size, size), np.array(labels, np.int64)))
    return read


def _batch(
    data: ExpertData, instances: Sequence[_Instances], settings: MaskRCNNSettings, seed: int, step: int
) -> tuple[list[Tensor], list[DetDataSample]]:
    """A step's augmented images (3, S, S) BGR in 0–255, and their boxes, masks and labels."""
    indices, epoch = draw(len(data), settings, seed, step)
    size = data.images.shape[-1]
    geometry = random_geometry(
        indices.tolist(), [(size, size)] * len(indices), seed=seed, epoch=epoch, scale=settings.crop_scale
    )
    images = warp_images(data.images[torch.from_numpy(indices)], geometry, size) / 255
    images = jitter(images, settings.color_jitter, np.random.default_rng([seed, 1, step])) * 255
    samples = []
    for row, index in enumerate(indices):
        truth = instances[index]
        masks: np.ndarray = np.zeros((0, size, size), bool)
        labels = truth.labels
        if len(truth.masks):
            warped = warp_images(torch.from_numpy(truth.masks[None]).float(), geometry[row : row + 1], size)[0]
            masks = warped.numpy() > 0.5
            seen = masks.sum((1, 2)) >= 4
            masks, labels = masks[seen], labels[seen]
        found = InstanceData(
            bboxes=torch.from_numpy(_boxes(masks)), labels=torch.from_numpy(labels), masks=_bitmap(masks, size)
        )
        sample = DetDataSample(gt_instances=found, ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)))
        shape = (size, size)
        sample.set_metainfo({"img_shape": shape, "ori_shape": shape, "pad_shape": shape, "scale_factor": (1.0, 1.0)})
        samples.append(sample)
    return list(images.flip(1)), samples


def _bitmap(masks: np.ndarray, size: int) -> BitmapMasks:
    return BitmapMasks(masks.astype(np.uint8), size, size)


def _boxes(masks: np.ndarray) -> np.ndarray:
    """(n, 4) float32 x1 y1 x2 y2 around each mask."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for row, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[row] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _no_downloads(part: Any) -> None:
    """Forget where parts of a model would fetch initial weights from: the checkpoint brings all of them."""
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ():
        _no_downloads(value)
    if isinstance(part, dict) and (part.get("init_cfg") or {}).get("type") == "Pretrained":
        part["init_cfg"] = None


def _test_size(config: Config) -> int:
    """Short side that the config's own test pipeline gives; 800 where it says none."""
    for step in config.get("test_pipeline", []):
        if step["type"] == "Resize" and "scale" in step:
            return int(min(step["scale"]))
    return 800


def _class_names(config: Config) -> tuple[str, ...]:
    """Class names of a config's dataset: its own, or COCO's."""
    dataset = config.get("test_dataloader", config.get("val_dataloader", {})).get("dataset", {})
    if names := dataset.get("metainfo", {}).get("classes"):
        return (names,) if isinstance(names, str) else tuple(names)
    head = config.model.get("roi_head", config.model)["mask_head" if "roi_head" in config.model else "bbox_head"]
    count = int((head[0] if isinstance(head, list) else head)["num_classes"])
    coco = tuple(CocoDataset.METAINFO["classes"])
    return coco if count == len(coco) else tuple(f"class {number}" for number in range(count))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third
