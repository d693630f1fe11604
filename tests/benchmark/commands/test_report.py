"""The report from the command line, and at the end of a run."""

from __future__ import annotations

import csv
import re
from contextlib import chdir
from pathlib import Path
from string import ascii_uppercase

import fsspec
import numpy as np
import pytest
from scipy import stats

from reports.comparison import first_level
from reports.published.table import read_rows
from reports.tracking import Tracker
from tests.benchmark.run_command import run_command, runs_of, store
from tests.probes.datasets.make import make_imagefolder
from tests.reports.synthetic import TASKS, stored_run, write_run, write_runs

pytestmark = pytest.mark.integration

RUN = (
    "run --suite own --task imagefolder/linear --backbone random --data-root . --device cpu"
    " --set encode_batch_size=4 --set epochs=2 --num-workers 0"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with two finished runs in its MLflow store."""
    folder = tmp_path_factory.mktemp("cli")
    with chdir(folder):
        tracker = Tracker("paper", f"sqlite:///{folder}/mlflow.db")
        for name, quality in (("clip-ft", 0.5), ("cliptex", 0.62)):
            qualities = {"voc/linear": quality, "imagenet/linear": quality}
            write_run(tracker, name, 0, qualities, pictures=True)
    return folder


@pytest.fixture
def out(results, monkeypatch, tmp_path):
    monkeypatch.chdir(results)
    return tmp_path / "out"


def test_report_writes_a_page_and_tables(out, capsys):
    assert run_command(f"report --out {out} --format html,md,csv,latex --baseline clip-ft") == 0
    files = {"index.html", "report.md", "results.csv", "runs.csv", "classes.csv", "tables.tex"}
    assert {path.name for path in out.iterdir()} == {*files, "costs.csv"}
    output = " ".join(capsys.readouterr().out.split())
    assert "experiment paper" in output and "index.html" in output
    assert "cliptex is better than clip-ft on 2 of 2 tasks" in output


def test_two_backbones_image_by_image_show_the_key_of_their_colours(out):
    assert run_command(f"report --out {out} --pairs cliptex,clip-ft --task voc/linear") == 0
    _, section = (out / "index.html").read_text().split('<section id="differ">')
    section = section.partition("</section>")[0]
    key = re.search(r'<img src="data:image/png;base64,[^"]+" alt="Key of the colours', section)
    assert key and section.count('<div class="strip') == 8, "pictures of both ends"


def test_each_of_many_protocols_of_a_task_has_a_letter(tmp_path):
    """28 of them, in the order in which they ran: A to Z, AA, AB."""
    with chdir(tmp_path):
        tracker = Tracker("many", f"sqlite:///{tmp_path}/mlflow.db")
        with tracker.run("clip", tags={"run.key": "clip", "backbone": "clip", "seed": "0"}) as run:
            for number in range(28):
                identity = {"protocol": f"protocol {number}", "key": f"cell {number}"}
                cell = stored_run("clip", "voc/linear", **identity)
                with tracker.run(cell.task, tags=cell.to_tags(), parent=run) as child:
                    child.log_metrics({"mIoU": 50.0 + number})
        assert run_command("report --format csv") == 0
        with Path("report/results.csv").open(newline="") as file:
            values = {row["task"]: float(row["value"]) for row in csv.DictReader(file)}
    names = [*ascii_uppercase, "AA", "AB"]
    expected = {f"voc/linear ({name})": 50.0 + number for number, name in enumerate(names)}
    assert [*values.items()] == [*expected.items()]


def test_the_best_value_of_a_single_backbone_stands_below_the_verdict(tmp_path, capsys):
    with chdir(tmp_path):
        tracker = Tracker("sizes", f"sqlite:///{tmp_path}/mlflow.db")
        write_run(tracker, "clip", 0, {"voc/linear:size=64": 0.5, "voc/linear:size=96": 0.6})
        assert run_command("report") == 0
        page = Path("report/index.html").read_text()
    line = "clip · voc/linear: mIoU on val is best at size=96"
    assert line in " ".join(capsys.readouterr().out.split())
    assert page.index("nothing to compare") < page.index(line) < page.index("Caveats")


def test_a_mean_gain_of_tuned_tasks_is_not_said_of_frozen_ones(tmp_path, capsys):
    """The frozen baseline is too uncertain for a percentage; tuned numbers have one."""
    with chdir(tmp_path):
        tracker = Tracker("tuned", f"sqlite:///{tmp_path}/mlflow.db")
        for name, frozen, tuned in (("random", 0.2, 0.5), ("mine", 0.8, 0.9)):
            tasks = {"imagenet/linear": frozen, "imagenet/linear:tune=blocks:1": tuned}
            write_run(tracker, name, 0, tasks, images=30)
        assert run_command("report") == 0
        page = Path("report/index.html").read_text()
    _, verdict, *notes = capsys.readouterr().out.splitlines()
    assert "mine is better than random on 1 of 1 task" in verdict
    assert "mean gain" not in verdict and "no mean gain" in page
    of_tuned = "Not in the mean gain because its backbone is tuned: imagenet/linear:tune=blocks:1."
    assert any(note.endswith(of_tuned) for note in notes)


def mean_gain(output: str) -> tuple[float, str]:
    """The mean gain of a report's first sentence, in percent, and what follows it."""
    words = " ".join(output.split()).replace("−", "-")
    gain, rest = re.search(r"mean gain ([+-][\d.]+) % \((.*?)\)", words).groups()
    return float(gain), rest


def test_more_seeds_of_one_task_leave_the_mean_over_all_tasks(tmp_path, capsys):
    """A backbone that is better on two tasks and worse on a third, which gets two more seeds."""
    better = ("voc/linear", "nyu-depth/linear")
    with chdir(tmp_path):
        tracker = Tracker("seeds", f"sqlite:///{tmp_path}/mlflow.db")
        qualities = {"clip": (0.5, 0.5), "mine": (0.62, 0.48)}
        for name, (first, second) in qualities.items():
            for seed in range(3):
                tasks = dict.fromkeys(better, first) | {"flickr30k/retrieval": second}
                write_run(tracker, name, seed, tasks)
        assert run_command("report") == 0
        before = mean_gain(capsys.readouterr().out)
        for name, (_, second) in qualities.items():
            for seed in (3, 4):
                write_run(tracker, name, seed, {"flickr30k/retrieval": second})
        assert run_command("report") == 0
        output = " ".join(capsys.readouterr().out.split())
    assert before[0] > 5 and "undecided" not in before[1]
    assert mean_gain(output) == before
    assert "Not all tasks have all seeds of clip and mine" in output
    assert "the mean gain is over those that all have (0, 1, 2)" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--experiment papre", "no experiment 'papre' in the MLflow store; did you mean paper?"),
        ("--baseline mae", "baseline 'mae' has no finished task there"),
        ("--backbone clip,mae", "backbone 'clip' has no finished task there"),
        ("--task coco/ssd", "no run of task 'coco/ssd' in experiment paper"),
        ("--study x", "no study 'x' with a finished trial in the MLflow store"),
        ("--study x'y", 'no study "x\'y" with a finished trial'),
        ("--format pdf", "--format pdf: choose from html, md, csv, latex, methods"),
        (
            "--study x --baseline clip",
            "--study excludes --backbone, --task, --baseline and --pairs",
        ),
        ("--tracking-uri sqlite:///nothing.db", "there is no MLflow store at sqlite:///"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(out, refused, words, message):
    refused(f"report --out {out} {words}", message)
    assert not out.exists(), "nothing half-written"


def test_a_run_of_one_backbone_says_what_makes_its_report(workdir, capsys):
    """The page is an artifact of the parent run; a failing report does not fail the run."""
    make_imagefolder(workdir / "imagefolder", n_train=8, n_val=4)
    assert run_command(RUN) == 0
    before, _, words = capsys.readouterr().out.partition("for a report: python -m benchmark ")
    assert words == "report --experiment own --backbone random\n" and "top1" in before
    assert run_command(words) == 0 and Path("report/index.html").is_file()
    capsys.readouterr()
    assert run_command(f"{RUN} --report") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report: ")]
    assert run_command(f"{RUN} --no-report") == 0 and "report: /" not in capsys.readouterr().out
    page = Path(line.removeprefix("report: "))
    assert page.name == "index.html" and "imagefolder/linear" in page.read_text()
    runs = runs_of("own")
    (parent,) = [run for run in runs if "run.key" in run.data.tags]
    (child,) = [run for run in runs if run.data.tags.get("task") == "imagefolder/linear"]
    artifacts = store().list_artifacts(parent.info.run_id, "report")
    assert [artifact.path for artifact in artifacts] == ["report/index.html"]
    assert str(page).startswith(parent.info.artifact_uri)
    dataset = child.inputs.dataset_inputs[0].dataset
    assert '"uri": "' + str(workdir / "imagefolder") in dataset.source

    (Path(child.info.artifact_uri) / "per_image.npz").write_bytes(b"not a zip")
    assert run_command(f"{RUN} --report") == 0, "the numbers are safe"
    assert "no report was made: the artifact per_image.npz of run" in capsys.readouterr().out
    assert run_command(f"{RUN} --report --no-report") == 2


def test_what_a_comparison_can_find(results, monkeypatch, capsys):
    """One stored seed; a task that is not stored has the noise of its kind."""
    monkeypatch.chdir(results)
    tasks = "voc/linear,ade20k/linear,nyu-depth/linear"
    assert run_command(f"power --task {tasks} --seeds 1,3 --images 240 --difference 50") == 0
    head, *rows = capsys.readouterr().out.splitlines()[:4]
    assert "1 seed  3 seeds  seeds needed  images needed" in head
    voc, ade, nyu = (re.split("  +", row) for row in rows)
    assert voc[1:4] == ["mIoU", "%", "240"] and voc[5:7] == ["–", "1"]
    assert voc[1:] == ade[1:] and ade[-1] == "voc/linear, 1 comparison"
    assert nyu[-1] == "nyu-depth/linear, seeds alone, VisBench 0.27.0"


def noise_of(capsys, against: str) -> str:
    """Which task's noise `power` plans voc/linear with."""
    capsys.readouterr()
    assert run_command(f"power --task voc/linear --against {against}") == 0
    return re.split("  +", capsys.readouterr().out.splitlines()[1])[-1]


def test_power_knows_addresses_experiments_and_folders_from_one_another(workdir, capsys):
    """Two backbones in the experiment ``mini``, and one, which says nothing, in the folder."""
    probe = {"voc/linear": {"probe": "linear"}}
    for name, backbones in {"mini": ("clip", "random"), "alone": ("clip",)}.items():
        for backbone in backbones:
            write_run(Tracker(name), backbone, 0, {"voc/linear": 0.5}, task_tags=probe)
        assert run_command(f"results export --experiment {name} --out {name}.zip") == 0
    Path("mini").mkdir()
    Path("alone.zip").rename("mini/alone.zip")
    with fsspec.open("memory://bucket/results.zip", "wb") as file:
        file.write(Path("mini.zip").read_bytes())

    known = "voc/linear, 1 comparison"
    assert noise_of(capsys, "memory://bucket/results.zip") == known
    assert noise_of(capsys, "mini.zip") == noise_of(capsys, "mini") == known
    assert noise_of(capsys, "./mini") == noise_of(capsys, "mini/") != known
    Path("mlflow.db").unlink()
    assert noise_of(capsys, "mini") != known, "there is no experiment of this name any more"
    assert run_command("power --help") == 0 and "./NAME" in capsys.readouterr().out


def test_what_can_be_found_on_a_dataset_of_ones_own_that_is_stored(workdir, monkeypatch, capsys):
    """Without the plugin that has registered it."""
    monkeypatch.setitem(TASKS, "pets/linear", "classification")
    write_runs(Tracker("own"), {"clip": 0.5, "mine": 0.6}, ["pets/linear"])
    assert run_command("power --experiment own --task pets/linear --seeds 1") == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith("pets/linear  top-1") and row.endswith("pets/linear, 1 comparison")


def test_before_the_first_run_published_seeds_say_what_can_be_found(workdir, capsys):
    """Of paired differences whose noise is as published, more than 80 % are decided."""
    assert run_command("power --task ade20k/linear,imagefolder/knn --seeds 1,5") == 0
    text = capsys.readouterr().out
    head, ade, knn = (re.split("  +", row) for row in text.splitlines()[:3])
    row = dict(zip(head, ade, strict=True))
    assert row["1 seed"] == "–" and row["noise"].startswith("voc/linear, seeds alone")
    assert knn[-1] == "unknown" and "to another" in text
    deviation = next(float(r["value"]) for r in read_rows("seeds") if r["task"] == "voc/linear")
    error = np.sqrt(2 / 5) * deviation
    critical = stats.t.ppf(1 - first_level(2) / 2, 4)
    power = stats.nct.sf(critical, 4, float(row["5 seeds"]) / error)
    assert 0.8 < power < 1
    assert run_command("power --seeds 5") == 2, "no task"
