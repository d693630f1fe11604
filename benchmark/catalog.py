"""Importing this module registers every dataset, probe, suite and expert; nothing else does."""

import benchmark.suites.mini
import benchmark.suites.own
import benchmark.suites.paper
import probes.catalog
import probes.experts  # noqa: F401
