"""``mask-rcnn``: semantic maps from MMDetection's or torchvision's instances (He, Gkioxari, Dollár,
Girshick, ICCV 2017).

Instances are merged into one hard map, the surer over the less sure. It lives on this floor because
MMDetection does; it keeps the contract of ``backbones.cliptex.experts``; ``probes.experts`` makes
it known there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from PIL.Image import Resampling
from torch import Tensor

from backbones.base import DataConfig
from backbones.checkpoint import Checkpoint, load_checkpoint
from backbones.cliptex.data.augment import random_geometry, warp_images
from backbones.cliptex.experts import torchvision_mask_rcnn as torchvision
from backbones.cliptex.experts.base import BACKGROUND, CONFIG, IGNORE, Expert, read_settings, resize
from backbones.cliptex.experts.data import CocoImage, ExpertData, square
from backbones.cliptex.experts.fit import FitRun, FitSettings, draw, jitter, optimise
from backbones.cliptex.experts.unet import scaled, timm_encoder
from common.errors import UserError, nearest
from common.files import canonical_json
from probes.detection import models
from probes.detection.settings import MaskRCNNSettings as DetectorSettings

# isort: split
import mmdet
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks


@dataclass(frozen=True)
class MaskRCNNSettings(FitSettings):
    """A Mask R-CNN to train here (a pretrained one brings its own configuration).

    Attributes (besides those of ``FitSettings``):
        size: short side of its input in pixels. Training data are read at ``size`` and square.
        encoder, pretrained: timm backbone, as in ``UNet``.
        out_channels, fc_out_channels, anchor_scale, proposals, rois_per_image: see
            ``probes.detection.settings``.
        mask_convs: 3×3 convolutions of the mask head.
        score_threshold: instances of at least this score are labelled.
        ignore_threshold: where the best instance has a score between this and ``score_threshold``,
            the pixel is ignored; below it is background.
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
    """Mask R-CNN of torchvision, or any instance segmenter of MMDetection.

    WHERE: ``CONFIG:CHECKPOINT`` – a ``.py`` config file of MMDetection, which is run, or the name
    of one that comes with it such as ``mask-rcnn_r50_fpn_1x_coco``, and a ``.pth`` or safetensors
    file –, a checkpoint of torchvision alone, or a folder that ``experts train`` wrote.
    """

    name = "mask-rcnn"
    task = "seg"
    settings_type = MaskRCNNSettings
    settings: MaskRCNNSettings

    def __init__(
        self,
        settings: MaskRCNNSettings,
        classes: tuple[str, ...],
        *,
        model: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(settings, classes)
        if len(classes) > IGNORE:
            raise UserError(
                f"mask-rcnn: {len(classes) - 1} classes; at most {IGNORE - 1} fit a map of 8 bits"
            )
        # as JSON keeps it, so that an expert and its saved copy are one
        config = Config(dict(model or own_config(settings, len(classes) - 1))).to_dict()
        self.model_config: dict[str, Any] = json.loads(canonical_json(config))
        self.net: Any
        if self.model_config["type"] == torchvision.TYPE:
            version, count = self.model_config["version"], self.model_config["num_classes"]
            self.net = torchvision.build(version, count, settings.size)
            # the model's labels → classes, without those that torchvision has no name for
            names = torchvision.classes(count)
            self.places = np.array(
                [classes.index(name) if name in classes else 0 for name in names]
            )
        else:
            with DefaultScope.overwrite_default_scope("mmdet"):
                self.net = MODELS.build(Config(self.model_config)._cfg_dict)
            self.places = np.arange(len(classes))

    @classmethod
    def create(cls, settings: MaskRCNNSettings, classes: tuple[str, ...]) -> Self:
        expert = cls(settings, classes)
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)  # it would tell of every layer
        expert.net.init_weights()
        logger.setLevel(level)
        if settings.pretrained:
            expert.net.backbone.encoder.load_state_dict(
                timm_encoder(settings.encoder, True)[0].state_dict()
            )
        return expert

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Self:
        for part in _parts(config["model"]):
            if "." in (kind := str(part.get("type", ""))) and kind != torchvision.TYPE:
                # MMEngine would import whatever a dotted name says, and call it
                raise UserError(
                    f"{CONFIG} of mask-rcnn names {kind}, which is not of MMDetection's registry"
                )
        return cls(
            read_settings(cls.settings_type, config["settings"]),
            tuple(config["classes"]),
            model=config["model"],
        )

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "model": self.model_config}

    def trunk(self) -> Iterable[torch.nn.Module]:
        return [
            part
            for name in ("backbone", "neck")
            if (part := getattr(self.net, name, None)) is not None
        ]

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        size = (int(images.shape[-2]), int(images.shape[-1]))
        ours = self.model_config["type"] == torchvision.TYPE
        found = torchvision.instances(self.net, images) if ours else self._instances(images, size)
        low, high = self.settings.ignore_threshold, self.settings.score_threshold
        maps = []
        for one in found:
            seen = one["scores"] >= low
            masks, scores, labels = (
                one[name][seen].cpu().numpy() for name in ("masks", "scores", "labels")
            )
            maps.append(merge(masks, scores, self.places[labels], size, high, low))
        return {"seg": np.stack(maps)}

    def _instances(self, images: Tensor, size: tuple[int, int]) -> list[dict[str, Tensor]]:
        """What MMDetection finds in each image, as ``torchvision.instances`` gives it."""
        inner = scaled(size, self.settings.size)
        pixels = resize(images.to(self.device).float(), inner).flip(
            1
        )  # MMDetection's images are BGR
        samples = [_sample(inner, size) for _ in images]
        results = self.net.test_step({"inputs": list(pixels), "data_samples": samples})
        found = [result.pred_instances for result in results]
        return [
            {"masks": one.masks.bool(), "scores": one.scores, "labels": one.labels + 1}
            for one in found
        ]

    def train_on(self, data: ExpertData, run: FitRun) -> None:
        def loss_at(step: int) -> Tensor:
            inputs, samples = _batch(data, self.settings, run.seed, step)
            batch = self.net.data_preprocessor({"inputs": inputs, "data_samples": samples}, True)
            return self.net.parse_losses(self.net.loss(batch["inputs"], batch["data_samples"]))[0]

        self.spent = optimise(self, loss_at, data, self.settings, run)

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        if (Path(source) / CONFIG).is_file():
            return super().load(source, device)
        if ":" not in source and Path(source).suffix in (".pth", ".pt", ".safetensors"):
            weights = load_checkpoint(source)
            if (model := torchvision.describe(weights.state)) is None:
                raise UserError(
                    f"{source} is no Mask R-CNN of torchvision; MMDetection's are given as"
                    f" CONFIG:{source}"
                )
            names = tuple(
                name for name in torchvision.classes(model["num_classes"]) if name != "N/A"
            )
            expert = cls(MaskRCNNSettings(), (BACKGROUND, *names[1:]), model=model)
            return expert._filled(weights, "torchvision's Mask R-CNN", source).freeze(device)
        name, colon, checkpoint = source.partition(":")
        path = find_config(name)
        if not colon:
            raise UserError(
                f"mask-rcnn needs the weights of {path.stem}: fetch its .pth from MMDetection's"
                f" model zoo and give mask-rcnn={name}:FILE"
            )
        weights = load_checkpoint(checkpoint)
        return cls._described(path)._filled(weights, path.stem, source).freeze(device)

    @classmethod
    def _described(cls, path: Path) -> Self:
        """The expert of a config file, with random weights."""
        if path.suffix != ".py":
            raise UserError(
                f"{path} is no .py config; other formats are refused, since they can run code"
                " unseen"
            )
        try:
            config = Config.fromfile(path)
            if "model" not in config:
                raise UserError(f"{path} has no model; give a whole config of MMDetection")
            model = config.model.to_dict()
            for part in _parts(
                model
            ):  # the checkpoint brings all weights: nothing is to be fetched
                part.pop("init_cfg", None)
                part.pop("pretrained", None)
            return cls(
                MaskRCNNSettings(size=_test_size(config)),
                (BACKGROUND, *_class_names(config)),
                model=model,
            )
        except UserError:
            raise
        except Exception as error:  # a config is a program, and may raise anything
            reason = (str(error).strip() or "nothing said").splitlines()[0][:150]
            raise UserError(
                f"{path} is no config that can be used ({type(error).__name__}: {reason})"
            ) from error

    def _filled(self, weights: Checkpoint, name: str, source: str) -> Self:
        try:
            self.net.load_state_dict(weights.state)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1].strip()[:150]
            raise UserError(
                f"{weights.path} does not hold the weights of {name} ({first}); check both"
            ) from error
        self.source = source
        return self


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
        score_threshold, ignore_threshold: a pixel whose surest instance has at least the first is
            of its class, at least the second is ignored (255), and with less, or without any
            instance, is background (0).
    """
    merged = np.zeros(size, np.uint8)
    for place in np.argsort(scores, kind="stable"):
        if scores[place] >= ignore_threshold:
            merged[masks[place]] = classes[place] if scores[place] >= score_threshold else IGNORE
    return merged


def find_config(name: str) -> Path:
    """A config file, by path or by the name of one that comes with MMDetection (``_`` and ``-`` are
    the same).

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
        hint = (
            nearest(name, [stem for stem in known if "mask" in stem])
            if known
            else "give the path of a config file"
        )
        raise UserError(f"no MMDetection config {name!r}; {hint}")
    return found


def own_config(settings: MaskRCNNSettings, classes: int) -> dict[str, Any]:
    """MMDetection's config of the Mask R-CNN that is trained here: the probes' own, over a
    trainable timm encoder."""
    encoder, mean, std = timm_encoder(settings.encoder, False)
    strides = encoder.feature_info.reduction()
    like: Any = SimpleNamespace(
        channels=tuple(encoder.feature_info.channels()),
        strides=tuple(strides),
        divisor=max(strides),
        data=DataConfig((settings.size, settings.size), mean, std),
    )
    backbone = {"type": "TrainedEncoder", "encoder": settings.encoder}
    names = ("out_channels", "fc_out_channels", "anchor_scale", "proposals", "rois_per_image")
    sizes = DetectorSettings(**{name: getattr(settings, name) for name in names})
    config = models.mask_rcnn(like, backbone, classes, sizes)
    config["roi_head"]["mask_head"]["num_convs"] = settings.mask_convs
    return config


@MODELS.register_module()
class TrainedEncoder(torch.nn.Module):
    """A timm encoder as MMDetection's backbone: all of it is trained. ``out_indices``: which of its
    maps."""

    def __init__(self, encoder: str, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.encoder = timm_encoder(encoder, False)[0]
        self.out_indices = tuple(out_indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.encoder(images)
        return tuple(maps[index] for index in self.out_indices)


def _sample(shape: tuple[int, int], original: tuple[int, int], **found: Any) -> DetDataSample:
    """MMDetection's record of an image of ``original`` size that was brought to ``shape``."""
    factor = (shape[1] / original[1], shape[0] / original[0])
    sizes = {"img_shape": shape, "ori_shape": original, "pad_shape": shape, "scale_factor": factor}
    return DetDataSample(metainfo=sizes, **found)


def _batch(
    data: ExpertData, settings: MaskRCNNSettings, seed: int, step: int
) -> tuple[list[Tensor], list[DetDataSample]]:
    """A step's augmented images (3, S, S) BGR in 0–255, and their boxes, masks and labels."""
    drawn, epoch = draw(len(data), settings, seed, step)
    indices, shape = drawn.tolist(), (data.size, data.size)
    geometry = random_geometry(
        indices, [shape] * len(indices), seed=seed, epoch=epoch, scale=settings.crop_scale
    )
    images = warp_images(data.read(indices)[0], geometry, data.size) / 255
    images = jitter(images, settings.color_jitter, np.random.default_rng([seed, 1, step])) * 255
    samples = []
    for row, index in enumerate(indices):
        masks, labels = _truth(data.samples[index].coco, data.size)
        if len(masks):
            warped = warp_images(
                torch.from_numpy(masks[None]).float(), geometry[row : row + 1], data.size
            )[0]
            masks = warped.numpy() > 0.5
            seen = masks.sum((1, 2)) >= 4
            masks, labels = masks[seen], labels[seen]
        bitmaps = BitmapMasks(masks.astype(np.uint8), *shape)
        found = InstanceData(
            bboxes=bitmaps.get_bboxes("hbox").tensor, labels=torch.from_numpy(labels), masks=bitmaps
        )
        nothing = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(_sample(shape, shape, gt_instances=found, ignored_instances=nothing))
    return list(images.flip(1)), samples


def _truth(image: CocoImage | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image's instances at the training size: masks (n, S, S) bool and classes (n,) from 0.
    Raises ``UserError``."""
    if image is None:
        raise UserError("mask-rcnn is trained on COCO's instances only")
    kept = [one for one in image.instances if not one["iscrowd"]]
    masks = [
        square(image.mask(one).astype(np.uint8), size, Resampling.NEAREST).astype(bool)
        for one in kept
    ]
    labels = [one["category"] - 1 for one in kept]
    return np.array(masks, bool).reshape(-1, size, size), np.array(labels, np.int64)


def _parts(model: Any) -> Iterator[dict[str, Any]]:
    """All dictionaries of a config, the outer ones first."""
    if isinstance(model, dict):
        yield model
    for value in (
        model.values()
        if isinstance(model, dict)
        else model
        if isinstance(model, list | tuple)
        else ()
    ):
        yield from _parts(value)


def _test_size(config: Config) -> int:
    """Short side that the config's own test pipeline gives; 800 where it says none."""
    for step in config.get("test_pipeline", []):
        if step["type"] == "Resize" and "scale" in step:
            return int(min(step["scale"]))
    return 800


def _class_names(config: Config) -> tuple[str, ...]:
    """Class names of a config's dataset: its own, or COCO's. Raises ``KeyError`` where the model
    has no masks."""
    head = config.model.get("roi_head", config.model)[
        "mask_head" if "roi_head" in config.model else "bbox_head"
    ]
    dataset = config.get("test_dataloader", config.get("val_dataloader", {})).get("dataset", {})
    if names := dataset.get("metainfo", {}).get("classes"):
        return (names,) if isinstance(names, str) else tuple(names)
    count = int((head[0] if isinstance(head, list) else head)["num_classes"])
    coco = tuple(CocoDataset.METAINFO["classes"])
    return coco if count == len(coco) else tuple(f"class {number}" for number in range(count))
