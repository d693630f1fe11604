"""Importing this module registers every dataset, probe and suite; nothing else does."""

import benchmark.mini.suite  # noqa: F401
import probes.catalog  # noqa: F401
