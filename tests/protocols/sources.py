"""Import the code of published protocols from a checkout, on a machine without a GPU.

Nothing of this suite is imported here: ``tests.performance`` measures a source's memory, too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock


def commit_of(checkout: Path) -> str:
    """The commit of a checkout; empty for an archive, or an installed package."""
    if not (checkout / ".git").exists():
        return ""
    git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def stand_ins(*names: str) -> dict[str, Any]:
    """Modules that a source imports for what is not used of it."""
    return {name: mock.MagicMock() for name in names}


def missing(*names: str) -> list[str]:
    """Those of some packages that are not installed."""
    return [name for name in names if not importlib.util.find_spec(name)]


@contextlib.contextmanager
def with_modules(modules: Mapping[str, Any]) -> Iterator[None]:
    """Import with modules in the place of others; what is imported is forgotten."""
    import torch._dynamo  # noqa: F401  patch.dict would drop it, and it cannot be imported again
    import torchvision.datasets  # noqa: F401

    with mock.patch.dict(sys.modules, modules):
        yield


@contextlib.contextmanager
def importing(*folders: Path) -> Iterator[None]:
    """Import from folders; what is imported is forgotten."""
    with with_modules({}), mock.patch.object(sys, "path", [*map(str, folders), *sys.path]):
        yield


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Code that moves everything to a GPU computes on the CPU."""
    import torch

    with (
        mock.patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self),
        mock.patch.object(torch.nn.Module, "cuda", lambda self, *_, **__: self),
        mock.patch.object(torch.cuda, "synchronize", lambda: None),
        mock.patch.object(torch.cuda, "current_device", lambda: "cpu"),
    ):
        yield


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """A process group of torch's with this process alone."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def logistic_regression(**options: Any) -> Any:
    """scikit-learn's in the place of cuML's, which needs a GPU; the objective is the same."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=options["C"], max_iter=options["max_iter"], tol=options["tol"])
    model.solver_model = SimpleNamespace()
    return model


@contextlib.contextmanager
def capi(regression: Callable[..., Any] = logistic_regression) -> Iterator[None]:
    """CAPI, not compiled, with another regression in the place of cuML's."""
    import torch

    linear = SimpleNamespace(LogisticRegression=regression)
    stubs = {"cuml": SimpleNamespace(linear_model=linear), "cuml.linear_model": linear}
    stubs |= stand_ins("datasets", "datasets.formatting")
    with (
        with_modules(stubs),
        mock.patch.object(torch, "compile", lambda each=None, **_: each or (lambda each: each)),
        on_cpu(),
        one_process(),
    ):
        yield


def hummingbird() -> Any:
    """Open-Hummingbird without PyTorch Lightning."""
    lightning = SimpleNamespace(LightningDataModule=object)
    return with_modules({"pytorch_lightning": lightning})


def dinov2() -> Any:
    """DINOv2 without what trains it."""
    checkpoint = "fvcore.common.checkpoint"
    names = ("fvcore", "fvcore.common", checkpoint, "xformers", "xformers.ops")
    return with_modules(stand_ins(*names))


def probe3d() -> Any:
    """probe3d without its command line, its log and its crops."""
    hydra, utils = ModuleType("hydra"), ModuleType("hydra.utils")
    hydra.main = lambda **options: lambda function: function  # type: ignore[attr-defined]
    utils.instantiate = lambda config, **options: config  # type: ignore[attr-defined]
    mae = "transformers.models.vit_mae.modeling_vit_mae"
    modules = stand_ins("loguru", "omegaconf", "albumentations", mae)
    return with_modules({"hydra": hydra, "hydra.utils": utils, **modules})
