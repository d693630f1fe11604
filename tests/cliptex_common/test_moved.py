"""Paths that documented plugins import from, where their modules have moved."""

import importlib

import pytest

PATHS = {
    "backbones.base": "Backbone",
    "backbones.adapters.hf_hub": "hub_file",
    "backbones.cliptex.tasks.base": "Summed",
    "backbones.cliptex.tasks.shapes": "ScalarMap",
    "backbones.cliptex.training.recipes": "Recipe",
    "benchmark.execution": "EXECUTORS",
    "benchmark.execution.base": "Executor",
    "benchmark.execution.options": "ExecutionOptions",
    "benchmark.execution.progress": "Bar",
    "benchmark.execution.unit": "Unit",
    "benchmark.executor_options": "ExecutionOptions",
    "benchmark.suites.catalog": "COMPARED",
    "benchmark.suites.paper": "ENCODER",
    "benchmark.suites.registry": "register_suite",
    "probes.datasets.layouts": "mirrored",
    "cliptex_common.visible_devices": "cores",
    "probes.dense.tasks.base": "DenseTask",
    "probes.dense.transforms": "image_only",
    "probes.protocols.base": "Preset",
    "reports.metrics": "Metric",
}


@pytest.mark.parametrize(("path", "name"), PATHS.items())
def test_documented_paths_of_earlier_plugins_stay(path, name):
    importlib.import_module(
        "benchmark" if path.startswith("cliptex_common") else path.partition(".")[0]
    )
    scope: dict = {}
    exec(f"from {path} import {name}", scope)
    assert scope[name] is not None
