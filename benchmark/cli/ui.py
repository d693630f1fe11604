"""``ui``: MLflow's own UI on the right store, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Annotated

from pydantic import Field

from benchmark.execution import interrupts
from benchmark.planning.options import TrackingOptions
from cliptex_common.settings import options_dataclass


@options_dataclass
class Ui(TrackingOptions):
    """Open MLflow's own UI on the right store.

    examples:
      python -m benchmark ui --experiment paper
      python -m benchmark ui --tracking-uri sqlite:////data/mlflow.db --port 5001
    """

    port: Annotated[int, Field(ge=1, le=65535)] = 5000
    """port of the UI"""
    experiment: str | None = None
    """MLflow experiment (default: as for `report`)"""

    def main(self) -> int:
        """Run ``mlflow ui`` until it is interrupted, or print the address of a server."""
        from benchmark.execution.progress import console
        from cliptex_common.secrets import HIDDEN, hide_secrets
        from reports.errors import TrackingError
        from reports.mlflow.client import connect, tracking_uri

        uri = tracking_uri(self.tracking_uri)
        connect(uri)  # creates or migrates a database, and reports a bad one
        if uri.startswith(("http://", "https://")):
            server = hide_secrets(uri).replace(f"{HIDDEN}@", "")  # the browser asks for the login
            link = _link(server, uri, self.experiment)
            console.print(f"the store is a server with its own UI: open {link}")
            return 0
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                raise TrackingError(f"port {self.port} is in use; choose another with --port")
        link = _link(f"http://127.0.0.1:{self.port}", uri, self.experiment)
        console.print(f"MLflow on {hide_secrets(uri)}: open {link} (Ctrl-C ends it)")
        command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1"]
        environment = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for judges of LLMs
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": uri,  # everybody on this machine sees arguments
        }
        server_process = subprocess.Popen([*command, "--port", str(self.port)], env=environment)
        try:
            return server_process.wait()
        except KeyboardInterrupt:
            server_process.terminate()
            server_process.wait()
            interrupts.handle_signals()  # Ctrl-C is how it ends
            return 0


COMMAND = Ui


def _link(ui: str, uri: str, experiment: str | None) -> str:
    """The list of an experiment's runs; MLflow opens an experiment on its language-model view."""
    from reports.errors import TrackingError
    from reports.mlflow.query import Store
    from reports.mlflow.views import save_view, view_link
    from reports.selection import default_experiments

    store = Store(uri)
    try:
        (name,) = [experiment] if experiment else default_experiments(store)
    except TrackingError:  # no results yet
        return ui
    identity = store.experiment_ids([name])[name]
    save_view(store.client, identity)
    return view_link(ui, identity)
