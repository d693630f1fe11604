"""Trained heads, stored with their runs, and the predictors that they make with their backbone."""

from __future__ import annotations

import ast
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import backbones
from backbones import Backbone, UserError
from cliptex_common import plugins
from cliptex_common.device import prefers_bf16
from probes.base import Context, EncodeRun, Head
from probes.dense.tasks import DENSE_TASKS
from probes.image_level.attentive import stored_head, token_encoder
from probes.image_level.encode import ImageViews, encoder
from probes.image_level.linear import LinearHeads
from probes.image_level.settings import Encoding
from reports.artifacts import HEAD

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
    head = read_head(Path(run)) if Path(run).is_file() else download_head(str(run), tracking_uri)
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
    kind = _ImageLevelPredictor if "encoding" in metadata else _MMLabPredictor
    return kind(head, backbone, torch.device(device))


def download_head(run: str, tracking_uri: str | None) -> Head:
    """The head of a finished task's run. Raises as ``load_predictor``."""
    from reports.mlflow.client import connect
    from reports.mlflow.client import tracking_uri as default_uri

    client = connect(default_uri(tracking_uri))
    if HEAD not in [artifact.path for artifact in client.list_artifacts(run, "head")]:
        raise UserError(
            f"run {run} has no head; name a finished run of a task whose probe trains one (not a"
            " parent run)"
        )
    with TemporaryDirectory() as folder:
        return read_head(Path(client.download_artifacts(run, HEAD, folder)))


def write_head(head: Head, path: Path) -> None:
    """Write safetensors, with the metadata as a Python literal in the header."""
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in head.tensors.items()
    }
    save_file(tensors, path, {"head": repr(head.metadata)})


def read_head(path: Path) -> Head:
    """A head that ``write_head`` wrote. Raises ``UserError`` for any other file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = ast.literal_eval(file.metadata()["head"])
        return Head(load_file(path), metadata)
    except (OSError, SafetensorError, KeyError, TypeError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is no head of a task's run ({type(error).__name__})") from error


def mmlab_head(model: torch.nn.Module, config: Config, context: Context) -> Head:
    """The head of a model that MMEngine trained: everything but the frozen backbone.

    The config in its metadata is that of the model, which encodes images itself where it is not
    given features.
    """
    pipeline = config.val_dataloader.dataset["pipeline"]
    return Head.of(
        context,
        model.state_dict(),
        scope=config.default_scope,
        imports=list(config.custom_imports.imports),
        model=config.model.to_dict(),
        pipeline=[part for part in pipeline if part["type"] != "LoadGroundTruth"],
    )


class _MMLabPredictor(Predictor):
    def __init__(self, head: Head, backbone: Backbone, device: torch.device) -> None:
        super().__init__(head, backbone, device)
        from probes.runner import bridge

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
        bridge.share(metadata["backbone"], backbone)
        with DefaultScope.overwrite_default_scope(self.scope):
            self.model: Any = MODELS.build(Config({"model": metadata["model"]}).model)
            self.load = Compose(metadata["pipeline"][:1])
            self.prepare = Compose(metadata["pipeline"][1:])
        self.model.load_state_dict(head.tensors, strict=True)
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
        is_half = self.scope == "mmseg" and prefers_bf16(self.device)
        with (
            DefaultScope.overwrite_default_scope(self.scope),
            torch.autocast(self.device.type, torch.bfloat16, enabled=is_half),
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
    def __call__(self, image: Picture) -> np.ndarray:
        with TemporaryDirectory() as folder:
            path = Path(folder, "image.png")
            if isinstance(image, np.ndarray):
                Image.fromarray(image).save(path)
            else:
                path = Path(image)
            run = EncodeRun(self.device, num_workers=0)
            views = ImageViews(run, self.backbone, [path], self.encoding, encode=self.encode)
            (features,) = views.tensors()
        return self.heads(features.float().to(self.device)).flatten().cpu().numpy()
