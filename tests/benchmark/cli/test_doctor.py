"""``doctor`` says what is there, what will fail and what to do, and makes nothing but what it
removes again."""

from __future__ import annotations

import json
import sqlite3
import sys
from importlib import metadata

import pytest

from benchmark.__main__ import main
from benchmark.cli import doctor
from reports.mlflow.client import known_schemas
from tests.probes.datasets.make import make_camvid, make_voc


@pytest.fixture
def diagnose(tmp_path, monkeypatch, capsys):
    """Run it on a folder of its own; returns the exit code and the findings by name."""
    monkeypatch.setattr(doctor, "WRITE_SECONDS", 0.02)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def run(*words: str) -> tuple[int, dict[str, dict[str, str]]]:
        code = main(["doctor", "--json", *words])
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (code == 0)
        return code, {each["name"]: each for each in told["findings"]}

    return run


def database(path, schema: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values (?)", (schema,))


def test_everything_here(diagnose, tmp_path):
    make_camvid(tmp_path / "data/camvid")
    make_voc(tmp_path / "data/VOCdevkit/VOC2012")
    (tmp_path / "data/ade/ADEChallengeData2016").mkdir(parents=True)
    code, found = diagnose("--data-root", str(tmp_path / "data"))
    assert (
        code == 1
        and found["ade20k"]["state"] == "bad"
        and "images/validation is missing" in found["ade20k"]["todo"]
    )
    assert (
        found["camvid"]["state"] == "ok"
        and found["voc"]["state"] == "warn"
        and "3 of 1449" in found["voc"]["found"]
    )
    assert "--partial" in found["voc"]["todo"] and "coco" in found["datasets"]["found"]
    assert {
        each["state"]
        for name, each in found.items()
        if name in ("python", "torch", "mmlab", "locks")
    } == {"ok"}
    assert "MB/s" in found["home"]["found"] and "not there yet" in found["mlflow"]["found"]
    assert not list(tmp_path.glob("mlflow.db*")), "looking makes no store"
    assert not list((tmp_path / "home").glob(".doctor*"))


def test_lines_for_people(diagnose, capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "ok   python" in told and "→ --data-root DIR looks" in told


@pytest.mark.parametrize(
    ("schema", "state", "todo"),
    [(-1, "ok", ""), (-2, "warn", "migrates"), ("ffffffffffff", "bad", "--upgrade mlflow")],
)
def test_a_store_of_another_version(diagnose, tmp_path, schema, state, todo):
    database(tmp_path / "mlflow.db", known_schemas()[schema] if isinstance(schema, int) else schema)
    code, found = diagnose()
    assert found["mlflow"]["state"] == state and todo in found["mlflow"]["todo"]
    assert code == (state == "bad")


def test_a_server_that_is_not_there(diagnose):
    code, found = diagnose("--tracking-uri", "http://user:secret@127.0.0.1:9")
    assert (
        code == 1
        and "start the server" in found["mlflow"]["todo"]
        and "secret" not in json.dumps(found)
    )
    assert diagnose("--tracking-uri", "./mlruns")[1]["mlflow"]["found"].startswith(
        "'./mlruns' is no MLflow database"
    )


def test_a_home_that_cannot_be(diagnose, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "file/home"))
    code, found = diagnose()
    assert code == 1 and "set CLIPTEX_HOME" in found["home"]["todo"]


def test_a_library_that_is_broken(diagnose, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    code, found = diagnose()
    assert code == 1 and found["torch"]["state"] == "bad" and "install" in found["torch"]["todo"]
    assert found["ray"]["state"] == "ok", "the rest is looked at"


def test_gpus_and_one_that_is_taken(diagnose, monkeypatch):
    free = [70e9, 10e9]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: "H100")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda number: (free[number], 80e9))
    code, found = diagnose()
    assert (
        code == 0
        and found["cuda:0"]["state"] == "ok"
        and "70.0 of 80.0 GB" in found["cuda:0"]["found"]
    )
    assert found["cuda:1"]["state"] == "warn" and "another process" in found["cuda:1"]["todo"]


def test_two_mmlabs(diagnose, monkeypatch):
    real = metadata.distributions
    monkeypatch.setattr(
        doctor.metadata,
        "distributions",
        lambda **kw: [1] if kw["name"] == "mmcv" else list(real(**kw)),
    )
    version = metadata.version
    monkeypatch.setattr(
        doctor.metadata, "version", lambda name: "2.2.0" if name == "mmcv" else version(name)
    )
    code, found = diagnose()
    assert code == 1 and "pip uninstall mmcv" in found["mmlab"]["todo"]


@pytest.mark.parametrize(
    ("script", "state", "said"),
    [("echo 'gpu* 8 nodes'", "ok", "gpu* 8"), ("exit 1", "warn", "sinfo")],
)
def test_slurm(tmp_path, monkeypatch, script, state, said):
    for name in ("sinfo", "sbatch"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    pytest.importorskip("submitit")
    found = doctor.slurm()
    assert found.state == state and said in found.found
