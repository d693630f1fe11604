"""Trained heads, kept with their runs: a head and the backbone that it was trained on, as one that
predicts images."""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

import backbones
from backbones import Backbone, UserError
from probes.base import Context, Head
from probes.image_level.linear import LinearHeads, Standardiser
from probes.image_level.settings import Encoding

FILE = "head/head.safetensors"  # of a task's run
Picture = str | Path | np.ndarray  # a file, or (H, W, 3) uint8 RGB


class Predictor(ABC):
    """A frozen backbone with a trained head.

    Attributes:
        task: what it was trained on; classes: their names, in the order of the predictions'
            numbers.
        backbone: on ``device``.
    """

    def __init__(self, head: Head, backbone: Backbone, device: torch.device) -> None:
        self.task, self.classes, self.device = (
            head.about["task"],
            tuple(head.about["classes"]),
            device,
        )
        self.backbone = backbone.to(device)

    @abstractmethod
    def __call__(self, image: Picture) -> Any:
        """What the head says of an image, at the image's own resolution.

        Returns:
            segmentation: (H, W) int64 classes; depth: (H, W) float32 metres; normals: (H, W, 3)
                float32 unit vectors;
            detection: ``boxes`` (N, 4) float32 x1 y1 x2 y2 in pixels, ``labels`` (N,) int64,
            ``scores`` (N,) float32 and, of a mask head, ``masks`` (N, H, W) bool; classification:
            (classes,) float32 logits.
        """


def load_predictor(
    run: str | Path,
    backbone: Backbone | None = None,
    device: str = "cpu",
    tracking_uri: str | None = None,
) -> Predictor:
    """The head of a finished task.

    Args:
        run: id of the task's MLflow run, or a file ``head.safetensors`` of one.
        backbone: that it was trained on; None: made as the run made it.
        tracking_uri: the store; None as for ``benchmark run``.

    Raises:
        UserError: the run kept no head, or the backbone has other weights.
        TrackingError: the store cannot be used.
    """
    head = read_head(Path(run)) if Path(run).is_file() else _fetch(str(run), tracking_uri)
    about, place = head.about, torch.device(device)
    backbone = backbone or backbones.create(**about["backbone"])
    if backbone.weights.sha256 != about["weights.sha256"]:
        raise UserError(
            f"{backbone.name!r} has weights {backbone.weights.sha256[:12]}, the head of"
            f" {about['task']} was trained on {about['weights.sha256'][:12]}; give that backbone"
        )
    kind = _Linear if "encoding" in about else _OfMMLab
    return kind(head, backbone, place)


def _fetch(run: str, tracking_uri: str | None) -> Head:
    from reports.mlflow.client import connect
    from reports.mlflow.client import tracking_uri as store

    client = connect(store(tracking_uri))
    if FILE not in {one.path for one in client.list_artifacts(run, FILE.rpartition("/")[0])}:
        raise UserError(
            f"run {run} kept no head: name a finished run of a task whose probe trains one (not a"
            " parent run)"
        )
    with TemporaryDirectory() as folder:
        return read_head(Path(client.download_artifacts(run, FILE, folder)))


def write_head(head: Head, path: Path) -> None:
    """As safetensors; what it is stands in the file's metadata, as a Python literal."""
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in head.tensors.items()
    }
    save_file(tensors, path, {"head": repr(head.about)})


def read_head(path: Path) -> Head:
    """Raises ``UserError`` for a file that holds none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = ast.literal_eval(file.metadata()["head"])
            return Head({name: file.get_tensor(name) for name in file.keys()}, about)  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, TypeError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} is no head that a task's run kept ({type(error).__name__})"
        ) from error


def about_head(context: Context, **more: Any) -> dict[str, Any]:
    """What is said of any head; the values are Python literals."""
    given = {
        name: str(v) if isinstance(v, Path) else v for name, v in context.backbone_config.items()
    }
    return {
        "task": context.data.spec.name,
        "kind": context.data.spec.kind,
        "classes": tuple(context.data.classes),
        "backbone": given,
        "weights.sha256": context.backbone.weights.sha256,
        **more,
    }


def mmlab_head(model: torch.nn.Module, config: Config, context: Context) -> Head:
    """The head of a model that MMEngine trained: all of it but the frozen backbone, and the config
    of a model that encodes images itself, also where features were kept."""
    data = config.val_dataloader.dataset.to_dict()
    parts = config.model.to_dict()
    if encoder := data.get("encoder"):
        rounded = {"rounded": "fp16"} if data["dtype"] == "fp16" else {}
        parts = _with_backbone(parts, {**encoder["backbone"], **rounded})
        if parts["data_preprocessor"]["type"] == "StackFeatures":
            parts["data_preprocessor"] = encoder["data_preprocessor"]
        data = data["dataset"]
    about = about_head(
        context,
        scope=config.default_scope,
        imports=list(config.custom_imports.imports),
        model=parts,
        pipeline=[part for part in data["pipeline"] if part["type"] != "LoadGroundTruth"],
    )
    return Head(dict(model.state_dict()), about)


def _with_backbone(parts: Mapping[str, Any], backbone: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        key: _with_backbone(part, backbone) if isinstance(part, dict) else part
        for key, part in parts.items()
    }
    return dict(backbone) if found.get("type") == "CachedFeatures" else found


def linear_head(heads: LinearHeads, number: int, columns: slice, context: Context) -> Head:
    """One classifier of a grid, on ``columns`` of the encoded features."""
    tensors = {
        "mean": heads.standardise.mean,
        "scale": heads.standardise.scale,
        "weight": heads.weights[number],
        "bias": heads.biases[number],
    }
    encoding = asdict(context.settings.encoding(context.device.type))
    ends = (columns.start, columns.stop)
    return Head(tensors, about_head(context, encoding=encoding, columns=ends))


class _OfMMLab(Predictor):
    def __init__(self, head: Head, backbone: Backbone, device: torch.device) -> None:
        import importlib

        super().__init__(head, backbone, device)
        from probes.runner import bridge

        # isort: split
        from mmengine.dataset import Compose
        from mmengine.registry import MODELS, DefaultScope

        about = head.about
        self.kind, self.scope = about["kind"], about["scope"]
        for module in about["imports"]:
            importlib.import_module(module)
        bridge.share(about["backbone"], backbone)
        with DefaultScope.overwrite_default_scope(self.scope):
            self.model: Any = MODELS.build(Config({"model": about["model"]}).model)
            self.pipeline = Compose(about["pipeline"][1:])
            self.load = Compose(about["pipeline"][:1])
        self.model.load_state_dict(head.tensors, strict=True)
        self.model.to(device).eval()

    @torch.no_grad()
    def __call__(self, image: Picture) -> Any:
        from mmengine.dataset import pseudo_collate
        from mmengine.registry import DefaultScope

        facts: dict[str, Any] = {"img_id": 0, "image": "", "img_path": ""}
        if isinstance(image, np.ndarray):
            facts |= {
                "img": image[..., ::-1].copy(),
                "img_shape": image.shape[:2],
                "ori_shape": image.shape[:2],
            }
        else:
            facts |= {"img_path": str(image), "image": str(image)}
            facts = self.load(facts)
        # as in training: heads of dense probes compute in bf16 on a GPU
        half = self.scope == "mmseg" and self.device.type == "cuda"
        with (
            DefaultScope.overwrite_default_scope(self.scope),
            torch.autocast("cuda", torch.bfloat16) if half else nullcontext(),
        ):
            (sample,) = self.model.test_step(pseudo_collate([self.pipeline(facts)]))
        if self.kind == "detection":
            found = sample.pred_instances
            names = {"boxes": "bboxes", "labels": "labels", "scores": "scores", "masks": "masks"}
            return {
                name: found[theirs].cpu().numpy()
                for name, theirs in names.items()
                if theirs in found
            }
        field = {"segmentation": "sem_seg", "depth": "depth_map", "normals": "normal_map"}[
            self.kind
        ]
        maps = sample.get(f"pred_{field}").data.cpu().numpy()
        return maps.transpose(1, 2, 0) if self.kind == "normals" else maps[0]


class _Linear(Predictor):
    @torch.no_grad()
    def __init__(self, head: Head, backbone: Backbone, device: torch.device) -> None:
        super().__init__(head, backbone, device)
        tensors = {name: tensor.to(device) for name, tensor in head.tensors.items()}
        standardise = Standardiser(tensors["mean"], tensors["scale"])
        self.heads = LinearHeads(standardise, [tensors["weight"]])
        self.heads.biases[0].copy_(tensors["bias"])
        self.how, self.columns = Encoding(**head.about["encoding"]), slice(*head.about["columns"])

    @torch.inference_mode()
    def __call__(self, image: Picture) -> np.ndarray:
        from backbones.cliptex.protocols import Silent
        from probes.features.cost import EncodeRun
        from probes.image_level.encode import encode_images

        with TemporaryDirectory() as folder:
            if isinstance(image, np.ndarray):
                from PIL import Image

                path = Path(folder) / "image.png"
                Image.fromarray(image).save(path)
            else:
                path = Path(image)
            features = encode_images(
                self.backbone, [path], EncodeRun(self.device, 0, Silent()), self.how
            )
        return self.heads(features[:, self.columns].to(self.device))[0, 0].cpu().numpy()
