"""Importing this module registers every dataset and every probe of the suite; nothing else does."""

from probes import dense, detection, image_level  # noqa: F401
from probes.datasets import shipped  # noqa: F401
