"""Importing this module registers every dataset, probe and protocol of this package; nothing
else does. Each file in ``probes.datasets.specs`` and ``probes.protocols`` registers its own."""

from importlib import import_module
from pkgutil import iter_modules

from probes import protocols
from probes.datasets import specs
from probes.dense import probe as dense  # noqa: F401
from probes.dense.patches import probe as patches  # noqa: F401
from probes.detection import probe as detection  # noqa: F401
from probes.image_level import probe as image_level  # noqa: F401
from probes.instance_retrieval import probe as instance_retrieval  # noqa: F401
from probes.matching import probe as matching  # noqa: F401

for package in (specs, protocols):
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)
