"""Plugins of commands and of ``evaluate``: every way to name one, in workers, in the identity of
numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import backbones
from backbones.cliptex.recipes import find_recipe
from benchmark import evaluate
from benchmark.parser import main
from benchmark.suites import SUITES
from benchmark.tasks import plan_tasks
from cliptex_common import registry
from cliptex_common.registry import load_plugins
from probes.datasets.base import PreparedDataset
from probes.registry import DATASETS
from tests.benchmark.run_command import listing, runs_of
from tests.probes.datasets.make import make_imagefolder

PLUGIN = """
from dataclasses import dataclass, replace

import backbones
from backbones.cliptex.tasks import TASKS, find_task
from benchmark.suites import Suite, register_suite
from cliptex_common.settings import settings_dataclass
from probes.base import FeatureProbe
from probes.registry import Preset, Protocol, register_protocol
from probes.registry import DATASETS, PROBES, register_dataset, register_probe

KNN = PROBES["classification/knn"]


def build(request):
    random = backbones.find("random")
    return random.build(replace(request, settings=random.settings))


@settings_dataclass
class MySettings(KNN.settings_type):
    size: int = 32


class Depth(type(find_task("depth"))):
    name = "distance"


backbones.register(backbones.Entry("my-net", "mine", "none", build))
register_dataset(replace(DATASETS["imagefolder"], name="mine", folder="mine", module=""))
register_probe(replace(KNN, name="my-probe", settings_type=MySettings))
PRESET = Preset("classification/knn", {})
register_protocol(Protocol("my-protocol", "mine", (PRESET,)))
register_suite(Suite("my-suite", "mine", {"mine/my-probe": {}}, ["my-net"]))
TASKS.register("distance", Depth())
"""


@pytest.fixture
def plugin(workdir):
    """A file that registers one of each."""
    path = workdir / "mine.py"
    path.write_text(PLUGIN)
    return path


def test_a_broken_plugin_ends_a_command_before_it_writes(workdir, refused):
    (workdir / "broken.py").write_text("import math\nmath.sqrt(-1)")
    before = listing(workdir)
    refused("run --plugin broken.py --backbone random --suite smoke", "broken.py:2: ValueError")
    assert listing(workdir) == before


@pytest.mark.parametrize("way", ["option", "config", "variable"])
def test_every_way_to_name_a_plugin(plugin, way, monkeypatch, capsys):
    words = ["run", "--suite", "my-suite", "--data", "mine=.", "--dump-config"]
    if way == "option":
        words += ["--plugin", "mine.py"]
    elif way == "config":
        Path("run.yaml").write_text("plugins: [mine.py]\n")
        words += ["--config", "run.yaml"]
    else:
        monkeypatch.setenv(registry.PLUGINS_VARIABLE, "mine.py")
    assert main(words) == 2 and "mine" in registry.LOADED[plugin].module
    assert "mine: folder val is missing" in capsys.readouterr().err


def test_what_a_plugin_computes_has_its_sha256_and_nothing_else_has(plugin):
    data = {"train": [], "val": []}

    def conditions(task, suite="own", protocol="own"):
        (planned,) = plan_tasks(SUITES.find(suite), [task], {"protocol": protocol})
        return planned.conditions(PreparedDataset(planned.spec.name, Path(), data))

    before = conditions("imagefolder/linear")
    network, recipe = backbones.create("random").identity(), find_recipe("cliptex").identity()
    load_plugins([plugin])
    assert DATASETS["mine"].module == "probes.registry", "configs of other processes import it"
    digest = registry.LOADED[plugin].sha256
    assert conditions("imagefolder/linear") == before
    assert backbones.create("random").identity() == network
    assert find_recipe("cliptex").identity() == recipe
    assert backbones.create("my-net").identity() == {**network, "plugin": digest}
    assert backbones.create("random/my-net").identity()["plugin"] == digest
    mine, knn = conditions("mine/knn", "my-suite"), conditions("imagefolder/my-probe")
    assert mine["dataset"]["plugin"] == knn["plugin"] == digest
    assert "plugin" not in mine and "plugin" not in knn["dataset"]
    preset = conditions("imagefolder/knn", protocol="my-protocol")
    assert preset["preset_origin"] == {"plugin": digest}
    changed = find_recipe("cliptex", ["experts=depth,distance"]).identity()
    assert changed["plugins"] == {"distance": digest}


def test_a_plugin_may_be_a_family_of_backbones(plugin, capsys, monkeypatch):
    plugin.write_text(
        "from dataclasses import replace\nimport backbones\n"
        "from backbones.registry import FAMILIES, Family\n"
        "RANDOM = backbones.find('random')\n"
        "def build(request):\n"
        "    return RANDOM.build(replace(request, settings=RANDOM.settings))\n"
        "FAMILIES.register('my', Family('my', 'my/SIZE', 'mine', build))\n"
    )
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, str(plugin))
    backbone = backbones.create("random/my/small")
    digest = registry.LOADED[plugin].sha256
    assert backbone.identity() == {**backbones.create("random").identity(), "plugin": digest}
    assert main(["list", "backbones", "SIZE"]) == 0
    assert capsys.readouterr().out.split() == ["my/SIZE", "mine"]


@pytest.mark.integration
def test_a_run_in_two_workers_and_its_record(plugin, monkeypatch):
    monkeypatch.setattr("benchmark.local.cores", lambda: 2)
    make_imagefolder(Path("mine"), n_train=4, n_val=4)
    options = {"data_root": ".", "device": "cpu", "num_workers": 0, "seeds": 2}
    results = evaluate("my-net", suite="my-suite", plugins=["mine.py"], jobs=2, **options)
    assert set(results.frame.status) == {"done"} and set(results.frame.task) == {"mine/my-probe"}
    again = evaluate("my-net", suite="my-suite", plugins="mine.py", jobs=1, **options)
    assert set(again.frame.status) == {"cached"} and again.table().equals(results.table())
    (parent, *_) = [run for run in runs_of("my-suite") if "task" not in run.data.tags]
    folder = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert (folder / "plugins/0-mine.py").read_text() == PLUGIN
    assert yaml.safe_load((folder / "options.yaml").read_text())["plugin"] == [str(plugin)]
    plugin.write_text(PLUGIN + "# edited\n")
    edited = evaluate(
        "my-net", suite="my-suite", plugins="mine.py", **{**options, "seeds": 1, "jobs": 1}
    )
    assert set(edited.frame.status) == {"done"}
