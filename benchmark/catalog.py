"""Importing this module registers every dataset, probe and suite; nothing else does."""

import benchmark.mini.suite
import probes.catalog  # noqa: F401
