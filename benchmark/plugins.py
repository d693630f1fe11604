"""Plugins of a command or of ``evaluate``; see ``common.plugins``."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from common import plugins

# what registers this project's own entries: imported before plugins, so that a name that exists is
# refused at its line, and the time that these take does not count as the plugin's
OWN = ("backbones.named", "benchmark.catalog", "benchmark.execution", "probes.experts")


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Import the plugins of ``$CLIPTEX_PLUGINS`` and these, in this order.

    Raises:
        UserError: as ``common.plugins.load``.
    """
    paths = [*plugins.paths_in_environment(), *paths]
    if paths:
        for module in OWN:
            import_module(module)
    for path in paths:
        plugins.load(path)
