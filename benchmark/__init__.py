"""The benchmark: ``python -m benchmark``, or ``from benchmark import evaluate, compare``."""

from typing import Any

__all__ = ["compare", "evaluate", "load_plugins"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from benchmark import api  # imported when asked for: commands start without it

    return getattr(api, name)
