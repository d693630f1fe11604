"""Signs of life: does the process that writes a run still exist, wherever it runs?

A process rewrites a small file once a second (``Heartbeat``), and the time goes to MLflow once a
minute with each of its open runs. A run's process is dead when its sign of life is old *and* the
process is known to be gone, or when the sign is older than ``SILENT`` (where the file is in sight)
or ``LIMIT``: host names repeat among containers, pids are used again, and a cluster moves a job to
another node.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

EVERY = 1.0  # seconds between two writings of the file
# seconds after which a sign of life no longer speaks for a process that is known to be gone
OLD = 5.0
# seconds after which a file that is in sight speaks for no process: its machine is gone, or out of
# reach
SILENT = 120.0
LIMIT = 600.0  # the same of what MLflow was told, once a minute
PROCESS_TAG, FILE_TAG, TIME_TAG, HOME_TAG = (
    "process",
    "heartbeat.file",
    "heartbeat.time",
    "heartbeat.home",
)

_current: Heartbeat | None = None


class Heartbeat:
    """This process's sign of life while the block runs: ``path`` is rewritten once a second with
    the fields as they are.

    Args:
        path: JSON; its folder is made. A disk that is full or a folder that is away never ends the
            work.
        fields: anything JSON holds, to begin with; ``update`` changes it.
    """

    def __init__(self, path: Path, **fields: Any) -> None:
        self.path, self.fields = Path(path), fields
        self._over = threading.Event()
        self._before: Heartbeat | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def update(self, **fields: Any) -> None:
        """Change fields; they are written with the next beat."""
        self.fields.update(fields)

    def __enter__(self) -> Heartbeat:
        global _current
        self._before, _current = _current, self
        with suppress(OSError):
            self.path.parent.mkdir(
                parents=True, exist_ok=True
            )  # once: a task that was given up has no folder any more
        self.write()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        global _current
        _current = self._before
        self._over.set()
        self._thread.join()
        self.write()

    def write(self) -> None:
        """Write the file now, whole or not at all."""
        content = {**self.fields, "process": this_process(), "time": time.time()}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with suppress(OSError):
            temporary.write_text(json.dumps(content, default=str), encoding="utf-8")
            temporary.replace(self.path)

    def _beat(self) -> None:
        while not self._over.wait(EVERY):
            self.write()


def read(path: Path | str) -> dict[str, Any]:
    """A heartbeat file's content; empty where there is none that can be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def tags() -> dict[str, str]:
    """What a run remembers of the process that writes it."""
    file = (
        {FILE_TAG: str(_current.path), HOME_TAG: _home(_current.path)}
        if _current is not None
        else {}
    )
    return {PROCESS_TAG: this_process(), TIME_TAG: f"{time.time():.0f}", **file}


def alive(run_tags: Mapping[str, str]) -> bool:
    """Whether the process that writes a RUNNING run with these tags may still exist."""
    process, file = run_tags.get(PROCESS_TAG, ""), run_tags.get(FILE_TAG, "")
    beat = read(file) if file else {}
    if beat.get("process", process) != process:
        return False  # another process has taken this one's work up
    if file and not beat and _home(Path(file)) == run_tags.get(HOME_TAG):
        return False  # its task is over: whoever gave it out has seen it end, or given it up
    age = time.time() - max(_number(beat.get("time")), _number(run_tags.get(TIME_TAG)))
    return age <= (SILENT if beat else LIMIT) and (age <= OLD or not gone(process))


def settle(run_tags: Mapping[str, str]) -> bool:
    """``alive``; where the process is gone but its sign of life is fresh, after it has become
    old."""
    while alive(run_tags):
        if not gone(run_tags.get(PROCESS_TAG, "")):
            return True
        time.sleep(0.2)
    return False


def _home(file: Path) -> str:
    """The name of the folder of all tasks that ``file`` is in: another machine may have one at the
    same path."""
    name = file.parents[1] / ".name"
    with suppress(OSError):
        if file.parents[1].is_dir() and not name.exists():
            with suppress(FileExistsError), name.open("x") as made:
                made.write(uuid.uuid4().hex)
        return name.read_text()
    return "no folder"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


@functools.cache
def machine() -> str:
    """This machine or container: pids only mean something within one boot and one pid namespace,
    and host names repeat."""
    facts = [socket.gethostname()]
    with suppress(OSError):  # no /proc: the host name must do
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        facts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(facts)


def this_process() -> str:
    """This process, by a name that no other has: ``MACHINE|PID:START``."""
    return f"{machine()}|{os.getpid()}:{_start_time(os.getpid())}"


def gone(process: str) -> bool:
    """True when the process was on this machine and no longer exists; of other machines nothing is
    known."""
    where, _, name = process.partition("|")
    pid, _, started = name.partition(":")
    if where != machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    fields = _stat(int(pid))
    if fields and fields[0] == "Z":  # dead, not yet waited for by its parent
        return True
    return bool(started) and _start_time(int(pid)) != started


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty where there is no such process (or no
    /proc)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _start_time(pid: int) -> str:
    """When a process started, in the kernel's ticks."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""
