"""Servers that tests and fault harnesses share."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


def free_port() -> int:
    """A TCP port that is free on loopback at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """A real ``mlflow server`` on ``backend`` (default: SQLite in ``folder``), restartable."""

    def __init__(self, folder: Path, backend: str = "") -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        command = f"-m mlflow server --workers 1 --host 127.0.0.1 --port {self.port}"
        backend = backend or f"sqlite:///{folder}/server.db"
        artifacts = str(folder / "artifacts")
        self.command = [sys.executable, *command.split(), "--backend-store-uri", backend]
        self.command += ["--artifacts-destination", artifacts]

    def start(self) -> None:
        """Start it and wait until it answers."""
        # without seven processes for jobs of MLflow's language-model judges
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2).read()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.end()
                    raise RuntimeError((self.folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.3)

    def send(self, number: int) -> None:
        """Send a signal to all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal, and kill it after a time-out."""
        self.send(number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.wait()


@contextmanager
def mlflow_server(folder: Path, backend: str = "") -> Iterator[str]:
    """Run an ``MlflowServer``; yields its address."""
    server = MlflowServer(folder, backend)
    server.start()
    try:
        yield server.address
    finally:
        server.end()


class FileServer(ThreadingHTTPServer):
    """Serves a folder like the Hugging Face hub, with ranges and ETags; a context manager.

    Attributes:
        address: its URL.
        ranges: whether it supports ranges.
        busy: number of requests that it will refuse with 503.
        requests: (method, path, range) of each request.
        cut: number of bytes of a response after which it hangs up, once.
        moved: path → where it redirects to.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Files)
        self.folder, self.ranges, self.busy, self.cut, self.closed = folder, True, 0, 0, False
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, str]] = []
        self.moved: dict[str, str] = {}
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Ignore clients that hang up."""


class _Files(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which delays the body by 40 ms
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        server, byte_range = self.server, self.headers.get("Range", "")
        path = server.folder / urlsplit(self.path).path.lstrip("/")
        server.requests.append((self.command, self.path, byte_range))
        if server.closed:
            self.close_connection = True
            return None
        if where := server.moved.get(self.path):
            return self._send(302, b"", {"Location": where})
        if server.busy or not path.is_file():
            server.busy = max(0, server.busy - 1)
            if path.is_file():
                return self._send(503, b"", {})
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": "0" * 40}
        if server.ranges and byte_range and self.headers.get("If-Range", etag) == etag:
            first, last = byte_range.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last or len(data)) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self._send(206 if part else 416, part, headers)
        return self._send(200, data, headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data[: self.server.cut or None])
            if data and self.server.cut:
                self.server.cut, self.close_connection = 0, True
