"""The benchmark: ``python -m benchmark``, or ``from benchmark import evaluate, InLoop …``."""

from importlib import import_module
from typing import Any

from cliptex_common import registry
from cliptex_common.registry import keep_importable

_MODULES = {
    "compare": "api",
    "evaluate": "api",
    "load_plugins": "api",
    "InLoop": "in_loop",
    "LightningProbe": "in_loop",
    "TransformersProbe": "in_loop",
}
__all__ = list(_MODULES)

# A plugin may be the config file of a probe. By name, because this package is imported without
# probes: the reader is imported when a plugin is loaded.
registry.READERS.append("probes.dense.config_probe:register_config")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # imported when asked for: commands start without them
    return getattr(import_module(f"benchmark.{_MODULES[name]}"), name)


keep_importable(
    {
        "benchmark.execution": "benchmark.executor",
        "benchmark.execution.base": "benchmark.executor",
        "benchmark.execution.options": "benchmark.executor",
        "benchmark.executor_options": "benchmark.executor",
        "benchmark.execution.progress": "benchmark.progress",
        "benchmark.execution.unit": "benchmark.unit",
        "benchmark.suites.catalog": "benchmark.catalog",
        "benchmark.suites.paper": "benchmark.catalog",
        "benchmark.suites.registry": "benchmark.suites",
        "cliptex_common.visible_devices": "cliptex_common.process",
    }
)
