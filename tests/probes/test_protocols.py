"""Published protocols: what is built for each kind of backbone is what its table says."""

import pytest

import backbones.registry  # noqa: F401  registers the families of names
from cliptex_common.errors import UserError
from cliptex_common.settings import field_names, with_changes
from probes.registry import (
    OWN,
    PROBES,
    PROTOCOLS,
    check_required,
    find_preset,
    find_task,
    preset_deviations,
)

# isort: split


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_every_preset_has_settings_of_its_probe_and_a_source(protocol):
    assert protocol.source
    for preset in protocol.presets:
        probe = PROBES[preset.probe]
        assert set(preset.settings) <= field_names(probe.settings_type) - {"protocol"}
        with_changes(probe.settings_type(), preset.settings)


def test_deviations_are_listed_and_a_task_without_a_preset_is_refused():
    spec, probe = find_task("nyu-depth/linear")
    preset = find_preset("dinov3", spec, probe)
    settings = with_changes(probe.settings_type(), {**preset.settings, "max_iters": 100})
    assert preset_deviations(preset, settings, spec) == [
        "max_iters=100 instead of 38400",
        "split=official 795/654 instead of 24k/654",
    ]
    with pytest.raises(UserError, match=r"applies to ade20k/linear, davis/label-propagation, nyu"):
        find_preset("dinov3", *find_task("voc/linear"))
    with pytest.raises(UserError, match="no protocol 'dinov4'; did you mean dinov3"):
        find_preset("dinov4", spec, probe)
    assert find_preset("own", spec, probe).settings == {} and not OWN.presets


def test_a_copy_without_the_list_that_a_preset_trains_on_is_refused(tmp_path) -> None:
    spec, probe = find_task("voc/deeplabv3")
    with pytest.raises(UserError, match="needs voc with train_list=trainaug, and this copy has"):
        check_required("mmseg", spec.at(tmp_path), probe)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainaug.txt").touch()
    (tmp_path / "SegmentationClassAug").mkdir()
    check_required("mmseg", spec.at(tmp_path), probe)
    check_required("own", spec, probe)
