"""The predictors that trained heads make with their backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

import backbones
from backbones import Backbone, UserError
from cliptex_common import plugins
from cliptex_common.device import float32_products, prefers_bf16
from probes.base import EncodeContext, Head
from probes.dense.tasks import DENSE_TASKS
from probes.head_file import load_head
from probes.image_level.attentive import stored_head, token_encoder
from probes.image_level.encode import ImageViews, encoder
from probes.image_level.linear import LinearHeads
from probes.image_level.settings import Encoding

Picture = str | Path | np.ndarray  # a file, or (H, W, 3) uint8 RGB


class Predictor(ABC):
    """A frozen backbone with a trained head.

    Attributes:
        task: name of the dataset that the head was trained on.
        classes: their names, by the numbers in the predictions.
        backbone: on ``device``.
    """

    def __init__(self, head: Head, backbone: Backbone, device: torch.device) -> None:
        self.task: str = head.metadata["task"]
        self.classes: tuple[str, ...] = tuple(head.metadata["classes"])
        self.backbone, self.device = backbone.to(device), device

    @abstractmethod
    def __call__(self, image: Picture) -> Any:
        """Predict an image, at its own resolution.

        Returns:
            segmentation: (H, W) int64 classes; depth: (H, W) float32 metres; normals: (H, W, 3)
            float32 unit vectors; classification: (classes,) float32 logits; detection: ``boxes``
            (N, 4) float32 x1 y1 x2 y2 in pixels, ``labels`` (N,) int64, ``scores`` (N,) float32
            and, of a mask head, ``masks`` (N, H, W) bool.
        """


def load_predictor(
    run: str | Path,
    backbone: Backbone | None = None,
    device: str = "cpu",
    tracking_uri: str | None = None,
) -> Predictor:
    """The predictor of a finished task.

    Args:
        run: id of the task's MLflow run, or a file ``head.safetensors`` of one.
        backbone: that the head was trained on; None to create it as the run did.
        tracking_uri: the store; None as for ``benchmark run``.

    Raises:
        UserError: the run has no head, or the backbone has other weights.
        TrackingError: the store cannot be used.
    """
    head = load_head(run, tracking_uri)
    metadata = head.metadata
    created_by = metadata["backbone"]
    backbone = backbone or backbones.create(**created_by)
    if "layers" in created_by:
        backbone = backbone.at_layers(created_by["layers"])
    sha256, expected = backbone.weights.sha256, metadata["weights.sha256"]
    if sha256 != expected:
        raise UserError(
            f"{backbone.name!r} has weights {sha256[:12]}, the head of {metadata['task']} was"
            f" trained on {expected[:12]}; give that backbone"
        )
    predictor = _ImageLevelPredictor if "encoding" in metadata else _MMLabPredictor
    return predictor(head, backbone, torch.device(device))


class _MMLabPredictor(Predictor):
    def __init__(self, head: Head, backbone: Backbone, device: torch.device) -> None:
        super().__init__(head, backbone, device)
        from probes.train import frozen_backbone

        metadata = head.metadata
        self.kind, self.scope = metadata["kind"], metadata["scope"]
        plugins.load_from_environment()
        for module in metadata["imports"]:
            try:
                import_module(module)
            except ModuleNotFoundError as error:
                raise UserError(
                    f"the head of {self.task} needs {module}; import it, or name its file in"
                    f" {plugins.VARIABLE}"
                ) from error
        frozen_backbone.share(metadata["backbone"], backbone)
        with DefaultScope.overwrite_default_scope(self.scope):
            self.model: Any = MODELS.build(Config({"model": metadata["model"]}).model)
            self.load = Compose(metadata["pipeline"][:1])
            self.prepare = Compose(metadata["pipeline"][1:])
        head.load_into(self.model)
        self.model.to(device).eval()

    @torch.no_grad()
    def __call__(self, image: Picture) -> Any:
        sample: dict[str, Any] = {"img_id": 0, "image": "", "img_path": ""}
        if isinstance(image, np.ndarray):
            shape = image.shape[:2]
            sample |= {"img": image[..., ::-1].copy(), "img_shape": shape, "ori_shape": shape}
        else:
            sample = self.load({**sample, "img_path": str(image), "image": str(image)})
        # as in training: heads of dense probes compute in bf16 on a GPU
        is_bf16 = self.scope == "mmseg" and prefers_bf16(self.device)
        with (
            DefaultScope.overwrite_default_scope(self.scope),
            torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16),
            float32_products(tf32=False),
        ):
            (result,) = self.model.test_step(pseudo_collate([self.prepare(sample)]))
        if self.kind == "detection":
            instances = result.pred_instances
            names = {"boxes": "bboxes", "labels": "labels", "scores": "scores", "masks": "masks"}
            return {
                name: instances[field].cpu().numpy()
                for name, field in names.items()
                if field in instances
            }
        maps = result.get(f"pred_{DENSE_TASKS.find(self.kind).field}").data.cpu().numpy()
        return maps[0] if len(maps) == 1 else maps.transpose(1, 2, 0)


class _ImageLevelPredictor(Predictor):
    """A head on the embedding of an image, or an attentive one on its tokens."""

    @torch.no_grad()
    def __init__(self, head: Head, backbone: Backbone, device: torch.device) -> None:
        super().__init__(head, backbone, device)
        metadata = head.metadata
        self.encoding = Encoding(**metadata["encoding"])
        if pool := metadata.get("pool"):
            self.heads = stored_head(head)
            self.encode = token_encoder(self.backbone, pool)
        else:
            self.heads = LinearHeads.of(head)
            self.encode = encoder(self.backbone, self.encoding)
        self.heads.to(device).eval()

    @torch.inference_mode()
    @float32_products(tf32=False)
    def __call__(self, image: Picture) -> np.ndarray:
        with TemporaryDirectory() as folder:
            path = Path(folder, "image.png")
            if isinstance(image, np.ndarray):
                Image.fromarray(image).save(path)
            else:
                path = Path(image)
            context = EncodeContext(self.device, num_workers=0)
            views = ImageViews(context, self.backbone, [path], self.encoding, encode=self.encode)
            (features,) = views.tensors()
        return self.heads(features.float().to(self.device)).flatten().cpu().numpy()
