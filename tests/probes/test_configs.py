"""A probe's config file tells the truth: completed with the default settings it keeps every literal
that it states."""

from __future__ import annotations

import pytest
from mmengine.config import Config

import probes.catalog  # noqa: F401  registers the probes
from probes.configs import FOLDER
from probes.dense.config import dense_config
from probes.detection.config import detection_config
from probes.registry import PROBES
from probes.train.config import KEYS
from tests.probes import tiny_coco, tiny_dense
from tests.probes.tiny_mmlab import context

FILES = [
    path.relative_to(FOLDER).as_posix()
    for path in sorted(FOLDER.glob("*/*.py"))
    if path.parent.name not in ("_base_", "dense")
]
# of the class numbers and the map sizes of MMDetection's and the papers' own data
OF_DATA = ("num_classes", "dilations", "strides", "featmap_strides", "input_size")


def differences(stated, complete, path=""):
    """Paths of the literals of a config that another has not."""
    if isinstance(stated, dict):
        return [
            each
            for key, value in stated.items()
            if key not in OF_DATA
            for each in differences(value, complete.get(key, "absent"), f"{path}.{key}")
        ]
    if isinstance(stated, list | tuple) and len(stated) == len(complete):
        pairs = enumerate(zip(stated, complete, strict=True))
        return [each for i, pair in pairs for each in differences(*pair, f"{path}[{i}]")]
    return [] if stated == complete else [f"{path}: {stated}, and {complete}"]


@pytest.mark.parametrize("file", FILES)
def test_a_config_file_tells_the_truth(tmp_path, file):
    kind, _, name = file.removesuffix(".py").partition("/")
    probe, build = PROBES[f"{kind}/{name}"], dense_config
    if kind == "detection":
        data, build = tiny_coco.prepared(tiny_coco.write(tmp_path)), detection_config
    else:
        data = tiny_dense.make(tmp_path, kind, train=1, val=1)
    changes = {"head": {"type": "FCNHead", "channels": 8}} if name == "head" else {}
    task = context(tmp_path / "work", data, probe.settings_type(**changes))
    complete = build(probe, task).to_dict()
    stated = Config.fromfile(FOLDER / file, format_python_code=False).to_dict()
    stated["model"].pop("_scope_", None)
    stated = {key: stated[key] for key in KEYS}
    assert set(stated.pop("custom_imports")["imports"]) <= set(
        complete["custom_imports"]["imports"]
    )
    assert differences(stated, complete) == []
