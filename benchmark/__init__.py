"""The benchmark: ``python -m benchmark``, or ``from benchmark import evaluate, compare``."""

from typing import Any

from cliptex_common import plugins

__all__ = ["compare", "evaluate", "load_plugins"]

# a file that states a probe's config
plugins.READERS.append("probes.dense.config_probe:register_config")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from benchmark import api  # imported when asked for: commands start without it

    return getattr(api, name)
