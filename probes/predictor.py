"""Files of trained heads, which are stored with their runs, and the predictors that these heads
make with their backbone."""

from __future__ import annotations

import ast
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import backbones
from backbones.backbone import Backbone
from cliptex_common import registry
from cliptex_common.device import float32_products, prefers_bf16
from cliptex_common.errors import UserError, first_line, hide_secrets, report_malformed
from cliptex_common.files import sha256_file
from cliptex_common.settings import one_line_errors
from probes.base import EncodeContext, Head
from probes.dense.tasks import DENSE_TASKS
from probes.image_level.attentive import stored_head, token_encoder
from probes.image_level.encode import ImageViews, encoder
from probes.image_level.linear import LinearHeads
from probes.image_level.settings import Encoding
from probes.matching.poses import stored_mlp
from reports.records import HEAD

TYPES = (torch.float32, torch.int64, torch.bool)  # the last two of counters and masks
# raised by files of another kind; MemoryError and RecursionError by deeply nested metadata
INVALID = (
    *(OSError, SafetensorError, LookupError, TypeError, SyntaxError, ValueError),
    *(MemoryError, RecursionError),
)


class SharedMetadata(BaseModel):
    """Metadata that every head has, see ``Head.of``."""

    task: str
    kind: str
    classes: tuple[str, ...]
    backbone: dict[str, Any]
    sha256: str = Field(alias="weights.sha256")


def read_head(path: Path) -> Head:
    """A head that ``Head.write`` wrote. Raises ``UserError`` for any other file, and for weights
    that are not finite or not float32."""
    try:
        with safe_open(path, "pt") as file:
            metadata = ast.literal_eval(file.metadata()["head"])
        with one_line_errors():
            SharedMetadata.model_validate(metadata)
        for name, tensor in (tensors := load_file(path)).items():
            if tensor.dtype not in TYPES or not tensor.isfinite().all():
                raise ValueError(f"{name} is not finite in float32")
    except INVALID as error:
        raise UserError(
            f"{path} is no head of a task's run ({first_line(error)}); name a finished run, or its"
            " file"
        ) from error
    return Head(tensors, metadata, sha256_file(path))


def load_head(source: str | Path, tracking_uri: str | None = None) -> Head:
    """The head of a finished task: of its MLflow run, by its id, or in a file ``head.safetensors``.
    Raises as ``load_predictor``."""
    with TemporaryDirectory() as folder:
        path = Path(source)
        if not path.is_file():
            path = _download(str(source), tracking_uri, folder)
        return read_head(path)


def _download(run: str, tracking_uri: str | None, folder: str) -> Path:
    from mlflow.exceptions import MlflowException

    from reports.store import connect, missing_artifacts
    from reports.store import tracking_uri as default_uri

    uri = default_uri(tracking_uri)
    client = connect(uri)
    try:
        files = [artifact.path for artifact in client.list_artifacts(run, "head")]
    except MlflowException as error:
        raise UserError(f"{run} is neither a file nor a run in {hide_secrets(uri)}") from error
    if HEAD not in files:
        if missing := missing_artifacts([client.get_run(run).info.artifact_uri]):
            raise UserError(missing)
        raise UserError(
            f"run {run} has no head; name a finished run of a task whose probe trains one (not a"
            " parent run)"
        )
    return Path(client.download_artifacts(run, HEAD, folder))


Picture = str | Path | np.ndarray  # a file, or (H, W, 3) uint8 RGB


class Predictor(ABC):
    """A backbone with a trained head.

    Attributes:
        task: name of the dataset that the head was trained on.
        classes: their names, by the numbers in the predictions.
        backbone: on ``device``; where the head's task tuned it, with these weights, which
            ``backbones.save_backbone`` writes.
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

        A head of relative poses takes two images, and predicts how the camera turned and moved from
        the first to the second: ``rotation`` (4,) float32, a unit quaternion w x y z, and
        ``translation`` (3,) float32 metres.
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
    name = created_by["name"]
    if not backbone and "hub/" in name:
        raise UserError(
            f"the head of {metadata['task']} was trained on {name}, which runs code that a file"
            f" must not choose; give backbones.create({name!r})"
        )
    backbone = backbone or backbones.create(**created_by)
    if "layers" in created_by:
        backbone = backbone.at_layers(created_by["layers"])
    sha256, expected = backbone.weights.sha256, metadata["weights.sha256"]
    if sha256 != expected:
        raise UserError(
            f"{backbone.name!r} has weights {sha256[:12]}, the head of {metadata['task']} was"
            f" trained on {expected[:12]}; give that backbone"
        )
    # heads on embeddings say how images are encoded; those on maps have a config of MMEngine's
    predictor: type[Predictor] = _MMLabPredictor
    if "encoding" in metadata:
        is_pose = metadata["kind"] == "view-pose"
        predictor = _PosePredictor if is_pose else _ImageLevelPredictor
    with report_malformed(f"the head of {metadata['task']} is damaged", "name another run's"):
        return predictor(head, backbone, torch.device(device))


def _imported_network(name: str) -> type[torch.nn.Module] | None:
    """What a ``type`` that is in no registry may name: a class of networks in an imported module.
    MMEngine would import and call whatever it names, such as ``os.system``."""
    module, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(module), own, None)
    return found if isinstance(found, type) and issubclass(found, torch.nn.Module) else None


# losses of heads that were stored before they were one class: their task, and fixed options
EARLIER_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "DepthObjective": ("depth", {}),
    "DepthBins": ("depth", {"bins_loss": "sig"}),
    "Probe3dDepth": ("depth", {"bins_loss": "probe3d"}),
    "NormalObjective": ("normals", {}),
}


def _as_now(model: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a stored model, whose parts may have names of before."""
    if "decode_head" not in model:
        return dict(model)
    head = dict(model["decode_head"])
    moved = {"loss_images": head.pop("loss_images")} if "loss_images" in head else {}
    loss = head.get("loss_decode")
    if isinstance(loss, Mapping) and loss["type"] in EARLIER_LOSSES:
        task, fixed = EARLIER_LOSSES[loss["type"]]
        options = {"sig_warmup" if name == "warmup" else name: loss[name] for name in loss}
        head["loss_decode"] = {**options, **fixed, "type": "TaskObjective", "task": task}
        head["num_classes"] = MODELS.build(dict(head["loss_decode"])).channels
        head.setdefault("threshold", 0.0)
    return {**model, **moved, "decode_head": head}


class _MMLabPredictor(Predictor):
    def __init__(self, head: Head, backbone: Backbone, device: torch.device) -> None:
        super().__init__(head, backbone, device)
        from probes.train import frozen_backbone

        metadata = head.metadata
        self.kind, self.scope = metadata["kind"], metadata["scope"]
        registry.load_from_environment()
        for module in metadata["imports"]:
            # a file must not choose what is imported: others' modules the user has imported
            if module not in sys.modules and not module.startswith("probes."):
                raise UserError(
                    f"the head of {self.task} needs {module}; import it, or name its file in"
                    f" {registry.PLUGINS_VARIABLE}"
                )
            with suppress(ModuleNotFoundError):  # ours has moved: what it had comes with others
                import_module(module)
        with (
            DefaultScope.overwrite_default_scope(self.scope),
            # whatever the config says, which might name another one
            patch.object(frozen_backbone, "_build", lambda config: backbone),
            patch("mmengine.registry.registry.get_object_from_string", _imported_network),
        ):
            self.model: Any = MODELS.build(Config({"model": _as_now(metadata["model"])}).model)
            self.load = Compose(metadata["pipeline"][:1])
            self.prepare = Compose(metadata["pipeline"][1:])
        head.load_into(self.model)
        self.model.to(device).eval()
        for module in self.model.modules():
            if isinstance(module, frozen_backbone.TunedBackbone):
                self.backbone = module.tuning.merged()

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
        self.backbone = head.tuned(self.backbone).to(device)
        self.encoding = Encoding(**metadata["encoding"])
        if pool := metadata.get("pool"):
            self.heads = stored_head(head)
            self.encode = token_encoder(self.backbone, pool)
        else:
            self.heads = self.heads_of(head)
            self.encode = encoder(self.backbone, self.encoding)
        self.heads.to(device).eval()

    def heads_of(self, head: Head) -> torch.nn.Module:
        return LinearHeads.of(head)

    @torch.inference_mode()
    @float32_products(tf32=False)
    def __call__(self, image: Picture) -> np.ndarray:
        return self.heads(self.features(image)).flatten().cpu().numpy()

    def features(self, image: Picture) -> torch.Tensor:
        """What the head reads of an image, (1, …) float32 on the device."""
        with TemporaryDirectory() as folder:
            path = Path(folder, "image.png")
            if isinstance(image, np.ndarray):
                Image.fromarray(image).save(path)
            else:
                path = Path(image)
            context = EncodeContext(self.device, num_workers=0)
            views = ImageViews(context, self.backbone, [path], self.encoding, encode=self.encode)
            (features,) = views.tensors()
        return features.float().to(self.device)


class _PosePredictor(_ImageLevelPredictor):
    """A head on the embeddings of two views."""

    def heads_of(self, head: Head) -> torch.nn.Module:
        self.columns = slice(*head.metadata["columns"])
        return stored_mlp(head)

    @torch.inference_mode()
    @float32_products(tf32=False)
    def __call__(self, first: Picture, second: Picture) -> dict[str, np.ndarray]:  # type: ignore[override]
        views = [self.features(each)[:, self.columns] for each in (first, second)]
        (pose,) = self.heads(torch.cat(views, dim=1)).cpu()
        rotation = torch.nn.functional.normalize(pose[:4], dim=0)
        return {"rotation": rotation.numpy(), "translation": pose[4:].numpy()}
