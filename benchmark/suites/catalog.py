"""Importing this module registers every dataset, probe and suite; nothing else does. It imports
nothing that computes."""

import benchmark.suites.mini  # first: of suites that have the same tasks, a run takes it

# isort: split
import benchmark.suites.card
import benchmark.suites.own
import benchmark.suites.paper
import benchmark.suites.patches
import benchmark.suites.profile
import benchmark.suites.shifts
import benchmark.suites.zeroshot  # noqa: F401
import probes.catalog  # noqa: F401
