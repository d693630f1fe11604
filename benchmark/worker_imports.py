"""Importing this module imports all that units of work compute with: once for the workers of this
machine, which are forked from the process that did (see ``benchmark.local``)."""

import gc
import signal
from contextlib import suppress
from importlib import import_module

from reports.store import sqlite_file, tracking_uri

# A signal to the process group is meant for the workers, which save their state. This process, from
# which they are forked, ignores it: if it ended, the main process would take them for dead.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

gc.set_threshold(50_000, 20, 20)  # as in the main process
with suppress(Exception):
    if sqlite_file(tracking_uri()) is None:  # a file needs no MLflow
        import_module("mlflow.tracking")
for name in (
    "benchmark.cell",
    "benchmark.stages",
    "probes.dense.probe",
    "probes.detection.probe",
    "probes.train.loop",
):
    with suppress(Exception):  # a library that cannot be imported fails the units that need it
        import_module(name)

gc.collect()
gc.freeze()  # a collection in a worker would write to the pages that it shares, and so copy them
