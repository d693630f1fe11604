"""Importing this module registers every dataset, probe, suite and expert; nothing else does."""

import benchmark.suites.mini  # noqa: F401
import probes.catalog
import probes.experts  # noqa: F401
