"""Which runs count, whatever else the store holds, in whatever order."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.records import ParentRun, TrackingError
from reports.selection import select
from tests.reports.synthetic import stored_run

BACKBONES, TASKS = ("clip", "clip-ft", "cliptex"), ("voc/linear", "ade20k/linear")
RUNS = [
    stored_run(*key, 10.0 + number, run_id=f"run{number}", started=number)
    for number, key in enumerate(itertools.product(BACKBONES, TASKS, (0, 1)))
]


def parent_run(name: str, started: int = 0, **fields) -> ParentRun:
    fields = {"backbone": "clip", "seed": 0, **fields}
    return ParentRun(run_id=name, run_key=name, started=started, **fields)


def numbers(runs, **options):
    selection = select(runs, ["x"], **options)
    return {
        (backbone, column.task, column.protocol, cell.seed): cell.metrics["mIoU"]
        for (backbone, column), cells in selection.cells.items()
        for cell in cells
    }


def column_of(selection, task, letter=""):
    (column,) = [c for c in selection.columns if (c.task, c.letter) == (task, letter)]
    return column


@settings(max_examples=60)
@given(
    st.randoms(use_true_random=False),
    st.sets(st.integers(0, len(RUNS) - 1)),
    st.sets(st.integers(0, len(RUNS) - 1), max_size=6),
)
def test_order_repeated_failed_and_missing_runs_change_no_other_number(
    shuffle: random.Random, noisy, missing
):
    runs = [run for number, run in enumerate(RUNS) if number not in missing]
    for number in noisy:
        key = RUNS[number].backbone, RUNS[number].task, RUNS[number].seed
        runs += [
            stored_run(*key, None, status="failed", reason="x", started=number - 100),
            stored_run(*key, None, status="still running", started=900),
        ]
        if number not in missing:
            runs += [stored_run(*key, 1.0, started=-100), RUNS[number]]
    if not any(run.is_finished for run in runs):
        return
    shuffle.shuffle(runs)
    assert numbers(runs) == numbers([run for run in RUNS if run in runs])


def test_weights_of_one_name_are_columns_of_their_own():
    """A, B, A again: the third run finds A's cells finished and writes none."""
    runs = [*RUNS, stored_run("clip", "voc/linear", 1, 55.0, weights="new")]
    runs.append(parent_run("again", 10**6, weights="w"))
    selection = select(runs, ["x"])
    assert selection.backbones == ["clip-ft", "clip@w", "cliptex", "clip@new"]
    seeds = {name: selection.seeds[name] for name in ("clip@w", "clip@new", "cliptex")}
    assert seeds == {"clip@w": [0, 1], "clip@new": [1], "cliptex": [0, 1]}
    for (name, _), cells in selection.cells.items():
        assert len({cell.weights for cell in cells}) == 1
        assert name.partition("@")[2] in (cells[0].weights, "")
    assert select(runs, ["x"], ["cliptex", "clip"]).backbones == ["cliptex", "clip@w", "clip@new"]
    named = select(runs, ["x"], backbones=["cliptex"], baseline="clip@n")
    assert (named.backbones, named.baseline) == (["clip@new", "cliptex"], "clip@new")
    with pytest.raises(TrackingError, match="several weights; choose clip@w or clip@new"):
        select(runs, ["x"], baseline="clip")
    unscored = stored_run("clip", "voc/linear", 0, None, weights="c", status="failed")
    assert numbers([*RUNS, unscored]) == numbers(RUNS), "c has no number"


@pytest.mark.parametrize(
    ("made_by", "seeds", "columns"),
    [
        ({"train_run": "t"}, "012", ["net"]),
        ({"weights_source": "random(seed={seed})"}, "012", ["net"]),
        ({"weights_source": "w.pt"}, "012", ["net@sha-0", "net@sha-1", "net@sha-2"]),
        ({"train_run": "t"}, "010", ["net@sha-0", "net@sha-1", "net@sha-2"]),
    ],
)
def test_only_seeds_of_a_recipe_share_a_column(made_by, seeds, columns):
    """In the last case two trainings have one seed: it cannot be said which seeds belong to which.
    Those of others are never pooled with one's own."""
    runs = []
    for number, (seed, source) in enumerate([*((int(seed), "") for seed in seeds), (7, "a lab")]):
        fields = {"backbone": "net", "seed": seed, "weights": f"sha-{number}", "source": source}
        of_parent = {key: each.format(seed=seed) for key, each in made_by.items()}
        runs.append(parent_run(f"p{number}", **fields, **of_parent))
        value = {"task": "voc/linear", "value": 1.0, "parent": f"p{number}"}
        runs.append(stored_run(**value, **fields))
    assert select(runs[:6], ["x"]).backbones == columns
    assert len(select(runs, ["x"]).backbones) == len(columns) + 1


def test_two_protocols_are_two_columns_with_letters():
    second = [stored_run("clip", "voc/linear", s, 20.0, protocol="q") for s in (0, 1)]
    selection = select([*RUNS, *second], ["x"])
    columns = [column_of(selection, "voc/linear", letter) for letter in "AB"]
    assert [column.protocol for column in columns] == ["p", "q"]
    for (_, column), cells in selection.cells.items():
        assert {cell.protocol for cell in cells} == {column.protocol}
    assert selection.missing["cliptex", columns[1]] == "other protocol"


def test_missing_numbers_have_a_reason():
    runs = [run for run in RUNS if run.backbone != "cliptex"]
    runs += [
        stored_run("cliptex", "ade20k/linear", 0, 9.0),
        stored_run("cliptex", "voc/linear", 0, None, status="failed", reason="loss is nan"),
        stored_run("dino", "ade20k/linear", 0, 9.0),
        stored_run("resnet", "ade20k/linear", 0, 9.0),
        parent_run("dino", backbone="dino", protocols={"voc.linear": "p"}),
    ]
    missing = select(runs, ["x"]).missing
    reasons = {name: reason for (name, _), reason in missing.items()}
    assert reasons["cliptex"] == "failed: loss is nan"
    assert (reasons["dino"], reasons["resnet"]) == ("not applicable", "not run")


def test_a_task_that_nobody_finished_is_a_column_without_numbers():
    failed = [
        stored_run(name, "coco/ssd", 0, None, status="failed", protocol=f"q{n}")
        for n, name in enumerate(("clip", "clip-ft"))
    ]
    selection = select([*RUNS, *failed], ["x"])
    column = column_of(selection, "coco/ssd")
    assert column.protocol == "q1", "the latest"
    assert {name: selection.missing[name, column] for name in selection.backbones} == {
        "clip-ft": "failed",
        "clip": "other protocol: failed",
        "cliptex": "not run",
    }
    assert numbers([*RUNS, *failed]) == numbers(RUNS)


def test_a_reused_task_counts_for_the_backbone_that_reused_it():
    parent = parent_run("parent", backbone="twin", reused={"voc.linear": "run0"})
    value = RUNS[0].metrics["mIoU"]
    assert numbers([*RUNS, parent])["twin", "voc/linear", "p", 0] == value


@pytest.mark.parametrize(("last", "name"), [("", "clip"), ("other", "other"), ("clip", "clip")])
def test_the_newest_label_names_a_column_also_where_it_is_the_backbones_own(last, name):
    labels = ("other", "clip", "", last)  # a run without a label takes none back
    parents = [parent_run(f"p{n}", n, label=label, weights="w") for n, label in enumerate(labels)]
    runs = [run for run in RUNS if run.backbone == "clip"]
    assert select([*runs, *parents], ["x"]).backbones == [name]


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (RUNS, {"baseline": "mae"}, "baseline 'mae' has no finished task there; choose among clip"),
        (RUNS, {"tasks": ["voc/liner"]}, "no run of task 'voc/liner'.* did you mean"),
        (
            [stored_run("clip", "voc/linear", 0, None, status="failed", reason="boom")],
            {},
            r"in experiment x \(1 tasks: failed: boom\)",
        ),
    ],
)
def test_unknown_names_and_unfinished_experiments_are_refused(runs, options, message):
    with pytest.raises(TrackingError, match=message):
        select(runs, ["x"], **options)


def test_the_baseline_comes_first():
    assert select(RUNS, ["x"]).backbones == ["clip-ft", "clip", "cliptex"]
    assert select(RUNS, ["x"], backbones=["cliptex", "clip"]).baseline == "clip"


def test_tasks_have_the_order_of_the_longest_recorded_run():
    assert [c.task for c in select(RUNS, ["x"]).columns] == list(TASKS), "the order of the runs"
    full = parent_run("full", main_metrics=("ade20k/linear/mIoU", "voc/linear/mIoU"))
    single = parent_run("one", 10, main_metrics=("voc/linear/mIoU",))
    tasks = [column.task for column in select([*RUNS, full, single], ["x"]).columns]
    assert tasks == ["ade20k/linear", "voc/linear"]
