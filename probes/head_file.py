"""Files of trained heads, which are stored with their runs."""

from __future__ import annotations

import ast
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from cliptex_common.errors import UserError
from cliptex_common.files import sha256_file
from cliptex_common.secrets import hide_secrets
from probes.base import Head
from reports.artifacts import HEAD


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
        return Head(load_file(path), metadata, sha256_file(path))
    except (OSError, SafetensorError, KeyError, TypeError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is no head of a task's run ({type(error).__name__})") from error


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
