"""What needs none of the suites' packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

import backbones
from cliptex_common.errors import UserError


@pytest.mark.parametrize("suite", ["mteb", "eva", "torchgeo_bench"])
def test_a_missing_package_is_one_line_that_says_how_to_install_it(monkeypatch, suite):
    bridge = f"backbones.bridges.{suite}"
    for name in [name for name in sys.modules if name == bridge or name.startswith(f"{suite}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, suite, None)  # its import fails
    with pytest.raises(UserError, match=r"needs .+: pip install -e '.\[bridges\]'") as caught:
        getattr(backbones, f"as_{suite}")("random")
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_importing_backbones_imports_neither_torch_nor_the_suites():
    names = {"torch", "mteb", "eva", "torchgeo_bench"}
    code = (
        f"import sys, backbones; print({names} & set(sys.modules), 'as_mteb' in backbones.__all__)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert process.stdout.split() == ["set()", "True"]
