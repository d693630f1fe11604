"""Importing this module registers every dataset, probe and protocol of this package; nothing
else does. Each file in ``probes.protocols`` registers its own."""

from importlib import import_module
from pkgutil import iter_modules

from probes import protocols
from probes.datasets import (  # noqa: F401
    classification,
    depth,
    detection,
    labels,
    levels,
    objects,
    pairs,
    segmentation,
    shifts,
    triplets,
    webdataset,
)
from probes.dense import probe as dense  # noqa: F401
from probes.dense.patches import probe as patches  # noqa: F401
from probes.detection import probe as detection_probe  # noqa: F401
from probes.image_level import label_sets  # noqa: F401
from probes.image_level import probe as image_level  # noqa: F401
from probes.matching import likeness  # noqa: F401
from probes.matching import probe as matching  # noqa: F401

for module in iter_modules(protocols.__path__, f"{protocols.__name__}."):
    import_module(module.name)
