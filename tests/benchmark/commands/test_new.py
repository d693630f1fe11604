"""``new``: files that load as plugins as they are. (Their conformance: test_conformance,
test_experts, test_fourth_task, tests/docs/test_examples.)"""

from __future__ import annotations

from pathlib import Path

import pytest

import backbones
from benchmark.commands.new import NAMES
from benchmark.parser import main
from cliptex_common import registry as plugins
from cliptex_common.registry import load_plugins


@pytest.mark.parametrize("kind", NAMES)
def test_a_file_registers_the_name_and_is_short(kind, workdir, capsys):
    assert main(["new", kind, "one-of-mine"]) == 0
    assert "wrote one-of-mine.py" in capsys.readouterr().out
    text = Path("one-of-mine.py").read_text()
    assert text.count("\n") < 60 and NAMES[kind] not in text
    if kind == "backbone":  # used by the name of its class
        assert backbones.create("one-of-mine.py:OneOfMine").depth == 4
        return
    load_plugins(["one-of-mine.py"])
    (plugin,) = plugins.LOADED.values()
    (registry, _), *_ = plugin.entries  # a head has a probe for each kind of dataset, too
    assert registry.kind == kind.replace("-", " ")
    assert all("one-of-mine" in name for _, name in plugin.entries)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("new backbon mine", "no template for 'backbon'; did you mean backbone"),
        ("new probe My_Probe", "name 'My_Probe': use lower-case letters, digits and dashes"),
        ("new probe mine --out there.py", "there.py exists already"),
        ("new dataset voc", "dataset 'voc' exists already; choose another name"),
        ("new backbone tensor", "name 'tensor' means something else in the file; choose another"),
    ],
)
def test_wrong_input_is_one_line(workdir, refused, command, message):
    Path("there.py").touch()
    refused(command, message)
    assert [path.name for path in workdir.iterdir()] == ["there.py"]
