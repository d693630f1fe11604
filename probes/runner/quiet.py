"""mmengine's Runner of things that are built already, whose words go to log files and which leaves
nothing global behind."""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import MessageHub, MMLogger
from mmengine.logging.logger import MMFormatter
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn


class QuietRunner(Runner):
    """A Runner that trains a model where it is, and logs where mmengine's current logger does."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        return MMLogger.get_current_instance()

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        return model  # mmengine would move it to a device of its own choice

    def _log_env(self, env_cfg: dict) -> None:
        """mmengine asks compilers for their versions here; a run records its environment
        elsewhere."""

    def dump_config(self) -> None:
        """The resolved config is an artifact of the run, written by whoever tracks it."""


@contextmanager
def quietly(folders: Sequence[Path]) -> Iterator[None]:
    """In the block mmengine's log, and the warnings of mmengine, mmseg and mmdet about their own
    internals, go to a file in each folder (``TIME/TIME.log``), and afterwards mmengine's global
    instances (logger, hub, visualizer) are those of before."""
    managers = (MMLogger, MessageHub, Visualizer, DefaultScope)
    before = [set(manager._instance_dict) for manager in managers]
    logger = MMLogger.get_instance(uuid.uuid4().hex)
    now = time.strftime("%Y%m%d_%H%M%S")
    logger.handlers = []
    for folder in dict.fromkeys(folders):
        path = Path(folder, now, f"{now}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(MMFormatter(color=False, datefmt="%Y/%m/%d %H:%M:%S"))
        logger.addHandler(handler)

    def to_log(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
    ) -> None:
        logger.debug(f"{filename}:{lineno}: {category.__name__}: {message}")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = to_log  # type: ignore[assignment]
            yield
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        for manager, known in zip(managers, before, strict=True):
            for name in set(manager._instance_dict) - known:
                manager._instance_dict.pop(name)
