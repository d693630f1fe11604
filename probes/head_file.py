"""Files of trained heads, which are stored with their runs."""

from __future__ import annotations

import ast
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from cliptex_common.errors import UserError, first_line
from cliptex_common.files import sha256_file
from cliptex_common.secrets import hide_secrets
from cliptex_common.settings import one_line_errors
from probes.base import Head
from reports.artifacts import HEAD

TYPES = (torch.float32, torch.int64, torch.bool)  # the last two of counters and masks
# raised by files of another kind; MemoryError and RecursionError by deeply nested metadata
INVALID = (
    *(OSError, SafetensorError, LookupError, TypeError, SyntaxError, ValueError),
    *(MemoryError, RecursionError),
)


def write_head(head: Head, path: Path) -> None:
    """Write safetensors, with the metadata as a Python literal in the header."""
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in head.tensors.items()
    }
    save_file(tensors, path, {"head": repr(head.metadata)})


class SharedMetadata(BaseModel):
    """Metadata that every head has, see ``Head.of``."""

    task: str
    kind: str
    classes: tuple[str, ...]
    backbone: dict[str, Any]
    sha256: str = Field(alias="weights.sha256")


def read_head(path: Path) -> Head:
    """A head that ``write_head`` wrote. Raises ``UserError`` for any other file, and for weights
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
    Raises as ``probes.predictor.load_predictor``."""
    with TemporaryDirectory() as folder:
        path = Path(source)
        if not path.is_file():
            path = _download(str(source), tracking_uri, folder)
        return read_head(path)


def _download(run: str, tracking_uri: str | None, folder: str) -> Path:
    from mlflow.exceptions import MlflowException

    from reports.mlflow.client import connect
    from reports.mlflow.client import tracking_uri as default_uri

    uri = default_uri(tracking_uri)
    client = connect(uri)
    try:
        files = [artifact.path for artifact in client.list_artifacts(run, "head")]
    except MlflowException as error:
        raise UserError(f"{run} is neither a file nor a run in {hide_secrets(uri)}") from error
    if HEAD not in files:
        raise UserError(
            f"run {run} has no head; name a finished run of a task whose probe trains one (not a"
            " parent run)"
        )
    return Path(client.download_artifacts(run, HEAD, folder))
