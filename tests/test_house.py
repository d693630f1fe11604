"""No two files import each other, in any direction: not by a function-level import, not for type
checking. Only the device layer names types of accelerators, one file opens images."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["benchmark", "sweeps", "probes", "backbones", "reports", "cliptex_common"]
DEVICE_LAYER = {ROOT / "cliptex_common/device.py", ROOT / "cliptex_common/process.py"}
ACCELERATORS = re.compile(r"cuda|nccl|\b(rocm|xpu|mps)\b", re.IGNORECASE)


def imports(package: str) -> dict[str, set[str]]:
    """Module → the modules of the same package that its file imports, anywhere in it."""
    files = {
        path.relative_to(ROOT).with_suffix(""): path for path in (ROOT / package).rglob("*.py")
    }
    paths = {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        used: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                used |= {each if each in paths else node.module for each in inner}
        graph[name] = {each for each in used if each in paths and each != name}
    return graph


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_files_import_each_other(package):
    graph = imports(package)
    assert len(graph) > 1, "it looks at the real files"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_only_the_device_layer_names_accelerators():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    naming = {path for path in files if ACCELERATORS.search(path.read_text(encoding="utf-8"))}
    assert naming == DEVICE_LAYER


def test_one_function_opens_images():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    opening = re.compile(r"\bImage\.open\b|from PIL\.Image import")
    matches = [path for path in files for _ in opening.findall(path.read_text(encoding="utf-8"))]
    assert matches == [ROOT / "cliptex_common/images.py"]


def test_no_module_binds_a_name_twice():
    """The later value would count for functions above it, too: files that are merged do that."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    twice = []
    for path in files:
        bound = [
            name.id
            for statement in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            for name in ast.walk(target)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        ]
        twice += [f"{path.name}: {name}" for name in set(bound) if bound.count(name) > 1]
    assert not twice
