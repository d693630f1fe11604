"""mmengine's log and the warnings of its libraries, in files."""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.logging.logger import MMFormatter


@contextmanager
def logging_to(folders: Sequence[Path]) -> Iterator[None]:
    """Within the block mmengine's log, and the warnings of mmengine, mmseg and mmdet about their
    own internals, go to ``TIME/TIME.log`` in each folder and not to the terminal."""
    name = uuid.uuid4().hex
    logger = MMLogger.get_instance(name)  # which becomes mmengine's current logger
    logger.handlers = []
    now = time.strftime("%Y%m%d_%H%M%S")
    for folder in dict.fromkeys(folders):
        path = Path(folder, now, f"{now}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(MMFormatter(color=False, datefmt="%Y/%m/%d %H:%M:%S"))
        logger.addHandler(handler)

    def log_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
    ) -> None:
        logger.debug(f"{filename}:{lineno}: {category.__name__}: {message}")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = log_warning  # type: ignore[assignment]
            yield
    finally:
        for handler in logger.handlers:
            handler.close()
        MMLogger._instance_dict.pop(name)
