"""Passwords and tokens of the tracking store: in no stream, file, tag or process argument."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.commands import looking
from tests.benchmark.run_command import run_command
from tests.probes.datasets.make import make_imagefolder
from tests.servers import mlflow_server

RUN = (
    "run --task imagefolder/linear --backbone random --data-root . --device cpu --partial"
    " --set epochs=1 --set size=32 --jobs 2 --executor-arg cpus=2 --json out.json"
)
PASSWORD = "hunter2-@-secret"
QUOTED = PASSWORD.replace("@", "%40")  # as in an address


def process_arguments() -> bytes:
    """Of all processes of this machine, as everybody sees them."""
    arguments = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments.append(path.read_bytes())
        except OSError:  # it has ended
            continue
    return b"\n".join(arguments)


@pytest.mark.cluster
def test_a_run_shows_and_stores_no_secret(tmp_path, tmp_path_factory):
    """With workers, and everything that is left on disk, the server's files included."""
    make_imagefolder(tmp_path / "imagefolder")
    # short: names of the sockets in it, by which loaders share tensors, have 107 bytes at most
    temporary = tmp_path_factory.mktemp("t")
    with mlflow_server(tmp_path) as address:
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": address.replace("://", f"://bob:{QUOTED}@"),
            "CLIPTEX_HOME": str(tmp_path / "home"),
            "TMPDIR": str(temporary),
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "false",
        }
        command = [sys.executable, "-m", "benchmark", *RUN.split()]
        output = tmp_path / "output"
        with output.open("wb") as file:
            run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file)
            seen = process_arguments()
            while run.poll() is None:
                seen += process_arguments()
                try:
                    run.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
        assert run.returncode == 0, output.read_text()
    assert b"imagefolder/linear" in seen, "the run's own arguments were seen"
    paths = [*tmp_path.rglob("*"), *temporary.rglob("*")]
    files = [path for path in paths if path.is_file()]
    assert {"out.json", "server.db", "output", "metrics.json"} <= {path.name for path in files}
    contents = {str(path): path.read_bytes() for path in files} | {"arguments": seen}
    secrets = PASSWORD.encode(), QUOTED.encode()
    assert not [name for name, text in contents.items() if any(each in text for each in secrets)]
    assert b"http://***@127.0.0.1" in output.read_bytes()  # MLflow's own line


@pytest.mark.parametrize(
    "command",
    [
        "report --tracking-uri http://127.0.0.1:9/?password=hunter22",
        "report --tracking-uri http://hunter22@127.0.0.1:9",
        "report --tracking-uri postgresql://bob:hunter22@127.0.0.1:9/db?sslpassword=hunter22",
        "sweep best --storage postgresql://bob:hunter22@127.0.0.1:9/db",
    ],
)
def test_an_unreachable_address_is_shown_without_its_secret(command, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert run_command(command) == 2
    captured = capfd.readouterr()
    assert "hunter22" not in captured.out + captured.err and captured.err.count("\n") == 1


def test_the_ui_gets_its_secret_by_the_environment(monkeypatch, capsys):
    started = {}

    class Server:
        def __init__(self, command, env):
            started.update(command=command, env=env)

        def wait(self):
            return 0

    monkeypatch.setattr(looking.subprocess, "Popen", Server)
    monkeypatch.setattr("reports.store.open_mlflow", lambda uri: None)
    monkeypatch.setattr(looking, "_link", lambda page, uri, experiment: page)
    uri = "postgresql://bob:hunter22@host/db"
    assert run_command(f"ui --tracking-uri {uri}") == 0
    assert "hunter22" not in " ".join(started["command"])
    assert started["env"]["MLFLOW_BACKEND_STORE_URI"] == uri
    assert run_command("ui --tracking-uri http://hunter22@host") == 0
    output = capsys.readouterr().out
    assert "hunter22" not in output and "open http://host\n" in output
