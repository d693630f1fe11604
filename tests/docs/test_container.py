"""The container gets all that the package is built from: Docker is not needed to see that."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def test_the_build_sees_every_package_and_each_file_that_its_metadata_names():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = setup["options.packages.find"]["include"].replace("*", "").split()
    named = [*setup["metadata"]["license_files"].split(), "README.md", "setup.cfg"]
    assert {*packages, *named, "pyproject.toml"} <= sent
    assert all((ROOT / path).exists() for path in sent)


def test_what_is_copied_by_itself_is_sent():
    copied = re.findall(r"^COPY (\S+) ", (ROOT / "Dockerfile").read_text(), re.M)
    sent = (ROOT / ".dockerignore").read_text()
    assert all(path == "." or f"!{path}" in sent for path in copied)


def test_the_development_container_is_built_from_the_same_file():
    build = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (ROOT / ".devcontainer" / build["context"]).resolve() == ROOT
