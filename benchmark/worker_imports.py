"""Importing this module imports all that units of work compute with: once for the workers of this
machine, which are forked from the process that did (see ``benchmark.execution.local``)."""

import gc
from importlib import import_module

for name in (
    "mlflow.tracking",
    "benchmark.probing.unit",
    "benchmark.stages.experts",
    "benchmark.stages.labels",
    "benchmark.stages.weights",
    "probes.dense.probe",
    "probes.detection.probe",
    "probes.runner.training",
):
    import_module(name)

gc.collect()
gc.freeze()  # a collection in a worker would write to the pages that it shares, and so copy them
