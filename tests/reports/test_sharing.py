"""Results that travel: exported, checked, refused, and compared with as if they were one's own."""

from __future__ import annotations

import io
import json
import socket
import threading
import zipfile
from contextlib import chdir, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
from tests.reports.synthetic import write_run

pytestmark = pytest.mark.integration

TASKS = ("voc/linear", "imagenet/linear")
QUALITY = {"a": 0.5, "b": 0.58, "c": 0.62, "d": 0.45}


def tracker_with(folder, names, seeds=range(2), **settings) -> Tracker:
    """A store with these backbones."""
    folder.mkdir()
    tracker = Tracker("paper", f"sqlite:///{folder}/mlflow.db")
    for name in names:
        for seed in seeds:
            write_run(tracker, name, seed, dict.fromkeys(TASKS, QUALITY[name]), **settings)
    return tracker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module", autouse=True)
def _inside(folder):
    with chdir(folder):
        yield


@pytest.fixture(scope="module")
def shared_file(folder):
    """A file with the backbones c and d."""
    tracker = tracker_with(folder / "others", "cd")
    path = folder / "others.zip"
    written = export_results(Store(tracker.uri), ["paper"], path, source="a lab")
    assert written.backbones == ["c", "d"] and written.cells == 8 and not written.notes
    return path


@pytest.fixture(scope="module")
def mine(folder):
    """A store with the backbones a and b."""
    return tracker_with(folder / "mine", "ab")


def intervals(report) -> dict:
    analysis = report.analysis
    return {
        (name, column.task, metric): (e.value, e.low, e.high)
        for part in (analysis.estimates, analysis.differences)
        for (name, column, metric), e in part.items()
    } | {name: (gain.mean.value, gain.mean.low) for name, gain in analysis.gains.items()}


def test_two_homes_give_the_intervals_of_one(folder, mine, shared_file):
    single_home = tracker_with(folder / "one", "abcd")
    request = {"experiments": ["paper"], "baseline": "a"}
    alone = build_report(ReportRequest(**request, tracking_uri=single_home.uri))
    merged = build_report(
        ReportRequest(**request, tracking_uri=mine.uri, shared=[str(shared_file)])
    )
    assert set(merged.backbones) == set("abcd")
    assert intervals(merged) == intervals(alone)
    assert "Shared results, not made here: c, d (from a lab)." in merged.notes
    export_results(Store(mine.uri), ["paper"], folder / "mine.zip")
    board = build_leaderboard(load_files([str(folder / "mine.zip"), str(shared_file)]))
    of_board, of_report = (
        {(name, column.task, metric): e for (name, column, metric), e in of.estimates.items()}
        for of in (board.analysis, alone.analysis)
    )
    assert of_board == {key: of_report[key] for key in of_board}, "a leaderboard's, too"
    assert len(of_board) == len(QUALITY) * len(TASKS)


def test_a_shared_baseline_has_both_marks(mine, shared_file):
    request = ReportRequest(
        ["paper"], baseline="c", tracking_uri=mine.uri, shared=[str(shared_file)]
    )
    assert "<small>shared: a lab · baseline</small>" in render_page(build_report(request))


def test_the_same_runs_give_the_same_bytes_and_no_path(folder, shared_file):
    again = tracker_with(folder / "again", "cd")
    export_results(Store(again.uri), ["paper"], folder / "again.zip", source="a lab")
    assert (folder / "again.zip").read_bytes() == shared_file.read_bytes()
    with zipfile.ZipFile(shared_file) as archive:
        texts = [archive.read(n).decode() for n in archive.namelist() if n.endswith(".json")]
    assert not any(str(folder) in text or "/tmp" in text for text in texts)
    value = {"a": ["/home/me/x.pt", "~/y", "https://me:secret@host/z"], "b": 1}
    assert without_paths(value) == {"a": ["x.pt", "y", "https://***@host/z"], "b": 1}


def changed(shared_file, change) -> bytes:
    """A file with new checksums after ``change(cells, members)``; ``cells``: task → a cell."""
    results = read_archive(shared_file.read_bytes(), "others")
    members = {name: content for name, content in results.members.items() if name != "runs.json"}
    cells = {cell.task: cell for cell in results.cells}
    others = [cell for cell in results.cells if cell not in cells.values()]
    change(cells, members)
    path = shared_file.with_name("changed.zip")
    write_archive(path, "", "1", [*results.parents.values(), *others, *cells.values()], members)
    return path.read_bytes()


def update(cells, task="voc/linear", **fields):
    cells[task] = cells[task].model_copy(update=fields)


def _metric(cells, members):
    metrics = cells["voc/linear"].metrics
    update(cells, metrics={**metrics, "mIoU": metrics["mIoU"] + 0.2})


def _image(cells, members):
    name = f"{cells['imagenet/linear'].run_id}/{PER_IMAGE}"
    with np.load(io.BytesIO(members[name])) as stored:
        arrays = dict(stored)
    arrays["image"][3] = "easy.jpg"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    members[name] = buffer.getvalue()


def _protocol(cells, members):
    name = f"{cells['voc/linear'].run_id}/{PROTOCOL}"
    members[name] = members[name].replace(b'"max_iters":10', b'"max_iters":99')


def _protocol_and_hash(cells, members):
    _protocol(cells, members)
    conditions = json.loads(members[f"{cells['voc/linear'].run_id}/{PROTOCOL}"])
    update(cells, protocol=content_key(conditions))


def _weights(cells, members):
    update(cells, weights="0" * 64)


def _without_scores(cells, members):
    del members[f"{cells['voc/linear'].run_id}/{PER_IMAGE}"]


def _name(cells, members):
    update(cells, backbone="clip\x1b[2J")


def _kind(cells, members):
    update(cells, kind="depth")


def _probe(cells, members):
    update(cells, probe="knn")


def _twice(cells, members):
    cells["again"] = cells["voc/linear"]


def _under_another_id(cells, members):
    cell, copy = cells["voc/linear"], "f" * 16
    for name in [name for name in members if name.startswith(cell.run_id)]:
        members[name.replace(cell.run_id, copy)] = members[name]
    cells["again"] = cell.model_copy(update={"run_id": copy})


def _infinite_cost(cells, members):
    update(cells, costs={"seconds": float("inf")})


def _in_a_member(old: bytes, new: bytes):
    def change(cells, members):
        for name in filter(lambda name: name.endswith(".json"), members):
            members[name] = members[name].replace(old, new)

    return change


def _list(cells, members):
    members[f"{cells['voc/linear'].run_id}/{PROTOCOL}"] = b"[]"


def _many_arrays(cells, members):
    buffer = io.BytesIO()
    np.savez(buffer, **{f"a{number}": np.zeros(1) for number in range(30_000)})
    members[f"{cells['voc/linear'].run_id}/{PER_IMAGE}"] = buffer.getvalue()


def _large(cells, members):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image=np.zeros(80_000_000, np.uint8))
    members[f"{cells['voc/linear'].run_id}/{PER_IMAGE}"] = buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_metric, "by its per-image scores"),
        (_image, "its images are not those of"),
        (_protocol, "its protocol is not the one"),
        (_protocol_and_hash, "that the tag `cell` is the hash of"),
        (_weights, "weights is not that of its parent"),
        (_without_scores, "no per-image scores"),
        (_name, "tags.backbone': String should match"),
        (_kind, "no probe for this task"),
        (_probe, "task, dataset, probe"),
        (_twice, "another id than its own, or is there twice"),
        (_under_another_id, "another id than its own, or is there twice"),
        (_infinite_cost, "metrics"),
        (_in_a_member(b'"python":"3.11"', b'"python":NaN'), "not JSON compliant"),
        (_in_a_member(b'"size":[224,224]', b'"size":224'), "size"),
        (_list, "valid dictionary"),
        (
            _in_a_member(b'"fingerprint"', b'"extra":{"main_metric":["top1"]},"fingerprint"'),
            "dataset.extra.main_metric': Input should be a valid string",
        ),
        (
            _in_a_member(b'"settings":{"max_iters":10,"which":"p"}', b'"settings":[]'),
            "settings': Input should be a valid dictionary",
        ),
        (_many_arrays, "it has 30000 arrays"),
        (_large, "inflates to more than"),
    ],
)
def test_a_false_file_is_refused_with_the_reason(shared_file, change, reason):
    content = changed(shared_file, change)
    with pytest.raises(TrackingError, match=reason):
        check_results(read_archive(content, "others"))


@pytest.mark.parametrize(
    "declared", [{"top5": Metric(), "top1": Metric()}, {"top1": Metric(direction=-1)}]
)
def test_what_a_metric_is_follows_from_its_probe(shared_file, declared):
    content = changed(
        shared_file, lambda cells, _: update(cells, "imagenet/linear", declared=declared)
    )
    cells = read_archive(content, "others").cells
    mains = {(cell.main, cell.declared[cell.main].direction) for cell in cells}
    assert mains == {("mIoU", 1), ("top1", 1)}


def entry(content: bytes, offset: int, value: bytes) -> bytes:
    """The file with bytes changed in the last entry of its index."""
    at = content.rindex(b"PK\x01\x02") + offset
    return content[:at] + value + content[at + len(value) :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:1000],
        lambda content: content[:60] + bytes(8) + content[68:],
        lambda content: entry(content, 8, b"\x01"),  # encrypted
        lambda content: entry(content, 10, b"\x63"),  # an unknown method
    ],
)
def test_a_damaged_download_is_one_line(shared_file, damage):
    with pytest.raises(TrackingError, match="others is not a file of `results export`"):
        read_archive(damage(shared_file.read_bytes()), "others")


def test_a_file_without_results_is_refused(folder):
    write_archive(folder / "none.zip", "", "1", [], {})
    with pytest.raises(TrackingError, match="none has no results"):
        read_archive((folder / "none.zip").read_bytes(), "none")


def test_a_server_that_sends_nothing_and_a_folder_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "TIMEOUT", 0.1)
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(TrackingError, match=r"no file of `results export`"):
        load_files([str(tmp_path)])
    server = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.getsockname()[1]}/x.zip"
    with server, pytest.raises(TrackingError, match="cannot fetch"):
        load_files([url])
    with pytest.raises(TrackingError, match="Cannot connect"):  # nobody listens any more
        load_files([url])


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


def test_a_large_file_is_not_read(shared_file, monkeypatch):
    monkeypatch.setattr(sharing, "LARGEST", 1000)
    with pytest.raises(TrackingError, match=r"others.zip has .* export some backbones at a time"):
        load_files([str(shared_file)])


def test_scores_that_were_copied_to_other_seeds_count_once(folder, monkeypatch):
    original = synthetic.scores
    monkeypatch.setattr(synthetic, "scores", lambda *args: original(*args[:2], 0, args[3]))
    copies = tracker_with(folder / "copies", "c", range(3))
    export_results(Store(copies.uri), ["paper"], folder / "copies.zip")
    files = load_files([str(folder / "copies.zip")])
    (results,) = read_files(files)
    assert [cell.seed for cell in results.cells] == [0, 0] and len(results.notes) == 4
    monkeypatch.setattr(sharing, "SEEDED", {"neighbours"})  # as of a probe that draws nothing
    (results,) = read_files(files)
    assert len(results.cells) == 6


def test_two_files_that_disagree_on_a_cell_are_both_named(shared_file):
    files = [("mine", shared_file.read_bytes()), ("theirs", changed(shared_file, _metric))]
    with pytest.raises(TrackingError, match="mine and theirs have other scores of d · voc/linear"):
        list(read_files(files))


def test_an_unpacked_file_is_verified_again(mine, shared_file, monkeypatch):
    request = ReportRequest(["paper"], tracking_uri=mine.uri, shared=[str(shared_file)])
    build_report(request)
    scorer = SCORERS["segmentation"]

    def other_scorer(images, arrays):
        return scorer(images, arrays | {"intersection": arrays["intersection"] // 2})

    monkeypatch.setitem(SCORERS, "segmentation", other_scorer)  # as by another plugin
    with pytest.raises(TrackingError, match="by its per-image scores"):
        build_report(request)


def test_a_changed_byte_and_other_files_are_refused(shared_file, folder):
    content = shared_file.read_bytes()
    assert len(check_results(read_archive(content, "others"))) == 8
    with zipfile.ZipFile(shared_file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["runs.json"] = members["runs.json"].replace(b'"seed":"0"', b'"seed":"7"')
    with zipfile.ZipFile(folder / "edited.zip", "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    with pytest.raises(TrackingError, match=r"runs.json is not what was exported"):
        read_archive((folder / "edited.zip").read_bytes(), "edited")
    with pytest.raises(TrackingError, match="no shared results at nowhere"):
        load_files(["nowhere"])


def test_another_protocol_has_its_own_column_and_other_versions_do_not(folder, mine, shared_file):
    quick = tracker_with(folder / "quick", "c", protocol="quick")
    newer = tracker_with(folder / "newer", "d", libraries={"torch": "3"})
    for tracker, name in ((quick, "quick"), (newer, "newer")):
        export_results(Store(tracker.uri), ["paper"], folder / f"{name}.zip")
    request = {"experiments": ["paper"], "tracking_uri": mine.uri, "baseline": "a"}
    report = build_report(ReportRequest(**request, shared=[str(folder / "quick.zip")]))
    assert {c.title for c in report.columns if c.task == "voc/linear"} == {
        "voc/linear (A)",
        "voc/linear (B)",
    }
    report = build_report(ReportRequest(**request, shared=[str(folder / "newer.zip")]))
    assert {column.letter for column in report.columns} == {""}
    assert any("other versions of torch" in note for note in report.notes)


@pytest.mark.parametrize("seeds", [(0, 1), (5,)])
def test_other_weights_of_the_same_name_are_told_apart(folder, mine, seeds):
    theirs = tracker_with(folder / f"{seeds}", "a", seeds, weights="trained elsewhere")
    export_results(Store(theirs.uri), ["paper"], folder / "theirs.zip")
    request = {"experiments": ["paper"], "tracking_uri": mine.uri, "baseline": "a"}
    report = build_report(ReportRequest(**request, shared=[str(folder / "theirs.zip")]))
    assert report.backbones == ["a", "b", "a (theirs)"]


def test_shared_tuned_numbers_have_the_columns_of_their_tier(folder, tmp_path):
    tasks = {"voc/linear": 0.5, "voc/linear:tune=lora:16": 0.7}
    tracker = Tracker("tiers", f"sqlite:///{tmp_path}/mlflow.db")
    for name in "ab":
        for seed in range(2):
            write_run(tracker, name, seed, tasks)
    export_results(Store(tracker.uri), ["tiers"], tmp_path / "tiers.zip")
    board = build_leaderboard(load_files([str(tmp_path / "tiers.zip")]))
    columns = {column.task: column.tier for column in board.analysis.selection.columns}
    assert columns == {"voc/linear": "", "voc/linear:tune=lora:16": "tune=lora:16"}
