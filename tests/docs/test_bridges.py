"""The page about other suites: its blocks are for them, and name what exists here."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
import yaml

import backbones
from backbones.bridges import as_eva, as_torchgeo_bench
from tests.docs.blocks import FOR_OTHER_SUITES, blocks


def page(language: str) -> list[str]:
    return [block.text for block in blocks(language) if block.page == FOR_OTHER_SUITES]


def test_configuration_files_name_functions_and_their_arguments():
    eva, torchgeo_bench = (yaml.safe_load(text) for text in page("yaml"))
    model = eva["backbone"]["init_args"]
    assert model["path"] == "backbones.as_eva"
    inspect.signature(as_eva).bind(**model["arguments"])
    name = model["arguments"]["name"]
    assert eva["transforms"]["init_args"] == {"backbone": name} and backbones.find(name)
    assert torchgeo_bench.pop("_target_") == "backbones.as_torchgeo_bench"
    inspect.signature(as_torchgeo_bench).bind(**torchgeo_bench)
    assert backbones.find(torchgeo_bench["name"])


def test_classes_in_configuration_files_exist():
    pytest.importorskip("eva.vision")
    from jsonargparse._util import import_object

    eva = yaml.safe_load(page("yaml")[0])
    assert all(callable(import_object(part["class_path"])) for part in eva.values())


def test_lines_for_mteb_name_its_benchmarks():
    (code,) = page("python")
    ast.parse(code)
    names = re.findall(r"MIEB\(\w+\)", code)
    mteb = pytest.importorskip("mteb")
    assert len(names) == 2
    assert mteb.get_benchmark("MIEB(lite)").tasks
    assert all(task.metadata.modalities == ["image"] for task in mteb.get_benchmark(names[1]).tasks)
