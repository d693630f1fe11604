"""Published numbers: each can be read in its source and compared with a number of this suite."""

from __future__ import annotations

import re
from collections import Counter

import pytest

import backbones.registry  # noqa: F401  registers the families of names
import benchmark.catalog  # noqa: F401  registers everything
from backbones.registry import find
from probes.registry import PROTOCOLS, find_task
from reports.published.table import OWN_HEAD, costs_of, published_numbers, read_rows
from tests.reports.synthetic import write_runs

SOURCE = re.compile(  # a file at a commit, or a release
    r"https://(github\.com/[^/]+/[^/]+/blob/[0-9a-f]{40}/|pypi\.org/project/[^/]+/[0-9.]+/$)"
)
NUMBERS = [number for number in published_numbers() if number.task]
DENSE = ("segmentation", "depth", "normals", "detection", "correspondence")


def test_every_number_names_a_task_a_metric_and_a_file_at_a_commit() -> None:
    kinds: Counter[str] = Counter()
    for number in NUMBERS:
        if number.task.endswith(OWN_HEAD):
            assert number.metric == "top1" and 0 < number.value < 100, number
            continue
        spec, probe = find_task(number.task)
        assert number.metric in probe.metrics, number
        assert SOURCE.match(number.url), number
        if number.preset not in ("", "own"):
            assert PROTOCOLS[number.preset].preset(spec, probe), number
        unit = probe.metrics[number.metric]
        assert number.direction == unit.direction, number
        assert 0 <= number.value < (unit.high or 20), number
        kinds[spec.kind] += 1
    assert sum(kinds.values()) >= 120
    assert sum(kinds[kind] for kind in DENSE) >= 80


def test_every_name_of_published_weights_belongs_to_a_family() -> None:
    assert all(find(name) for number in NUMBERS for name in number.backbones)


def test_every_source_has_numbers_a_licence_and_a_digest_if_it_is_read_by_a_program() -> None:
    used = {number.source for number in published_numbers()}
    used |= {row["source"] for name in ("costs", "seeds") for row in read_rows(name)}
    for row in read_rows("sources"):
        assert row["source"] in used and row["protocol"], row
        assert row["licence"] or row["source"] == "cliptex-1", row
        if row["source"].partition("-")[0] in ("timm", "open_clip", "clip_benchmark", "visbench"):
            assert re.fullmatch("[0-9a-f]{64}", row["sha256"]), row


@pytest.mark.parametrize(
    ("model", "size", "costs"),
    [
        ("timm/resnet50.a1_in1k@288", "288", (25.56, 13.6, 2631.02)),
        ("open_clip/ViT-B-16/openai", "224", (86.19, 35.13)),  # the image tower
        ("DINOv3 B", "256", (85.64, 47.2, 1340.21)),  # by its name in timm
        ("iBOT ViT-S/16 IN1k", "", ()),
    ],
)
def test_costs_are_those_of_the_architecture_at_the_size(model, size, costs) -> None:
    number = next(number for number in NUMBERS if number.model == model)
    at, values = costs_of(number)
    assert (at, tuple(values.values())) == (size, costs)


def test_a_classifier_of_its_own_is_shown_as_that(tracker, report_of) -> None:
    names = ("random", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k")
    write_runs(tracker, dict.fromkeys(names, 0.6), ["imagenet/linear"])
    rows = {row.task: row for row in report_of(tracker).published}
    row = rows["imagenet_sketch/own-head"]
    assert (row.number.value, row.ours) == (45.106, "")  # results-sketch.csv
    assert "not a probe" in row.differs


NYU, VOC = ("nyu-depth/linear", "dinov3-b16"), ("voc/linear", "timm/vit_huge_patch14_224.mae")


@pytest.mark.parametrize(
    ("task", "name", "tags", "expected"),
    [
        (*NYU, {"preset": "dinov3"}, "the official split has 795"),
        (*NYU, {"preset": "own"}, "settings of own"),
        (*NYU, {"preset": "dinov3", "differs": "differs from dinov3: lr=1"}, "lr=1"),
        (*VOC, {"preset": "pixio"}, "same settings; `list protocols`"),  # its source does more
    ],
)
def test_a_report_says_how_our_protocol_differs(tracker, report_of, task, name, tags, expected):
    write_runs(tracker, {"random": 0.5, name: 0.5}, [task], task_tags={task: tags})
    report = report_of(tracker)
    (row,), (column,) = report.published, report.columns
    assert (row.backbone, row.number.task) == (name, task) and expected in row.differs
    ours = report.analysis.estimates[name, column, row.number.metric].value
    assert float(row.ours.partition(" [")[0]) == pytest.approx(ours, abs=0.06)


def test_equal_settings_without_known_differences_are_the_same_protocol(tracker, report_of) -> None:
    tags = {"architecture": "open_clip/ViT-B-16"}
    write_runs(tracker, {"random": 0.3, "clip": 0.3}, ["flickr30k/retrieval"], tags=tags)
    rows = report_of(tracker).published
    assert {row.backbone for row in rows} == {"clip"} and len(rows) >= 2
    assert {row.differs for row in rows} == {"same protocol"}


def test_a_statement_stands_beside_the_mean_gain(tracker, report_of) -> None:
    write_runs(tracker, {"clip": 0.6, "cliptex": 0.6}, ["imagenet/linear"])
    (row,) = report_of(tracker).published
    assert (row.backbone, row.number.metric) == ("cliptex", "up to 16.3 % better than CLIP")
    assert "% over clip on average" in row.ours
