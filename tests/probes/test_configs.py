"""A probe's config file tells the truth: completed with the default settings it keeps every literal
that it states."""

from __future__ import annotations

import pytest
from mmengine.config import Config

import probes.catalog  # noqa: F401  registers the probes
from probes.dense.config import dense_config
from probes.registry import PROBES
from probes.runner.config_file import FOLDER
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context

FILES = [
    path.relative_to(FOLDER).as_posix()
    for path in sorted(FOLDER.glob("*/*.py"))
    if path.parent.name in tiny_dense.SPECS
]


def differences(stated, complete, path=""):
    """Paths of the literals of a config that another has not."""
    if isinstance(stated, dict):
        return [
            each
            for key, value in stated.items()
            for each in differences(value, complete.get(key, "absent"), f"{path}.{key}")
        ]
    if isinstance(stated, list | tuple) and len(stated) == len(complete):
        pairs = enumerate(zip(stated, complete, strict=True))
        return [each for i, pair in pairs for each in differences(*pair, f"{path}[{i}]")]
    return [] if stated == complete else [f"{path}: {stated}, and {complete}"]


@pytest.mark.parametrize("file", FILES)
def test_a_config_file_tells_the_truth(tmp_path, file):
    kind, _, name = file.removesuffix(".py").partition("/")
    probe = PROBES[f"{kind}/{name}"]
    changes = {"head": {"type": "FCNHead", "channels": 8}} if name == "head" else {}
    task = context(
        tmp_path / "work",
        tiny_dense.make(tmp_path, kind, train=1, val=1),
        probe.settings_type(**changes),
    )
    stated = Config.fromfile(FOLDER / file, format_python_code=False).to_dict()
    for name in ("train_pipeline", "test_pipeline"):  # which the loaders have
        del stated[name]
    # of 64×64 cells, and here are fewer
    stated["model"]["decode_head"].pop("dilations", None)
    complete = dense_config(probe, task).to_dict()
    added = stated.pop("custom_imports")["imports"]
    assert set(added) <= set(complete["custom_imports"]["imports"])
    assert differences(stated, complete) == []
