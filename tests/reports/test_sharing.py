"""Results that travel: exported, checked, refused, and compared with as if they were one's own."""

from __future__ import annotations

import io
import json
import socket
import threading
import zipfile
from contextlib import chdir, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cliptex_common.files import content_key
from reports import sharing
from reports.leaderboard import build_leaderboard
from reports.pages import render_page
from reports.per_image import SCORERS
from reports.records import PER_IMAGE, PROTOCOL, Metric, TrackingError
from reports.report import ReportRequest, build_report
from reports.sharing import (
    check_results,
    export_results,
    load_files,
    read_archive,
    read_files,
    without_paths,
    write_archive,
)
from reports.store import Store
from reports.tracking import Tracker
from tests.reports import synthetic
from tests.reports.synthetic import write_runs

pytestmark = pytest.mark.integration

VOC, IMAGENET = TASKS = ("voc/linear", "imagenet/linear")
QUALITY = {"a": 0.5, "b": 0.58, "c": 0.62, "d": 0.45}


def tracker_with(folder: Path, names: str, seeds=range(2), **settings) -> Tracker:
    """A store with these backbones."""
    folder.mkdir()
    tracker = Tracker("paper", f"sqlite:///{folder}/mlflow.db")
    write_runs(tracker, {name: QUALITY[name] for name in names}, TASKS, seeds, **settings)
    return tracker


def share(tracker: Tracker, path: Path, source: str = "") -> Path:
    export_results(Store(tracker.uri), ["paper"], path, source=source)
    return path


def report_with(tracker: Tracker, *files: Path, baseline: str = "a"):
    shared = [str(path) for path in files]
    return build_report(
        ReportRequest(["paper"], baseline=baseline, tracking_uri=tracker.uri, shared=shared)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    with chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def shared_file(folder):
    """A file with the backbones c and d."""
    return share(tracker_with(folder / "others", "cd"), folder / "others.zip", "a lab")


@pytest.fixture(scope="module")
def content(shared_file):
    return shared_file.read_bytes()


@pytest.fixture(scope="module")
def mine(folder):
    """A store with the backbones a and b."""
    return tracker_with(folder / "mine", "ab")


def intervals(analysis) -> dict:
    return {
        (name, column.task, metric): (e.value, e.low, e.high)
        for part in (analysis.estimates, analysis.differences)
        for (name, column, metric), e in part.items()
    } | {name: (gain.mean.value, gain.mean.low) for name, gain in analysis.gains.items()}


def test_two_homes_give_the_intervals_of_one(folder, mine, shared_file):
    alone = report_with(tracker_with(folder / "one", "abcd"))
    merged = report_with(mine, shared_file)
    assert set(merged.backbones) == set("abcd")
    assert intervals(merged.analysis) == intervals(alone.analysis)
    assert "Shared results, not made here: c, d (from a lab)." in merged.notes
    board = build_leaderboard(load_files([str(share(mine, folder / "mine.zip")), str(shared_file)]))
    of_board, of_report = (
        {(name, column.task, metric): e for (name, column, metric), e in of.estimates.items()}
        for of in (board.analysis, alone.analysis)
    )
    assert of_board == {key: of_report[key] for key in of_board}, "a leaderboard's, too"
    assert len(of_board) == len(QUALITY) * len(TASKS)
    page = render_page(report_with(mine, shared_file, baseline="c"))
    assert "<small>shared: a lab · baseline</small>" in page


def test_the_same_runs_give_the_same_bytes_and_no_path(folder, content):
    again = share(tracker_with(folder / "again", "cd"), folder / "again.zip", "a lab")
    assert again.read_bytes() == content
    with zipfile.ZipFile(again) as archive:
        texts = [archive.read(n).decode() for n in archive.namelist() if n.endswith(".json")]
    assert not any(str(folder) in text or "/tmp" in text for text in texts)
    value = {"a": ["/home/me/x.pt", "~/y", "https://me:secret@host/z"], "b": 1}
    assert without_paths(value) == {"a": ["x.pt", "y", "https://***@host/z"], "b": 1}


def changed(content: bytes, change, task: str = VOC) -> bytes:
    """A file with new checksums after a change of a cell of a task: of its fields (a mapping), of
    text in all JSON files (old, new), or ``change(cell, members)``, which returns what replaces
    the cell, or None."""
    results = read_archive(content, "others")
    members = {name: member for name, member in results.members.items() if name != "runs.json"}
    cells = list(results.cells)
    number = next(number for number, cell in enumerate(cells) if cell.task == task)
    if isinstance(change, dict):
        cells[number] = cells[number].model_copy(update=change)
    elif isinstance(change, tuple):
        for name in members:
            if name.endswith(".json"):
                members[name] = members[name].replace(*change)
    else:
        cells[number : number + 1] = change(cells[number], members) or [cells[number]]
    write_archive(Path("changed.zip"), "", "1", [*results.parents.values(), *cells], members)
    return Path("changed.zip").read_bytes()


def other_metric(cell, members):
    cell.metrics["mIoU"] += 0.2


def other_protocol(cell, members):
    name = f"{cell.run_id}/{PROTOCOL}"
    members[name] = members[name].replace(b'"max_iters":10', b'"max_iters":99')


def other_protocol_and_hash(cell, members):
    other_protocol(cell, members)
    protocol = content_key(json.loads(members[f"{cell.run_id}/{PROTOCOL}"]))
    return [cell.model_copy(update={"protocol": protocol})]


def without_scores(cell, members):
    del members[f"{cell.run_id}/{PER_IMAGE}"]


def under_another_id(cell, members):
    for name in [name for name in members if name.startswith(cell.run_id)]:
        members[name.replace(cell.run_id, "f" * 16)] = members.pop(name)
    return [cell.model_copy(update={"run_id": "f" * 16})]


def with_arrays(**changes):
    def change(cell, members):
        name, buffer = f"{cell.run_id}/{PER_IMAGE}", io.BytesIO()
        with np.load(io.BytesIO(members[name])) as stored:
            np.savez_compressed(buffer, **{**stored, **changes})
        members[name] = buffer.getvalue()

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_metric, "by its per-image scores"),
        (other_protocol, "its protocol is not the one"),
        (other_protocol_and_hash, "that the tag `cell` is the hash of"),
        (without_scores, "no per-image scores"),
        (lambda cell, members: [cell, cell], "another id than its own, or is there twice"),
        (under_another_id, "another id than its own, or is there twice"),
        (with_arrays(image=np.array([f"{n}.jpg" for n in range(60)])), "its images are not those"),
        (with_arrays(large=np.zeros(80_000_000, np.uint8)), "inflates to more than"),
        (with_arrays(**{f"a{number}": 0 for number in range(30_000)}), "it has 3000. arrays"),
        ({"weights": "0" * 64}, "weights is not that of its parent"),
        ({"backbone": "clip\x1b[2J"}, "tags.backbone': .*no control characters"),
        ({"kind": "depth"}, "no probe for this task"),
        ({"probe": "knn"}, "task, dataset, probe"),
        ({"costs": {"seconds": float("inf")}}, "metrics"),
        ((b'"python":"3.11"', b'"python":NaN'), "not JSON compliant"),
        ((b'"size":[224,224]', b'"size":224'), "size"),
        (
            (b'"fingerprint"', b'"extra":{"main_metric":["top1"]},"fingerprint"'),
            "dataset.extra.main_metric': Input should be a valid string",
        ),
        (
            (b'"settings":{"max_iters":10,"which":"p"}', b'"settings":[]'),
            "settings': Input should be a valid dictionary",
        ),
    ],
)
def test_a_false_file_is_refused_with_the_reason(content, change, reason):
    assert len(check_results(read_archive(content, "others"))) == 8
    with pytest.raises(TrackingError, match=reason):
        check_results(read_archive(changed(content, change), "others"))


@pytest.mark.parametrize(
    "declared", [{"top5": Metric(), "top1": Metric()}, {"top1": Metric(direction=-1)}]
)
def test_what_a_metric_is_follows_from_its_probe(content, declared):
    cells = read_archive(changed(content, {"declared": declared}, IMAGENET), "others").cells
    mains = {(cell.main, cell.declared[cell.main].direction) for cell in cells}
    assert mains == {("mIoU", 1), ("top1", 1)}


def entry(content: bytes, offset: int, value: bytes) -> bytes:
    """The file with bytes changed in the last entry of its index."""
    at = content.rindex(b"PK\x01\x02") + offset
    return content[:at] + value + content[at + len(value) :]


def other_seed(content: bytes) -> bytes:
    """The file with its checksums, and another seed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["runs.json"] = members["runs.json"].replace(b'"seed":"0"', b'"seed":"7"')
    with zipfile.ZipFile("edited.zip", "w") as archive:
        for member in members.items():
            archive.writestr(*member)
    return Path("edited.zip").read_bytes()


def without_results(content: bytes) -> bytes:
    write_archive(Path("none.zip"), "", "1", [], {})
    return Path("none.zip").read_bytes()


NO_ARCHIVE = "others is not a file of `results export`"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda content: content[:1000], NO_ARCHIVE, id="cut"),
        pytest.param(lambda content: content[:60] + bytes(8) + content[68:], NO_ARCHIVE, id="hole"),
        pytest.param(lambda content: entry(content, 8, b"\x01"), NO_ARCHIVE, id="encrypted"),
        pytest.param(lambda content: entry(content, 10, b"\x63"), NO_ARCHIVE, id="other method"),
        (other_seed, r"runs.json is not what was exported"),
        (without_results, "others has no results"),
    ],
)
def test_a_damaged_download_is_one_line(content, damage, message):
    with pytest.raises(TrackingError, match=message):
        read_archive(damage(content), "others")


def test_what_cannot_be_loaded_is_one_line(tmp_path, shared_file, monkeypatch):
    def check(location, message):
        with pytest.raises(TrackingError, match=message):
            load_files([str(location)])

    (tmp_path / "folder.zip").mkdir()
    check(tmp_path, r"no file of `results export`")
    check("nowhere", "no shared results at nowhere")
    monkeypatch.setattr(sharing, "LARGEST", 1000)
    check(shared_file, r"others.zip has .* export some backbones at a time")
    monkeypatch.setattr(sharing, "TIMEOUT", 0.1)
    server = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.getsockname()[1]}/x.zip"
    with server:
        check(url, "cannot fetch")
    check(url, "Cannot connect")  # nobody listens any more


class EndlessFile(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        with suppress(OSError):
            while True:
                self.wfile.write(b"a")


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [("LARGEST", 1000, "it has more than"), ("MOST_SECONDS", 0.5, "TimeoutError")],
)
def test_a_download_without_an_end_is_one_line(limit, value, reason, monkeypatch):
    monkeypatch.setattr(sharing, limit, value)
    with ThreadingHTTPServer(("127.0.0.1", 0), EndlessFile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(TrackingError, match=f"cannot fetch .*{reason}"):
            load_files([f"http://127.0.0.1:{server.server_port}/x.zip"])
        server.shutdown()


def test_scores_that_were_copied_to_other_seeds_count_once(folder, monkeypatch):
    original = synthetic.scores
    monkeypatch.setattr(synthetic, "scores", lambda *args: original(*args[:2], 0, args[3]))
    copies = share(tracker_with(folder / "copies", "c", range(3)), folder / "copies.zip")
    files = load_files([str(copies)])
    (results,) = read_files(files)
    assert [cell.seed for cell in results.cells] == [0, 0] and len(results.notes) == 4
    monkeypatch.setattr(sharing, "SEEDED", {"neighbours"})  # as of a probe that draws nothing
    (results,) = read_files(files)
    assert len(results.cells) == 6


def test_two_files_that_disagree_on_a_cell_are_both_named(content):
    files = [("mine", content), ("theirs", changed(content, other_metric))]
    with pytest.raises(TrackingError, match=r"mine and theirs have other scores of . · voc/linear"):
        list(read_files(files))


def test_an_unpacked_file_is_verified_again(mine, shared_file, monkeypatch):
    report_with(mine, shared_file)
    scorer = SCORERS["segmentation"]

    def other_scorer(images, arrays):
        return scorer(images, arrays | {"intersection": arrays["intersection"] // 2})

    monkeypatch.setitem(SCORERS, "segmentation", other_scorer)  # as by another plugin
    with pytest.raises(TrackingError, match="by its per-image scores"):
        report_with(mine, shared_file)


def test_another_protocol_has_its_own_column_and_other_versions_do_not(folder, mine):
    quick = share(tracker_with(folder / "quick", "c", protocol="quick"), folder / "quick.zip")
    titles = {c.title for c in report_with(mine, quick).columns if c.task == VOC}
    assert titles == {"voc/linear (A)", "voc/linear (B)"}
    newer = tracker_with(folder / "newer", "d", libraries={"torch": "3"})
    report = report_with(mine, share(newer, folder / "newer.zip"))
    assert {column.letter for column in report.columns} == {""}
    assert any("other versions of torch" in note for note in report.notes)


@pytest.mark.parametrize("seeds", [(0, 1), (5,)])
def test_other_weights_of_the_same_name_are_told_apart(folder, mine, seeds):
    theirs = tracker_with(folder / f"{seeds}", "a", seeds, weights="trained elsewhere")
    report = report_with(mine, share(theirs, folder / "theirs.zip"))
    assert report.backbones == ["a", "b", "a (theirs)"]
