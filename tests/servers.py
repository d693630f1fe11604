"""Servers that tests and fault harnesses share."""

from __future__ import annotations

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
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


def free_port() -> int:
    """A TCP port that is free on loopback at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """A real ``mlflow server`` on ``backend`` (default: SQLite in ``folder``) that can be ended and
    started again.

    Attributes:
        address: where it answers, also after it was started again.
    """

    def __init__(self, folder: Path, backend: str = "") -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--workers",
            "1",
            "--host",
            "127.0.0.1",
        ]
        self.command += [
            "--port",
            str(self.port),
            "--backend-store-uri",
            backend or f"sqlite:///{folder}/server.db",
        ]
        self.command += ["--artifacts-destination", str(folder / "artifacts")]

    def start(self) -> None:
        """Until it answers."""
        # without the seven processes that would wait for jobs of MLflow's judges of language models
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 90
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
        """To all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self, number: int = signal.SIGTERM) -> None:
        """By a signal, and by force where that is not enough."""
        self.send(number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.wait()


@contextmanager
def mlflow_server(folder: Path, backend: str = "") -> Iterator[str]:
    """An ``MlflowServer`` while in use; yields its address."""
    server = MlflowServer(folder, backend)
    server.start()
    try:
        yield server.address
    finally:
        server.end()


NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code></Error>"  # as S3 says it


class FileServer(ThreadingHTTPServer):
    """Files of a folder over HTTP, as any object store gives them: ranges, ETags and conditions; a
    context manager.

    Attributes:
        address: where it answers; ranges, conditions: whether it knows of them.
        version: how it says a file's, ``ETag``, ``Last-Modified`` or not at all.
        busy: how many requests it refuses with 503 from now on; asked: (method, path, range) of
            each request.
        cut: after how many bytes of an answer it hangs up, once; moved: path → where it redirects
            to.
    """

    def __init__(
        self, folder: Path, *, ranges: bool = True, version: str = "ETag", conditions: bool = True
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Files)
        self.folder, self.ranges, self.version, self.conditions = (
            folder,
            ranges,
            version,
            conditions,
        )
        self.address, self.busy, self.closed = f"http://127.0.0.1:{self.server_port}", 0, False
        self.asked: list[tuple[str, str, str]] = []
        self.cut, self.moved = 0, dict[str, str]()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients may hang up."""


class _Files(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body of an answer are 40 ms apart
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        server, asked = self.server, self.headers.get("Range", "")
        path = server.folder / urlsplit(self.path).path.lstrip("/")
        server.asked.append((self.command, self.path, asked))
        if server.closed:
            self.close_connection = True
            return None
        if where := server.moved.get(self.path):
            return self._send(302, b"", {"Location": where})
        if server.busy or not path.is_file():
            server.busy = max(0, server.busy - 1)
            return self._send(503, b"", {}) if path.is_file() else self._send(404, NO_SUCH_KEY, {})
        data, etag = path.read_bytes(), f'"{path.stat().st_mtime_ns:x}"'
        date = formatdate(path.stat().st_mtime, usegmt=True)
        headers = (
            {server.version: {"ETag": etag}.get(server.version, date)} if server.version else {}
        )
        if server.conditions and (
            self.headers.get("If-Match", etag) != etag
            or self.headers.get("If-Unmodified-Since", date) != date
        ):
            return self._send(412, b"", headers)
        if server.ranges and asked and self.headers.get("If-Range", etag) in (etag, date):
            first, last = (
                int(word or len(data)) for word in asked.removeprefix("bytes=").split("-")
            )
            part = data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
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
