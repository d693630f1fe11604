"""Which runs count – whatever else lies in the store, and in whatever order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.errors import TrackingError
from reports.mlflow.query import tidy
from reports.selection import select
from tests.reports.synthetic import stored_run

BASE = [
    stored_run(place, backbone, task, seed, 10.0 + place)
    for place, (backbone, task, seed) in enumerate(
        (b, t, s)
        for b in ("clip", "clip-ft", "cliptex")
        for t in ("voc/linear", "ade20k/linear")
        for s in (0, 1)
    )
]


def numbers(runs, **more):
    selection = select(runs, ["x"], **more)
    return {
        (backbone, column.task, column.protocol, cell.seed): cell.metrics["mIoU"]
        for (backbone, column), cells in selection.cells.items()
        for cell in cells
    }


@settings(max_examples=60, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sets(st.integers(0, len(BASE) - 1)),
    st.sets(st.integers(0, len(BASE) - 1), max_size=6),
)
def test_shuffled_repeated_failed_and_missing_runs_change_no_other_number(
    shuffle: random.Random, noisy, missing
):
    whole = numbers(BASE)
    runs = [run for place, run in enumerate(BASE) if place not in missing]
    for place in noisy:
        tags = BASE[place].tags
        who = (tags["backbone"], tags["task"], int(tags["seed"]))
        runs.append(
            stored_run(
                200 + place, *who, None, status="FAILED", failure="boom", started=place - 100
            )
        )
        runs.append(stored_run(300 + place, *who, 99.0, status="RUNNING", started=900))
        if place not in missing:
            runs.append(
                stored_run(400 + place, *who, 1.0, started=-100)
            )  # an older one of the same cell
            runs.append(BASE[place])  # the very same run read twice
    if not any(run.status == "FINISHED" for run in runs):
        return
    shuffle.shuffle(runs)
    gone = {
        (t["backbone"], t["task"], t["protocol"], int(t["seed"]))
        for p, r in enumerate(BASE)
        if p in missing
        for t in [r.tags]
    }
    assert numbers(runs) == {key: value for key, value in whole.items() if key not in gone}


def test_the_newest_counts_and_it_is_said():
    runs = [*BASE, stored_run(50, "clip", "voc/linear", 0, 77.0)]
    assert numbers(runs)["clip", "voc/linear", "p", 0] == 77.0
    assert any("run again later" in note for note in select(runs, ["x"]).notes)


def test_no_row_mixes_two_sets_of_weights():
    newer = stored_run(60, "clip", "voc/linear", 0, 55.0, weights="new")
    selection = select([*BASE, newer], ["x"])
    kept = {
        (c.task, s.seed): s.weights
        for (b, c), cells in selection.cells.items()
        if b == "clip"
        for s in cells
    }
    assert kept == {("voc/linear", 0): "new", ("voc/linear", 1): "w", ("ade20k/linear", 1): "w"}
    assert any("older weights" in note for note in selection.notes)
    old = select([*BASE, newer], ["x"], backbones=["clip@w", "clip@new"], baseline="clip@w")
    assert {b for b, _ in old.cells} == {"clip@w", "clip@new"}


def test_going_back_to_older_weights_shows_the_older_ones():
    """A, B, A again: the third run finds A's cells finished and makes none anew."""

    def run_of(sha: str, started: int):
        tags = {"run.key": sha, "backbone": "clip", "seed": "0", "weights.sha256": sha}
        return replace(BASE[0], id=f"parent-{started}", tags=tags, metrics={}, started=started)

    runs = [
        run_of("a", 1000),
        stored_run(1001, "clip", "voc/linear", 0, 40.0, weights="a"),
        run_of("b", 2000),
        stored_run(2001, "clip", "voc/linear", 0, 50.0, weights="b"),
    ]
    assert numbers(runs) == {("clip", "voc/linear", "p", 0): 50.0}
    assert numbers([*runs, run_of("a", 3000)]) == {("clip", "voc/linear", "p", 0): 40.0}
    assert numbers([*runs, run_of("c", 3000)]) == {("clip", "voc/linear", "p", 0): 50.0}, (
        "c has no number yet"
    )
    assert numbers([*runs, run_of("a", 3000)], backbones=["clip@b"]) == {
        ("clip@b", "voc/linear", "p", 0): 50.0
    }


def test_two_protocols_are_two_columns_with_letters():
    other = [stored_run(70 + s, "clip", "voc/linear", s, 20.0, protocol="q") for s in (0, 1)]
    selection = select([*BASE, *other], ["x"])
    columns = [c for c in selection.columns if c.task == "voc/linear"]
    assert [c.letter for c in columns] == ["A", "B"] and {c.protocol for c in columns} == {"p", "q"}
    for (_, column), cells in selection.cells.items():
        assert {cell.protocol for cell in cells} == {column.protocol}
    assert selection.missing["cliptex", columns[1]] == "other protocol"


def test_holes_have_reasons():
    runs = [run for run in BASE if run.tags["backbone"] != "cliptex"]
    runs += [
        stored_run(80, "cliptex", "ade20k/linear", 0, 9.0),
        stored_run(
            81,
            "cliptex",
            "voc/linear",
            0,
            None,
            status="FAILED",
            failure="NonFiniteLoss: loss is nan",
        ),
    ]
    selection = select(runs, ["x"])
    (voc,) = [c for c in selection.columns if c.task == "voc/linear"]
    assert selection.missing["cliptex", voc] == "failed: NonFiniteLoss: loss is nan"
    parent = replace(
        BASE[0],
        id="parent",
        tags={"run.key": "k", "backbone": "dino", "protocol.voc.linear": "p"},
        metrics={},
    )
    selection = select([*BASE, stored_run(82, "dino", "ade20k/linear", 0, 9.0), parent], ["x"])
    assert selection.missing["dino", voc] == "not applicable"
    selection = select([*BASE, stored_run(82, "dino", "ade20k/linear", 0, 9.0)], ["x"])
    assert selection.missing["dino", voc] == "not run"


def test_a_task_that_nobody_finished_is_a_column_of_holes():
    broken = [
        stored_run(
            90 + n,
            name,
            "coco/ssd",
            0,
            None,
            status="FAILED",
            failure=f"boom {n}",
            protocol=f"q{n}",
        )
        for n, name in enumerate(("clip", "clip-ft"))
    ]
    selection = select([*BASE, *broken], ["x"])
    (column,) = [c for c in selection.columns if c.task == "coco/ssd"]
    assert column.protocol == "q1", "the one tried last"
    assert {name: selection.missing[name, column] for name in selection.backbones} == {
        "clip-ft": "failed: boom 1",
        "clip": "other protocol: failed: boom 0",
        "cliptex": "not run",
    }
    assert numbers([*BASE, *broken]) == numbers(BASE)


def test_a_reused_task_counts_for_the_backbone_that_reused_it():
    tags = {"run.key": "k", "backbone": "twin", "seed": "0", "cached.voc.linear": "run0"}
    parent = replace(BASE[0], id="parent-twin", tags=tags, metrics={})
    assert numbers([*BASE, parent])["twin", "voc/linear", "p", 0] == BASE[0].metrics["mIoU"]


def test_what_can_be_wrong_is_one_line():
    with pytest.raises(
        TrackingError,
        match="baseline 'mae' has no finished task there; these have: clip, clip-ft, cliptex",
    ):
        select(BASE, ["x"], baseline="mae")
    with pytest.raises(TrackingError, match="backbone 'mae'"):
        select(BASE, ["x"], backbones=["mae"])
    with pytest.raises(
        TrackingError,
        match=r"no run of task 'voc/liner' in experiment x; did you mean 'voc/linear'",
    ):
        select(BASE, ["x"], tasks=["ade20k/linear", "voc/liner"])
    broken = [stored_run(1, "clip", "voc/linear", 0, None, status="FAILED", failure="boom")]
    with pytest.raises(
        TrackingError, match=r"no finished task in experiment x \(1 tasks: failed: boom\)"
    ):
        select(broken, ["x"])


def test_baseline_and_order():
    assert select(BASE, ["x"]).backbones == ["clip-ft", "clip", "cliptex"]
    assert select(BASE, ["x"], backbones=["cliptex", "clip"]).baseline == "clip"
    assert [c.task for c in select(BASE, ["x"]).columns] == ["voc/linear", "ade20k/linear"], (
        "the paper's order"
    )


def test_tidy_is_one_row_a_number():
    cells = [cell for found in select(BASE, ["x"]).cells.values() for cell in found]
    table = tidy(cells)
    assert (
        len(table) == len(BASE)
        and set(table["metric"]) == {"mIoU"}
        and set(table["direction"]) == {1}
    )
    assert table.groupby("backbone")["value"].mean().round(2).to_dict() == {
        "clip": 11.5,
        "clip-ft": 15.5,
        "cliptex": 19.5,
    }
