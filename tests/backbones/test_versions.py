"""Versions of what can change a number."""

import ast
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import probes
from cliptex_common.process import DENSE_LIBRARIES, IMAGE_LIBRARIES, PROBING_LIBRARIES, versions


def test_versions_are_those_of_the_distributions_that_bring_the_library():
    installed = versions(*PROBING_LIBRARIES, "no_such_library")
    assert list(installed) == [*PROBING_LIBRARIES, "no_such_library"]
    assert installed["torch"] == torch.__version__.partition("+")[0]
    assert installed["PIL"] == version("pillow")
    assert installed["open_clip"] == version("open_clip_torch")
    assert installed["no_such_library"] == "absent"
    assert "absent" not in {installed[name] for name in PROBING_LIBRARIES}


def test_the_versions_of_all_libraries_that_probes_import_are_part_of_a_number_s_identity():
    imported = set()
    for file in Path(probes.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {
                name.partition(".")[0]
                for name in [*names, getattr(node, "module", None) or ""]
                if name
            }
    no_numbers = {
        "probes",
        "backbones",
        "cliptex_common",
        "reports",
        "filelock",
        "pydantic",
        "safetensors",
        "scipy",
        "h5py",
        "huggingface_hub",
        "mlflow",
    }  # scipy reads a table of labels, mlflow keeps heads; h5py and huggingface_hub: `data get`
    libraries = imported - set(sys.stdlib_module_names) - no_numbers
    assert libraries == set(PROBING_LIBRARIES) and set(PROBING_LIBRARIES) >= {
        *IMAGE_LIBRARIES,
        *DENSE_LIBRARIES,
    }
