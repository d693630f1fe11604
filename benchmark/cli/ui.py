"""``ui``: MLflow's own UI on the right store, on loopback, opened on an experiment's runs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from benchmark.cli.options import FLAG, add_tracking, number
from benchmark.cli.parser import with_examples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ui``."""
    with_examples(
        parser,
        "--experiment paper",
        "--tracking-uri sqlite:////data/mlflow.db --port 5001 --no-open",
    )
    parser.add_argument(
        "--port",
        type=number(1, 65535),
        default=5000,
        metavar="N",
        help="of its address (default: 5000)",
    )
    parser.add_argument("--no-open", **FLAG, help="print the address, open no browser")
    add_tracking(parser, shown="as `report` chooses")


def main(options: argparse.Namespace) -> int:
    """Run ``mlflow ui`` until it is interrupted."""
    import socket

    from benchmark.execution.progress import console
    from common.secrets import HIDDEN, hide_secrets
    from reports.errors import TrackingError
    from reports.mlflow.client import connect, tracking_uri

    uri = tracking_uri(options.tracking_uri)
    connect(uri)  # makes and migrates a new database, says what is wrong with a bad one
    if uri.startswith(("http://", "https://")):
        link = _link(
            hide_secrets(uri).replace(f"{HIDDEN}@", ""), uri, options.experiment
        )  # the browser asks who you are
        console.print(
            f"the store is a server with its own UI: open {link}", soft_wrap=True, markup=False
        )
        _open(link, options)
        return 0
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", options.port)) == 0:
            raise TrackingError(f"port {options.port} is taken; choose another with --port")
    link = _link(f"http://127.0.0.1:{options.port}", uri, options.experiment)
    console.print(f"MLflow on {hide_secrets(uri)}: open {link} (Ctrl-C ends it)")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(options.port),
    ]
    # not as an argument, which everybody on this machine sees
    # and without the seven processes that would wait for jobs of MLflow's judges of language models
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
    }
    server = subprocess.Popen(command, env=environment)
    try:
        _open(link, options, server)
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        return 0


def _link(ui: str, uri: str, experiment: str | None) -> str:
    """The runs of an experiment; without one, MLflow's first page: an experiment alone would open
    on its language-model view."""
    from reports.errors import TrackingError
    from reports.mlflow.query import Store
    from reports.mlflow.views import runs_link, save_view
    from reports.selection import default_experiments

    store = Store(uri)
    try:
        (name,) = [experiment] if experiment else default_experiments(store)
    except TrackingError:  # nothing was run yet
        return ui
    identity = store.experiment_ids([name])[name]
    save_view(store.client, identity)
    return runs_link(ui, store.client, identity)


def _open(link: str, options: argparse.Namespace, server: subprocess.Popen | None = None) -> None:
    """Show it in the user's browser, where there is a screen, as soon as the server answers."""
    import time
    import urllib.request
    import webbrowser

    screen = (
        sys.platform in ("darwin", "win32")
        or os.environ.get("DISPLAY")
        or os.environ.get("WAYLAND_DISPLAY")
    )
    if options.no_open or not screen:
        return
    while server is not None and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{options.port}/health", timeout=2).close()
            break
        except OSError:
            time.sleep(0.3)
    if server is None or server.poll() is None:
        webbrowser.open(link)
