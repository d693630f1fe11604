"""``doctor`` reports what is ready, what will fail and what to do, and creates nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import threading
from contextlib import chdir
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata

import pytest
import torch

from benchmark.commands import doctor
from benchmark.parser import main
from cliptex_common.errors import UserError
from probes.predictor import load_head
from reports.records import Cell
from reports.report import ReportRequest, build_report
from reports.store import Store
from reports.tracking import Tracker
from tests.reports.synthetic import write_run


@pytest.fixture
def diagnose(tmp_path, own_home, monkeypatch, capsys):
    """Run it in a folder of its own; returns the exit code and the findings by name."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def run(*words: str) -> tuple[int, dict[str, dict[str, str]]]:
        code = main(["doctor", "--json", *words])
        report = json.loads(capsys.readouterr().out)
        assert report["ok"] == (code == 0)
        return code, {finding["name"]: finding for finding in report["findings"]}

    return run


def test_a_ready_machine(diagnose, capsys, tmp_path):
    code, findings = diagnose()
    assert code == 0
    states = {findings[name]["state"] for name in ("python", "torch", "mmcv", "home")}
    assert states <= {"ok", "warn"}
    assert "first run creates it" in findings["mlflow"]["value"]
    assert not list(tmp_path.glob("mlflow.db*"))
    assert main(["doctor"]) == 0
    assert "ok   python" in capsys.readouterr().out


def test_a_store_that_was_moved_finds_its_artifacts(diagnose, tmp_path):
    """They are beside it, whatever folder a command was called from; what is gone is named."""
    (tmp_path / "caller").mkdir()
    (tmp_path / "old").mkdir()
    with chdir(tmp_path / "caller"):
        tracker = Tracker("my paper", f"sqlite:///{tmp_path}/old/mlflow.db")
        write_run(tracker, "clip", 0, {"voc/linear": 0.6})
    assert not list((tmp_path / "caller").iterdir())
    shutil.move(tmp_path / "old", tmp_path / "new")
    store = f"sqlite:///{tmp_path}/new/mlflow.db"
    request = ReportRequest(["my paper"], tracking_uri=store)

    gone = f"1 of 1 results are gone: {tmp_path}/old/mlruns/my_paper"
    code, findings = diagnose("--tracking-uri", store)
    assert code == 1 and gone in findings["artifacts"]["value"]
    assert any(gone in note for note in build_report(request).notes)
    (cell,) = [run for run in Store(store).runs(["my paper"]) if isinstance(run, Cell)]
    with pytest.raises(UserError, match=re.escape(gone)):
        load_head(cell.run_id, store)

    code, findings = diagnose("--tracking-uri", store, "--repair")
    assert "repaired" in findings["artifacts"]["value"] and findings["artifacts"]["state"] == "ok"
    assert not any("gone" in note for note in build_report(request).notes)
    write_run(Tracker("my paper", store), "random", 0, {"voc/linear": 0.5})
    assert not (tmp_path / "old").exists()


def test_an_unreachable_server(diagnose):
    code, findings = diagnose("--tracking-uri", "http://user:secret@127.0.0.1:9")
    assert code == 1 and "start the server" in findings["mlflow"]["remedy"]
    assert "secret" not in json.dumps(findings)


def test_a_store_that_mlflow_has_dropped(diagnose):
    code, findings = diagnose("--tracking-uri", "./mlruns")
    assert code == 1 and "use sqlite:///FILE.db" in findings["mlflow"]["value"]
    assert not findings["mlflow"]["remedy"], "nothing is to be reinstalled"


def test_a_server_with_a_password(diagnose):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.headers["Authorization"] else 401)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        port = server.server_address[1]
        findings = diagnose("--tracking-uri", f"http://user:secret@127.0.0.1:{port}")[1]
    assert findings["mlflow"]["state"] == "ok"


def test_a_home_that_cannot_be_written(diagnose, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "file/home"))
    code, findings = diagnose()
    assert code == 1 and "set CLIPTEX_HOME" in findings["home"]["remedy"]


def test_a_home_without_locks(diagnose, monkeypatch):
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    value = diagnose()[1]["home"]["value"]
    assert "No locks available" in value and value.endswith("a local disk")


def test_a_broken_library(diagnose, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # its import fails
    code, findings = diagnose()
    assert code == 1 and findings["torch"]["state"] == "bad"
    assert "reinstall" in findings["torch"]["remedy"]
    assert findings["home"]["state"] != "bad", "the rest is checked"


@pytest.mark.parametrize(
    ("free", "state", "text"),
    [(70e9, "ok", "70 of 80 GB"), (10e9, "warn", "10 of 80 GB"), (None, "ok", "H100")],
)
def test_accelerators(diagnose, monkeypatch, free, state, text):
    device = "cliptex_common.device"
    monkeypatch.setattr(f"{device}.current_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(f"{device}.device_count", lambda: 1)
    monkeypatch.setattr(f"{device}.device_name", lambda device: "H100")
    monkeypatch.setattr(f"{device}.memory", lambda device: free and (free, 80e9))
    finding = diagnose()[1]["cuda:0"]
    assert finding["state"] == state and text in finding["value"]
    assert ("CUDA_VISIBLE_DEVICES" in finding["remedy"]) == (state == "warn")


def test_two_distributions_of_one_library(diagnose, monkeypatch):
    distributions = metadata.distributions
    version = metadata.version

    def find(name):
        return [1] if name == "mmcv" else distributions(name=name)

    monkeypatch.setattr(doctor.metadata, "distributions", find)
    monkeypatch.setattr(
        doctor.metadata, "version", lambda name: "2.2" if name == "mmcv" else version(name)
    )
    code, findings = diagnose()
    assert code == 1 and "pip uninstall mmcv" in findings["mmcv"]["remedy"]
