"""A probe's config files tell the truth: completed with the default settings they keep every
literal that they state, and each setting that stands in the config is there."""

import pytest
from mmengine.config import Config

from probes.dense.config import dense_config
from probes.detection.models import detection_config
from probes.registry import PROBES
from probes.settings import places
from probes.train.config import config_files, read_config, stated_settings
from tests.probes import tiny_coco, tiny_dense
from tests.probes.tiny_mmlab import context

HEADS = [
    (kind, name)
    for kind in ("segmentation", "depth", "normals")
    for name in ("linear", "deeplabv3", "pspnet", "dpt", "upernet", "dpt-probe3d", "head")
    if f"{kind}/{name}" in PROBES
]
DETECTORS = [("detection", "mask-rcnn"), ("detection", "ssd")]
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


@pytest.mark.parametrize(("kind", "name"), [*HEADS, *DETECTORS])
def test_a_config_file_tells_the_truth(tmp_path, kind, name):
    probe, build = PROBES[f"{kind}/{name}"], dense_config
    if kind == "detection":
        data, build = tiny_coco.prepared(tiny_coco.write(tmp_path)), detection_config
    else:
        data = tiny_dense.make(tmp_path, kind, train=1, val=1)
    changes = {"head": {"type": "FCNHead", "channels": 8}} if name == "head" else {}
    task = context(tmp_path / "work", data, probe.settings_type(**changes))
    complete = build(probe, task).to_dict()
    stated = read_config(*config_files(kind, name)).to_dict()
    assert set(stated.pop("custom_imports")["imports"]) <= set(
        complete["custom_imports"]["imports"]
    )
    assert differences(stated, complete) == []
    values, _ = stated_settings(Config(complete), probe.settings_type)
    defaults = {name: getattr(task.settings, name) for name in values}
    absent = {name: at.absent for name, at in places(probe.settings_type).items()}
    for setting, value in values.items():
        expected = (defaults[setting], absent[setting])
        assert value in expected or defaults[setting] is None, setting
