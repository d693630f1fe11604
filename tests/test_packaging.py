"""What a wheel holds, and that the versions which CI tries are those that setup.cfg allows.
`.ci/wheel` installs and runs one."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmark", "backbones", "probes", "sweeps", "reports", "cliptex_common")


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_a_wheel_holds_every_file_of_the_packages_and_no_other(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=600,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        members = {name for name in opened.namelist() if ".dist-info/" not in name}
        metadata = {
            name.partition(".dist-info/")[2]: opened.read(name).decode()
            for name in set(opened.namelist()) - members
        }
    expected = set().union(*(files(ROOT / name) for name in PACKAGES))
    assert members == expected
    assert {
        "reports/render/page.html.j2",
        "reports/render/style.css",
        *(f"{name}/py.typed" for name in PACKAGES),
    } <= members
    assert "Apache License" in metadata["licenses/LICENSE"]
    assert "plotly.js" in metadata["licenses/NOTICE"]
    assert "benchmark.__main__:entry" in metadata["entry_points.txt"]


def requirements() -> dict[str, str]:
    """Package → the version that its lower bound names."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    return {
        match[1]: match[2] for line in lines if (match := re.match(r"([\w.-]+) >=([\d.]+)", line))
    }


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / ".ci" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_the_oldest_versions_that_ci_tries_are_the_oldest_that_are_allowed():
    oldest, allowed = pins("constraints-oldest.txt"), requirements()
    assert (
        set(oldest)
        == {"torch", "torchvision", "mlflow", "optuna", "transformers"}
        == set(pins("constraints-newest.txt"))
    )
    for name, version in oldest.items():
        assert re.sub(r"(\.0)+$", "", version) == re.sub(r"(\.0)+$", "", allowed[name]), name
