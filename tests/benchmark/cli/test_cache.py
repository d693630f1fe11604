"""``cache ls|rm|check`` on a real home: features, a world, weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from backbones import Checkpoint, save_checkpoint
from benchmark.__main__ import main
from benchmark.cell import cell_locks
from probes.features.store import CacheKey, get_or_build
from tests.backbones.mini import CONFIG, DATA, mini_clip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path))
    (tmp_path / "mini" / "abc").mkdir(parents=True)
    (tmp_path / "mini" / "abc" / "picture.png").write_bytes(bytes(1000))
    path = tmp_path / "weights" / "clip.safetensors"
    save_checkpoint(Checkpoint(path, mini_clip().state_dict(), "open_clip/Mini", CONFIG, DATA))
    return tmp_path


def store(number: int = 0):
    recipe = CacheKey(
        "embeddings", f"clip on toys {number}", {"number": number}, ("fp32",), [16] * 3
    )
    return get_or_build(
        recipe,
        lambda wanted: [(i, [torch.full((4,), float(i))], {}) for shard in wanted for i in shard],
    )


def test_ls_names_everything_with_its_size(capsys, home):
    store().close()
    assert main(["cache", "ls", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["about"]) for row in rows] == [
        ("features", "embeddings: clip on toys 0"),
        ("mini", "worlds"),
        ("weights", "backbones' weights"),
    ]
    assert rows[1]["size"] == 1000 and rows[1]["name"] == "abc"
    assert main(["cache", "ls"]) == 0
    shown = capsys.readouterr().out
    assert "clip on toys 0" in shown and "clip.safetensors" in shown and "of at most" in shown


def test_rm_takes_names_kinds_and_ages(capsys, home):
    first, second = store(0), store(1)
    first.close()
    second.close()
    assert main(["cache", "rm"]) == 2 and "say what to remove" in capsys.readouterr().err
    assert (
        main(["cache", "rm", "nothing"]) == 2
        and "nothing cached is called" in capsys.readouterr().err
    )
    assert main(["cache", "rm", first.folder.name[:12], "--yes"]) == 0
    assert not first.folder.exists() and second.folder.exists()
    assert main(["cache", "rm", "--older-than", "1"]) == 0 and second.folder.exists()
    os.utime(second.folder / "used", (1000, 1000))
    assert (
        main(["cache", "rm", "--older-than", "1", "--kind", "features", "--yes"]) == 0
        and not second.folder.exists()
    )
    assert (home / "mini" / "abc").exists()
    assert main(["cache", "rm", "mini/abc", "--yes"]) == 0 and not (home / "mini" / "abc").exists()


def test_rm_shows_what_goes_and_asks(capsys, home, monkeypatch):
    assert main(["cache", "rm", "--kind", "mini"]) == 2
    told = capsys.readouterr()
    assert "would remove mini/abc (0.0 MB; worlds)" in told.out and "--yes" in told.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, there in (("", True), ("n", True), ("y", False)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert (
            main(["cache", "rm", "--kind", "mini"]) == 0 and (home / "mini/abc").exists() == there
        )
    assert "removed 1\n" in capsys.readouterr().out


def test_what_is_in_use_stays(capsys):
    kept = store()
    assert (
        main(["cache", "rm", "--kind", "features"]) == 1
        and "in use and stays" in capsys.readouterr().out
    )
    assert kept.folder.exists()


def test_check_reads_every_byte(capsys, home):
    kept = store()
    kept.close()
    assert main(["cache", "check"]) == 0 and "2 things are complete" in capsys.readouterr().out
    shard = kept.folder / "00000.safetensors"
    stat = shard.stat()
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    with shard.open("r+b") as file:
        file.write(data)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # neither size nor time tells
    os.truncate(home / "weights" / "clip.safetensors", 2000)
    assert main(["cache", "check"]) == 1
    shown = capsys.readouterr().out
    assert "clip.safetensors" in shown


def test_a_cell_that_runs_keeps_what_it_goes_on_from(capsys, home):
    for name in ("one", "two"):
        (home / "work" / name).mkdir(parents=True)
        (home / "work" / name / "training-state.pth").write_bytes(bytes(10))
    with cell_locks(["one"]):
        assert main(["cache", "rm", "--kind", "work", "--yes"]) == 1
        shown = capsys.readouterr().out
        assert (
            "work/one is in use and stays" in shown
            and "would remove work/two" in shown
            and "removed 1\n" in shown
        )
        assert (home / "work/one/training-state.pth").exists() and not (home / "work/two").exists()
    assert (
        main(["cache", "rm", "--kind", "work", "--yes"]) == 0 and not (home / "work/one").exists()
    )


def test_what_another_process_uses_stays_until_it_ends(capsys, home):
    """The world and the weights of a run, whose units look at them again and again."""
    used = [str(home / "mini" / name) for name in ("abc", "later")]
    code = "import sys; from pathlib import Path; from common.locks import mark_in_use\n"
    code += f"for each in {used!r}: mark_in_use(Path(each))\nprint(1, flush=True); sys.stdin.read()"
    user = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert user.stdout.read(1) == b"1"
    for words in ([], ["--dry-run"]):
        assert main(["cache", "rm", "mini/abc", *words]) == 1
        assert (
            "mini/abc is in use and stays" in capsys.readouterr().out
            and (home / "mini/abc/picture.png").exists()
        )
    user.kill()
    user.wait()
    assert main(["cache", "rm", "mini/abc", "--dry-run"]) == 0
    assert (
        "would remove mini/abc" in capsys.readouterr().out
        and (home / "mini/abc/picture.png").exists()
    )
    assert main(["cache", "rm", "mini/abc", "--yes"]) == 0 and not (home / "mini/abc").exists()
    assert not list((home / "users").iterdir())


def test_a_dry_run_tells_features_in_use_from_others(capsys):
    first, second = store(0), store(1)
    first.close()
    assert main(["cache", "rm", "--kind", "features", "--dry-run"]) == 1
    shown = capsys.readouterr().out
    assert (
        f"would remove features/{first.folder.name}" in shown
        and f"{second.folder.name} is in use and stays" in shown
    )
    assert first.folder.exists() and second.folder.exists()


@pytest.mark.parametrize("kind", ["features", "mini", "weights"])
def test_of_a_link_only_the_link_goes(capsys, home, tmp_path_factory, kind):
    theirs = tmp_path_factory.mktemp("theirs")
    (theirs / "big").write_bytes(bytes(1000))
    (home / kind).mkdir(exist_ok=True)
    for name, target in {"linked": theirs, "dangling": theirs / "gone"}.items():
        (home / kind / name).symlink_to(target)
        assert (
            main(["cache", "rm", name, "--yes"]) == 0 and "removed 1\n" in capsys.readouterr().out
        )
        assert not (home / kind / name).is_symlink()
    assert (theirs / "big").stat().st_size == 1000
