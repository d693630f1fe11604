"""Which process runs a trial, and whether it still exists – as far as this machine can say."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from reports.tracking import alive, process_name


@functools.cache
def machine() -> str:
    """This machine (or container): pids only mean something within one boot and one pid namespace, and host names repeat."""
    facts = [socket.gethostname()]
    try:
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        facts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    except OSError:  # no /proc: the host name must do
        pass
    return "/".join(facts)


def this_process() -> dict[str, str]:
    """What a trial remembers of the process that runs it."""
    return {"machine": machine(), "process": process_name(os.getpid())}


def gone(process: Mapping[str, str]) -> bool:
    """True when the process was on this machine and no longer exists; other machines' are left to their heartbeats."""
    return process.get("machine") == machine() and not alive(process.get("process", ""))
