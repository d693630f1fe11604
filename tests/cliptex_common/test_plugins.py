"""Plugins: what is refused, what a file registers, and what the registry knows of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cliptex_common import registry
from cliptex_common.errors import UserError
from cliptex_common.registry import Registry, instance_of

ENTRIES: Registry[str] = Registry("thing", "no-such-group", instance_of(str, None))
ENTRIES.register("ours", "a")
ENTRIES.register_lazy("lazy", "no_such_module:THING", "ours, too")
REGISTER = "from tests.cliptex_common.test_plugins import ENTRIES\nENTRIES.register("


@pytest.fixture
def write(tmp_path):
    """Writes a file of this source; conftest removes what it registers."""

    def write(source, name="mine.py"):
        path = tmp_path / name
        path.write_text(source)
        return path

    return write


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nimport no_such_module", ":2: ModuleNotFoundError: No module named"),
        ("x = 1\ndef (", ":2: SyntaxError"),
        ("raise SystemExit(0)", ":1: SystemExit"),
        ("x = 1", ": it registers nothing"),
        (f"{REGISTER}'two', 'a')\nENTRIES.register('two', 'b')", ":3: thing 'two' exists already"),
        (f"{REGISTER}'ours', 'b')", ":2: thing 'ours' exists already; choose another name"),
        (f"{REGISTER}'lazy', 'b')", ":2: thing 'lazy' exists already"),
        (f"{REGISTER}'number', 3)", ":2: TypeError: 'number' is 3, no builtins.str"),
    ],
)
def test_a_broken_plugin_is_one_line_and_leaves_nothing(write, source, message):
    path = write(source)
    with pytest.raises(UserError) as raised:
        registry.load(path)
    assert f"plugin {path}" in str(raised.value) and message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(ENTRIES) == ["ours"] and not registry.plugin_sources()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/proc/version"), "not a regular file"),
    ],
    ids=["missing", "pipe", "of the kernel"],
)
def test_what_is_no_file_is_not_read(tmp_path, make, reason):
    make(path := tmp_path / "mine.py")
    with pytest.raises(UserError, match=f"cannot read .*: {reason}"):
        registry.load(path)


def test_a_plugin_that_never_ends_is_interrupted(write, monkeypatch):
    monkeypatch.setenv(registry.TIMEOUT_VARIABLE, "0.1")
    message = rf"mine.py:2: it has not ended after 0.1 s; .* {registry.TIMEOUT_VARIABLE}"
    with pytest.raises(UserError, match=message):
        registry.load(write("x = 1\nwhile x: x = 1"))
    monkeypatch.delenv(registry.TIMEOUT_VARIABLE)
    registry.load(write(f"{REGISTER}'mine', 'a')"))
    assert ENTRIES["mine"] == "a"


ENDED: list[int] = []
CATCHING = """from tests.cliptex_common.test_plugins import ENDED
while not ENDED:
    try:
        while not ENDED: pass
    except BaseException:
        pass
"""


def test_a_plugin_that_catches_the_time_limit_ends_the_process(write, monkeypatch, capsys):
    monkeypatch.setenv(registry.TIMEOUT_VARIABLE, "0.1")
    monkeypatch.setattr(registry, "CATCHES", 1)
    monkeypatch.setattr(os, "_exit", ENDED.append)
    with pytest.raises(UserError):
        registry.load(path := write(CATCHING))
    assert ENDED == [2] and f"error: plugin {path}: it has not" in capsys.readouterr().err


def test_the_origin_of_an_entry_is_the_files_sha256(write):
    path = write(f"{REGISTER}'mine', 'a')")
    registry.load(path)
    (digest,) = ENTRIES.origin("mine").values()
    assert ENTRIES.find("mine") == "a" and len(digest) == 64 and ENTRIES.origin("ours") == {}
    with pytest.raises(UserError, match=f"'mine' exists already, of plugin {path}"):
        ENTRIES.register("mine", "ours, imported later")
    del ENTRIES["mine"]
    assert ENTRIES.register("mine", "b") and ENTRIES.origin("mine") == {}


def test_what_a_plugin_imports_is_not_of_the_plugin(write, tmp_path, monkeypatch):
    write(f"{REGISTER}'imported', 'c')", "imported_by_mine.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.load(write(f"import imported_by_mine\n{REGISTER}'mine', 'a')"))
    assert ENTRIES.pop("imported") == "c" and ENTRIES.origin("imported") == {}


def test_an_edited_plugin_replaces_what_it_registered(write):
    path = write(f"{REGISTER}'mine', 'a')")
    registry.load(path)
    before = ENTRIES.origin("mine")
    registry.load(path)
    assert ENTRIES.origin("mine") == before
    registry.load(write(f"{REGISTER}'mine', 'b')\nENTRIES.register('more', 'c')"))
    assert (ENTRIES["mine"], ENTRIES["more"]) == ("b", "c") and ENTRIES.origin("mine") != before
    registry.load(write(f"{REGISTER}'mine', 'b')"))
    assert "more" not in ENTRIES


def test_an_entry_of_this_project_is_refused_though_nothing_has_imported_it(tmp_path):
    """A lookup in ``$CLIPTEX_PLUGINS`` imports the project's entries first."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from probes.datasets.base import DatasetSpec\nfrom probes.registry import DATASETS\n"
        "DATASETS.register('voc', DatasetSpec('voc', 'mine', 'segmentation', 'voc', None))"
    )
    code = "from probes.registry import DATASETS; DATASETS.find('mine')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, registry.PLUGINS_VARIABLE: str(path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "mine.py:3: dataset 'voc' exists already" in done.stderr


def test_plugins_of_the_environment_are_imported_for_names_that_are_not_there(write, monkeypatch):
    paths = [write(f"{REGISTER}'{name}', 'a')", f"{name}.py") for name in ("first", "second")]
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, os.pathsep.join(map(str, paths)))
    assert ENTRIES.find("ours") == "a" and not registry.plugin_sources()
    assert ENTRIES.find("second") == "a" and {"first", "second"} <= set(ENTRIES)
    with pytest.raises(UserError, match="no thing 'third'"):
        ENTRIES.find("third")
