"""``ui``: MLflow's own UI on the right store, on loopback."""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmark.cli.options import add_tracking


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ui``."""
    add_tracking(parser)
    parser.add_argument("--port", type=int, default=5000)


def main(options: argparse.Namespace) -> int:
    """Run ``mlflow ui`` until it is interrupted."""
    import socket

    from benchmark.execution.progress import console
    from reports.errors import TrackingError
    from reports.mlflow.client import connect, hide_password, tracking_uri

    uri = tracking_uri(options.tracking_uri)
    if uri.startswith(("http://", "https://")):
        console.print(f"the store is a server with its own UI: open {uri}")
        return 0
    connect(uri)  # makes and migrates a new database, says what is wrong with a bad one
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", options.port)) == 0:
            raise TrackingError(f"port {options.port} is taken; choose another with --port")
    console.print(f"MLflow on {hide_password(uri)}: open http://127.0.0.1:{options.port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(options.port)])
    try:
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        return 0
