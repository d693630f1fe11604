"""Importing this module registers every dataset, probe and suite; nothing else does. It imports nothing that computes."""

import benchmark.suites.mini  # noqa: F401
import benchmark.suites.own  # noqa: F401
import benchmark.suites.paper  # noqa: F401
import probes.catalog  # noqa: F401
