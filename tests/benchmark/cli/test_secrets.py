"""Passwords and tokens of the tracking store: in no stream, file, tag or argument of any
process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.__main__ import main
from benchmark.cli import ui
from tests.probes.datasets.make import make_imagefolder
from tests.servers import mlflow_server

RUN = [
    "run",
    "--task",
    "imagefolder/linear",
    "--backbone",
    "random",
    "--data-root",
    ".",
    "--device",
    "cpu",
    "--partial",
]
RUN += [word for each in ("epochs=1", "size=32") for word in ("--set", each)]
PASSWORD = "hunter2-@-secret"  # as it is, and as an address has it
FORMS = (PASSWORD.encode(), PASSWORD.replace("@", "%40").encode())


def arguments() -> bytes:
    """Of all processes of this machine, as everybody sees them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:  # it has ended
            continue
    return b"\n".join(found)


@pytest.mark.slow
def test_a_run_says_and_keeps_no_secret(tmp_path):
    """With workers, an error that tells the address, and everything that is left on disk, the
    server's files among it."""
    make_imagefolder(tmp_path / "imagefolder")
    (tmp_path / "tmp").mkdir()
    with mlflow_server(tmp_path) as address:
        uri = address.replace("://", f"://bob:{PASSWORD.replace('@', '%40')}@")
        variables = {
            "MLFLOW_TRACKING_URI": uri,
            "CLIPTEX_HOME": str(tmp_path / "home"),
            "TMPDIR": str(tmp_path / "tmp"),
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "false",
        }
        command = [
            sys.executable,
            "-m",
            "benchmark",
            *RUN,
            "--jobs",
            "2",
            "--executor-arg",
            "cpus=2",
            "--json",
            "out.json",
        ]
        with (tmp_path / "said").open("wb") as said:
            run = subprocess.Popen(
                command, cwd=tmp_path, env={**os.environ, **variables}, stdout=said, stderr=said
            )
            seen = arguments()
            while run.poll() is None:
                seen += arguments()
                try:
                    run.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
        assert run.returncode == 0, (tmp_path / "said").read_text()
    assert b"imagefolder/linear" in seen  # it was looked at
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"out.json", "server.db", "said", "metrics.json"} <= {path.name for path in files}
    found = {str(path): path.read_bytes() for path in files} | {"arguments": seen}
    assert [name for name, content in found.items() if any(form in content for form in FORMS)] == []
    assert (
        b"http://***@127.0.0.1" in found[str(tmp_path / "said")]
    )  # MLflow's own line, which was asked for here


@pytest.mark.parametrize(
    "words",
    [
        ["report", "--tracking-uri", "http://127.0.0.1:9/?password=hunter22"],
        ["report", "--tracking-uri", "http://hunter22@127.0.0.1:9"],
        ["report", "--tracking-uri", "http://bob:hunter22@127.0.0.1:nine"],
        ["report", "--tracking-uri", "http://bob:hunt/hunter22@127.0.0.1:9"],
        ["report", "--tracking-uri", "bob:hunter22@host"],
        [
            "report",
            "--tracking-uri",
            "postgresql://bob:hunter22@127.0.0.1:9/db?sslpassword=hunter22",
        ],
        ["report", "--tracking-uri", "mysql+nothing://bob:hunter22@127.0.0.1:9/db"],
        ["sweep", "status", "--storage", "postgresql://bob:hunter22@127.0.0.1:9/db"],
        ["sweep", "status", "--storage", "bob:hunter22@host"],
        ["sweep", "status", "--storage", "mysql://bob:hunter22@host"],
    ],
)
def test_an_address_that_does_not_work_is_told_without_its_secret(
    words, capfd, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(words) == 2
    said = capfd.readouterr()
    assert "hunter22" not in said.out + said.err and said.err.count("\n") == 1


def test_the_line_that_goes_on_has_no_secret(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ui, "main", interrupted)
    assert main(["ui", "--tracking-uri", "http://bob:hunter22@host"]) == 130
    assert capsys.readouterr().err.endswith(
        "Go on with: python -m benchmark ui --tracking-uri http://***@host\n"
    )


def test_the_ui_is_started_without_a_secret_among_its_arguments(monkeypatch, tmp_path, capsys):
    started = {}

    class Server:
        def __init__(self, command, env):
            started.update(command=command, env=env)

        def wait(self):
            return 0

    monkeypatch.setattr(ui.subprocess, "Popen", Server)
    monkeypatch.setattr("reports.mlflow.client.connect", lambda uri: None)
    monkeypatch.setattr(ui, "_link", lambda page, uri, experiment: page)
    uri = "postgresql://bob:hunter22@host/db"
    assert main(["ui", "--tracking-uri", uri]) == 0
    assert (
        "hunter22" not in " ".join(started["command"])
        and started["env"]["MLFLOW_BACKEND_STORE_URI"] == uri
    )
    assert main(["ui", "--tracking-uri", "http://hunter22@host"]) == 0
    told = capsys.readouterr().out
    assert "hunter22" not in told and "open http://host\n" in told
