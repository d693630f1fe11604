"""Importing this module registers every dataset and every probe of the suite; nothing else does."""

from probes import classification, dense, detection, retrieval, zero_shot  # noqa: F401
from probes.datasets import shipped  # noqa: F401
