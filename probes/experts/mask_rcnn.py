"""``mask-rcnn``: semantic maps from MMDetection's or torchvision's instances (He, Gkioxari, Dollár,
Girshick, ICCV 2017).

Instances are merged into one hard map, the one with the higher score over the others. The expert is
in this package because MMDetection is used here; ``probes.experts`` registers it.

torchvision's checkpoints are ``maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth``,
``maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth`` and others that were trained with its references, as
bare state dicts or as its training script saves them.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from backbones.checkpoint import Checkpoint, load_checkpoint
from backbones.cliptex.experts.base import BACKGROUND, Expert
from cliptex_common.errors import UserError, first_line, suggest
from cliptex_common.files import canonical_json, sha256_file
from cliptex_common.images import UNKNOWN_CLASS
from cliptex_common.settings import Probability, settings_dataclass
from probes.mmdet import mmdet


@settings_dataclass
class MergeSettings:
    """How instances become labels.

    Attributes:
        score_threshold: instances of at least this score are labelled.
        ignore_threshold: where the best instance has a score between this and ``score_threshold``,
            the pixel is ignored; below it is background.
    """

    score_threshold: Probability = 0.5
    ignore_threshold: Probability = 0.2


class MaskRCNN(Expert):
    """Mask R-CNN of torchvision, or any instance segmenter of MMDetection, with its weights.

    Args:
        model: of the config of the network, with all that decides its instances; JSON-able.

    Attributes:
        class_of_label: (labels,) which class of a map each label of the network is.
    """

    name = "mask-rcnn"
    task = "seg"
    settings_type = MergeSettings
    settings: MergeSettings
    net: Any
    class_of_label: np.ndarray

    def __init__(
        self, settings: MergeSettings, classes: tuple[str, ...], model: Mapping[str, Any]
    ) -> None:
        super().__init__(settings, classes)
        if len(classes) > UNKNOWN_CLASS:
            raise UserError(
                f"mask-rcnn: {len(classes) - 1} classes; at most {UNKNOWN_CLASS - 1} fit a map of 8"
                " bits"
            )
        # plain JSON, as part of the identity
        self.model_config: dict[str, Any] = json.loads(canonical_json(model))

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "model": self.model_config}

    def trunk(self) -> Iterable[torch.nn.Module]:
        parts = [getattr(self.net, name, None) for name in ("backbone", "neck")]
        return [part for part in parts if part is not None]

    @abstractmethod
    def instances(self, images: Tensor) -> list[dict[str, Tensor]]:
        """The instances in images (N, 3, H, W) uint8 RGB: of each image ``masks`` (n, H, W) bool,
        ``scores`` (n,) and ``labels`` (n,) from 1; those of a score below ``ignore_threshold`` may
        be left out."""

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        size = (int(images.shape[-2]), int(images.shape[-1]))
        low, high = self.settings.ignore_threshold, self.settings.score_threshold
        maps = []
        for result in self.instances(images):
            is_labelled = (result["scores"] >= low).nonzero().squeeze(1)
            masks, scores, labels = (
                result[name][is_labelled].cpu().numpy() for name in ("masks", "scores", "labels")
            )
            maps.append(merge(masks, scores, self.class_of_label[labels], size, high, low))
        return {"seg": np.stack(maps)}

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> MaskRCNN:
        """Published weights.

        Args:
            source: a checkpoint of torchvision; or ``CONFIG:CHECKPOINT``, with a ``.py`` config
                file of MMDetection, which is run, or the name of one that comes with it such as
                ``mask-rcnn_r50_fpn_1x_coco``.
        Raises:
            UserError: a file is missing, or the weights are those of another model.
        """
        name, colon, checkpoint = source.partition(":")
        expert: MaskRCNN
        if not colon and Path(source).suffix in (".pth", ".pt", ".safetensors"):
            model_name, weights = "torchvision's Mask R-CNN", load_checkpoint(source)
            expert = TorchvisionMaskRCNN.of(weights, source)
        else:
            path = find_config(name)
            model_name = path.stem
            if not colon:
                raise UserError(
                    f"mask-rcnn needs the weights of {model_name}: download its .pth from"
                    f" MMDetection's model zoo and give mask-rcnn={name}:FILE"
                )
            weights = load_checkpoint(checkpoint)
            expert = MMDetMaskRCNN.of(path)
        try:
            expert.net.load_state_dict(weights.state)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[1].strip()[:150]
            raise UserError(
                f"{weights.path} does not hold the weights of {model_name} ({reason}); check both"
            ) from error
        expert.source = source
        return expert.freeze(device)


class TorchvisionMaskRCNN(MaskRCNN):
    """torchvision's; ``model`` is ``torchvision_config``'s."""

    def __init__(
        self, settings: MergeSettings, classes: tuple[str, ...], model: Mapping[str, Any]
    ) -> None:
        super().__init__(settings, classes, model)
        self.net = build_torchvision(self.model_config)
        # labels that torchvision has no name for are background
        names = torchvision_labels(self.model_config["num_classes"])
        indices = [classes.index(name) if name in classes else 0 for name in names]
        self.class_of_label = np.array(indices)

    def instances(self, images: Tensor) -> list[dict[str, Tensor]]:
        return torchvision_instances(self.net, images, self.settings.ignore_threshold)

    @classmethod
    def of(cls, weights: Checkpoint, source: str) -> Self:
        """The expert of a checkpoint, with random weights. Raises ``UserError`` for another's."""
        if (model := torchvision_config(weights)) is None:
            raise UserError(
                f"{source} is no Mask R-CNN of torchvision; MMDetection's are given as"
                f" CONFIG:{source}"
            )
        names = [name for name in torchvision_labels(model["num_classes"]) if name != "N/A"]
        return cls(MergeSettings(), (BACKGROUND, *names[1:]), model)


class MMDetMaskRCNN(MaskRCNN):
    """MMDetection's; ``model`` is its config with the ``pipeline`` that images pass before it."""

    def __init__(
        self, settings: MergeSettings, classes: tuple[str, ...], model: Mapping[str, Any]
    ) -> None:
        super().__init__(settings, classes, model)
        network = {key: part for key, part in self.model_config.items() if key != "pipeline"}
        with DefaultScope.overwrite_default_scope("mmdet"):
            self.net = MODELS.build(Config(network)._cfg_dict)
            self.prepare = Compose(model["pipeline"])
        if type(getattr(self.net, "roi_head", None)) is mmdet.models.StandardRoIHead:
            head = self.net.roi_head.mask_head
            head.predict_by_feat = partial(self._paste, head.predict_by_feat)
        self.class_of_label = np.arange(len(classes))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move all parts; MMEngine's preprocessor notices only its own ``to``."""
        super()._apply(fn, recurse)
        self.net._set_device(self.device)
        return self

    def instances(self, images: Tensor) -> list[dict[str, Tensor]]:
        # MMDetection's images are BGR
        pixels = images.flip(1).permute(0, 2, 3, 1).cpu().contiguous().numpy()
        prepared = [self.prepare({"img": image, "img_id": 0}) for image in pixels]
        instances = [each.pred_instances for each in self.net.test_step(pseudo_collate(prepared))]
        return [
            {"masks": each.masks.bool(), "scores": each.scores, "labels": each.labels + 1}
            for each in instances
        ]

    def _paste(
        self,
        paste: Callable[..., list[Any]],
        mask_preds: Sequence[Tensor],
        results_list: Sequence[Any],
        **options: Any,
    ) -> list[Any]:
        """``paste`` the masks of instances into their images on the CPU, and only of those that are
        labelled: on an accelerator MMDetection waits for it several times an image."""
        masks, results = [], []
        for mask, result in zip(mask_preds, results_list, strict=True):
            result = result.cpu()
            is_labelled = result.scores >= self.settings.ignore_threshold
            masks.append(mask.cpu()[is_labelled])
            results.append(result[is_labelled])
        return paste(masks, results, **options)

    @classmethod
    def of(cls, path: Path) -> Self:
        """The expert of a config file, with random weights."""
        if path.suffix != ".py":
            raise UserError(f"{path} is no .py config; other formats can run code unseen")
        try:
            config = Config.fromfile(path)
            # the checkpoint has all weights: nothing is downloaded
            model = config.model.to_dict()
            model = json.loads(canonical_json(model), object_hook=_without_initial_weights)
            model["pipeline"] = _pipeline(config)
            return cls(MergeSettings(), (BACKGROUND, *_class_names(config)), model)
        except UserError:
            raise
        except Exception as error:  # a config is a program, and may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{path} is no usable config of a model ({reason})") from error


def merge(
    masks: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    size: tuple[int, int],
    score_threshold: float,
    ignore_threshold: float,
) -> np.ndarray:
    """Instances → one hard class map (H, W) uint8: each pixel has its highest-scoring instance.

    Args:
        masks: (N, H, W) bool. scores: (N,) in [0, 1]. classes: (N,) from 1.
        score_threshold, ignore_threshold: a pixel whose best instance has at least the first is of
            its class, at least the second is ignored (255), and with less, or without any instance,
            is background (0).
    """
    merged = np.zeros(size, np.uint8)
    for index in np.argsort(scores, kind="stable"):
        if scores[index] >= ignore_threshold:
            merged[masks[index]] = (
                classes[index] if scores[index] >= score_threshold else UNKNOWN_CLASS
            )
    return merged


def find_config(name: str) -> Path:
    """A config file, by path or by the name of one that comes with MMDetection.

    ``_`` and ``-`` are the same.

    Raises:
        UserError: no such config; suggests the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    folder = Path(mmdet.__file__).parent / ".mim" / "configs"
    configs = {
        path.stem: path for path in sorted(folder.rglob("*.py")) if "_base_" not in path.parts
    }
    stem_of_name = Path(name).stem.replace("_", "-")
    for stem, path in configs.items():
        if stem.replace("_", "-") == stem_of_name:
            return path
    hint = suggest(name, [stem for stem in configs if "mask" in stem])
    raise UserError(f"no MMDetection config {name!r}; {hint}, or give the path of a config file")


def _without_initial_weights(part: dict[str, Any]) -> dict[str, Any]:
    return {name: part[name] for name in part if name not in ("init_cfg", "pretrained")}


def _pipeline(config: Config) -> list[dict[str, Any]]:
    """The config's own test pipeline (COCO's where it has no data) for images in memory, without
    ground truth."""
    if "test_dataloader" not in config:
        config = Config.fromfile(find_config("mask-rcnn_r50_fpn_1x_coco"))
    steps = get_test_pipeline_cfg(config)
    steps = [dict(step) for step in steps[1:] if step["type"] != "LoadAnnotations"]
    return [{"type": "mmdet.LoadImageFromNDArray"}, *steps]


def _class_names(config: Config) -> tuple[str, ...]:
    """Class names of a config's dataset, or COCO's; ``KeyError`` for a model without masks."""
    model = config.model
    head = model.roi_head["mask_head"] if "roi_head" in model else model["bbox_head"]
    dataset = config.get("test_dataloader", config.get("val_dataloader", {})).get("dataset", {})
    if names := dataset.get("metainfo", {}).get("classes"):
        return (names,) if isinstance(names, str) else tuple(names)
    count = int((head[0] if isinstance(head, list) else head)["num_classes"])
    coco = tuple(mmdet.datasets.CocoDataset.METAINFO["classes"])
    return coco if count == len(coco) else tuple(f"class {number}" for number in range(count))


TORCHVISION_TYPE = "torchvision.MaskRCNN"
# the start of the sha256 of the published file, as in its name
PUBLISHED_V1 = "bf2d0c1e"
_MARK = "roi_heads.box_predictor.cls_score.weight"
_V2 = "roi_heads.box_head.0.0.weight"  # the second version's box head has convolutions


def torchvision_config(weights: Checkpoint) -> dict[str, Any] | None:
    """The config that ``build`` takes for a checkpoint; None if it is not of such a model.

    The frozen norms of torchvision's first published weights add nothing to the variance; those of
    every other first version, trained with torchvision's references, add 1e-5.
    """
    state = weights.state
    if _MARK not in state:
        return None
    model: dict[str, Any] = {
        "type": TORCHVISION_TYPE,
        "version": 2 if _V2 in state else 1,
        "num_classes": len(state[_MARK]),
    }
    if model["version"] == 1:
        published = sha256_file(weights.path).startswith(PUBLISHED_V1)
        model["eps"] = 0.0 if published else 1e-5
    return model


def build_torchvision(model: Mapping[str, Any]) -> detection.MaskRCNN:
    """The model of a config with random weights; ``num_classes`` counts the background."""
    classes = model["num_classes"]
    if model["version"] == 2:
        return detection.maskrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=classes
        )
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = model["eps"]
    return detection.MaskRCNN(backbone, classes)


def torchvision_labels(num_classes: int) -> tuple[str, ...]:
    """Names of the model's labels: COCO's 91, eleven of them ``N/A``, or plain numbers."""
    coco = detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_classes == len(coco):
        return tuple(coco)
    return ("background", *(f"class {number}" for number in range(1, num_classes)))


def torchvision_instances(
    model: detection.MaskRCNN, images: Tensor, least: float
) -> list[dict[str, Tensor]]:
    """The instances in images (N, 3, H, W) uint8 whose score is at least ``least``.

    Their masks are pasted into the images on the CPU: torchvision reads the sides of each box as
    numbers, and an accelerator would be waited for at each of them.

    Returns:
        for each image ``masks`` (n, H, W) bool, ``scores`` (n,) and ``labels`` (n,) from 1, on the
        CPU.
    """
    device = next(model.parameters()).device
    batch, _ = model.transform(list(images.to(device).to(torch.float32) / 255))
    maps = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, maps)
    results, _ = model.roi_heads(maps, proposals, batch.image_sizes)
    results = [{name: each.cpu() for name, each in result.items()} for result in results]
    results = [
        {name: each[result["scores"] >= least] for name, each in result.items()}
        for result in results
    ]
    sizes = [tuple(images.shape[2:])] * len(images)
    results = model.transform.postprocess(results, batch.image_sizes, sizes)
    return [{**result, "masks": result["masks"][:, 0] > 0.5} for result in results]
