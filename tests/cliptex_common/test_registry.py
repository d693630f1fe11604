"""One registry for all named entries: what other packages bring, and what each kind refuses."""

from __future__ import annotations

import sys

import pytest

import backbones.registry  # noqa: F401
import benchmark.catalog  # noqa: F401
from backbones.cliptex.experts.base import EXPERTS
from backbones.registry import BACKBONES
from benchmark.executor import EXECUTORS
from benchmark.suites import SUITES
from cliptex_common.errors import UserError
from cliptex_common.registry import Registry
from probes.dense.dataset import DenseDataset
from probes.registry import DATASETS, PROBES, find_task, tasks

# registry, and name and object of what another package brings
KINDS = {
    "backbones": (BACKBONES, "grey", "GREY"),
    "experts": (EXPERTS, "flat-world", "FlatWorld"),
    "datasets": (DATASETS, "my-set", "SET"),
    "suites": (SUITES, "my-suite", "SUITE"),
    "executors": (EXECUTORS, "my-cluster", "Cluster"),
    "probes": (PROBES, "segmentation/my-probe", "PROBE"),
}
MODULE = """
from dataclasses import make_dataclass
from types import SimpleNamespace
from backbones import Entry
from backbones.cliptex.experts import Expert
from benchmark.executor import Executor
from benchmark.suites import Suite
from probes.base import Metric, Probe, TaskResult
from probes.datasets.base import DatasetSpec, Sample

GREY = Entry("grey", "one grey map", "MIT", lambda request: None)
SET = DatasetSpec("my-set", "segmentation", "mine", lambda root, split: [Sample("a.jpg", "a.png")], about="mine")

class FlatWorld(Expert):
    name, task, settings_type, about = "flat-world", "depth", SimpleNamespace, "all is flat"
    def predict(self, images):
        return {}

class Cluster(Executor):
    about = "mine"
    def _start(self, unit):
        raise NotImplementedError
    def _stop(self):
        pass

SUITE = Suite("my-suite", "mine", {"voc/linear": {}})

class MyProbe(Probe):
    name, kind, version, metrics = "my-probe", "segmentation", 1, {"mIoU": Metric()}
    settings_type = make_dataclass("Settings", [])
    splits = ("val",)
    def config(self, context):
        return ""
    def run(self, context):
        return TaskResult({"mIoU": 1.0})

PROBE = MyProbe()

NOTHING = 3
"""  # noqa: E501


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """An installed package, as pip leaves it: a module and a dist-info folder on ``sys.path``."""
    (tmp_path / "other_package.py").write_text(MODULE)
    (tmp_path / "other_package_leaves.py").write_text("raise SystemExit('bye')\n")
    info = tmp_path / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    lines = []
    for group, (registry, name, object_name) in KINDS.items():
        shipped = next(iter(registry.load_entry_points()))
        lines.append(f"[cliptex_benchmark.{group}]")
        lines += [f"{each} = other_package:{object_name}" for each in (name, "misnamed", shipped)]
        lines += ["nothing = other_package:NOTHING", "gone = no_such_module:THING"]
        lines += ["leaves = other_package_leaves:THING"]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry, *_ in KINDS.values():
        monkeypatch.setattr(registry, "data", dict(registry))
        monkeypatch.setattr(registry, "broken", {})
    yield
    sys.modules.pop("other_package", None)


def test_a_name_is_given_once_and_an_unknown_one_gets_the_nearest():
    name, suite = next(iter(SUITES.items()))
    assert SUITES.register(name, suite) is suite  # a module that is imported twice
    with pytest.raises(UserError, match=f"'{name}' exists already"):
        SUITES.register(name, object())
    with pytest.raises(UserError, match=f"no suite '{name}x'; did you mean .*{name}"):
        SUITES.find(f"{name}x")


@pytest.mark.parametrize("kind", KINDS)
def test_another_package_brings_one_without_a_fork(kind, other_package):
    registry, name, object_name = KINDS[kind]
    shipped = next(iter(registry))
    before = registry[shipped]
    assert registry.descriptions()[name] == f"plug-in other_package:{object_name}"
    assert "other_package" not in sys.modules, "describing imports nothing"
    assert registry.find(name) is getattr(sys.modules["other_package"], object_name)
    assert registry.find(shipped) is before is registry.load_entry_points()[shipped], (
        "a package replaces nothing of ours"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_package_is_named_only_when_it_is_asked_for(kind, other_package):
    registry, name, _ = KINDS[kind]
    assert name in registry.load_entry_points()
    reasons = {
        "gone": "ModuleNotFoundError: No module named 'no_such_module'",
        "leaves": "SystemExit: bye",
        "nothing": "TypeError: 'nothing' is 3, no .*",
        "misnamed": f"ValueError: it is registered as 'misnamed' and named '{name}'",
    }
    if kind == "executors":  # they have no name of their own
        del reasons["misnamed"]
    assert not set(reasons) & set(registry)
    for broken, why in reasons.items():
        with pytest.raises(UserError, match=f"{broken}' cannot be loaded: {why}; fix or uninstall"):
            registry.find(broken)


def test_a_dataset_and_a_probe_of_another_package_make_tasks(other_package):
    assert [each.name for each in find_task("my-set/my-probe")] == ["my-set", "my-probe"]
    assert {"my-set/my-probe", "my-set/pspnet", "voc/my-probe"} <= set(tasks())
    # a config names the dataset, in whatever process builds it
    assert DenseDataset("my-set", ".", "train", []).spec is DATASETS["my-set"]
    with pytest.raises(UserError, match="dataset 'gone' cannot be loaded: ModuleNotFoundError"):
        find_task("gone/linear")
    with pytest.raises(UserError, match="no task 'my-set/lineal'; did you mean my-set/linear"):
        find_task("my-set/lineal")


def test_what_is_slow_to_import_is_declared_and_imported_when_asked_for(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text(
        "from types import SimpleNamespace\nTHING = SimpleNamespace(about='slow')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry = Registry("thing", "no-such-group")
    registry.register_lazy("slow", "slow_module:THING", "said before")
    assert registry.descriptions() == {"slow": "said before"} and "slow_module" not in sys.modules
    assert registry.find("slow").about == "slow" and list(registry) == ["slow"]
