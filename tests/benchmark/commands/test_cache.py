"""``cache ls`` and ``cache rm`` on a real home: features, a world, weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from backbones.checkpoint import Checkpoint, save_checkpoint
from benchmark.cell import cell_locks
from probes.features.store import CacheKey, get_or_build
from tests.backbones.mini import CONFIG, DATA, mini_clip
from tests.benchmark.run_command import run_command

PACKAGES = ("benchmark", "sweeps", "probes", "backbones", "reports", "cliptex_common")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path))
    (tmp_path / "mini" / "abc").mkdir(parents=True)
    (tmp_path / "mini" / "abc" / "picture.png").write_bytes(bytes(1000))
    path = tmp_path / "weights" / "clip.safetensors"
    save_checkpoint(Checkpoint(path, mini_clip().state_dict(), "open_clip/Mini", CONFIG, DATA))
    return tmp_path


def build_features(number: int = 0):
    """An open feature store."""
    key = CacheKey("embeddings", f"clip on toys {number}", {"number": number}, ("fp32",), [16] * 3)

    def build(shards):
        return [(i, [torch.full((4,), float(i))], {}) for shard in shards for i in shard]

    return get_or_build(key, build)


def test_ls_lists_everything_with_its_size(capsys):
    build_features().close()
    assert run_command("cache ls --json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["about"]) for row in rows] == [
        ("features", "embeddings: clip on toys 0"),
        ("mini", "rendered world"),
        ("weights", "backbone weights"),
        ("content_hashes", "hashes of images"),
    ]
    assert rows[1]["size"] == 1000 and rows[1]["name"] == "abc"
    assert run_command("cache ls") == 0
    output = capsys.readouterr().out
    assert "clip on toys 0" in output and "clip.safetensors" in output


def test_every_folder_of_the_home_is_listed_and_removed(capsys, home):
    """Those that the sources name, but what running commands need."""
    pattern = r'(?:home\(\)(?:\.absolute\(\))? /|cached_table\()\s*"([\w-]+)"'
    files = chain.from_iterable(Path(package).rglob("*.py") for package in PACKAGES)
    folders = {name for path in files for name in re.findall(pattern, path.read_text())}
    folders -= {"locks", "users", "processes", "tasks"}
    assert {"datasets", "shards", "artifacts", "pair-index"} <= folders
    for name in folders:
        (home / name / "entry").mkdir(parents=True)
    assert run_command("cache ls --json") == 0
    assert {row["kind"] for row in json.loads(capsys.readouterr().out)} == folders
    assert run_command("cache rm --older-than 0 --yes") == 0
    assert not list(home.glob("*/entry"))


def test_rm_takes_names_kinds_and_ages(refused, home):
    first, second = build_features(0), build_features(1)
    first.close()
    second.close()
    refused("cache rm", "choose entries by name")
    assert run_command(f"cache rm {first.folder.name[:12]} --yes") == 0
    assert not first.folder.exists() and second.folder.exists()
    os.utime(second.folder, (1000, 1000))
    assert run_command("cache rm --older-than 1 --kind features --yes") == 0
    assert not second.folder.exists() and (home / "mini" / "abc").exists()
    assert run_command("cache rm mini/abc --dry-run") == 0 and (home / "mini" / "abc").exists()
    assert run_command("cache rm mini/abc --yes") == 0 and not (home / "mini" / "abc").exists()


def test_rm_asks_first(capsys, home, monkeypatch):
    assert run_command("cache rm --kind mini") == 2
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer in ("", "y"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        run_command("cache rm --kind mini")
        assert (home / "mini/abc").exists() == (answer != "y")


@pytest.mark.integration
def test_what_another_process_uses_stays_until_it_ends(capsys, home):
    """The world and the weights of a run, whose units read them again and again."""
    code = "import sys; from pathlib import Path; from cliptex_common.files import mark_in_use\n"
    code += f"mark_in_use(Path({str(home / 'mini/abc')!r}))\nprint(1, flush=True); sys.stdin.read()"
    user = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert user.stdout.read(1) == b"1"
    assert run_command("cache rm mini/abc --yes") == 1
    assert "in use: mini/abc" in capsys.readouterr().out
    assert (home / "mini/abc/picture.png").exists()
    user.kill()
    user.wait()
    assert run_command("cache rm mini/abc --yes") == 0 and not (home / "mini/abc").exists()


def test_open_features_and_unfinished_cells_that_run_stay(capsys, home):
    closed, open_store = build_features(0), build_features(1)
    closed.close()
    cells = home / "work/one", home / "work/two"
    for folder in cells:
        folder.mkdir(parents=True)
    with cell_locks(["one"]):
        assert run_command("cache rm --older-than 0 --yes") == 1
    output = capsys.readouterr().out
    for path, stays in {closed.folder: False, open_store.folder: True, cells[0]: True}.items():
        assert path.exists() == stays == (f"in use: {path.parent.name}/{path.name}" in output)
    assert not cells[1].exists()
