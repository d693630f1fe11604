"""Importing this module registers every dataset, probe and suite; nothing else does."""

import probes.catalog  # noqa: F401
