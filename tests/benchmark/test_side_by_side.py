"""Jobs in processes: results in order, progress and words reach the parent, errors arrive whole, nothing is left behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time

import pytest

from backbones.errors import UserError
from benchmark import side_by_side as module
from benchmark.execution.progress import Bar, console
from benchmark.side_by_side import Job, share_of, side_by_side
from tests.benchmark.jobs import leave, mistake, noted, square, unportable, vanish, wait, wrapped


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 2)


def test_results_in_order_and_words_of_all(capsys):
    with console.capture() as said, Bar() as bar:
        found = side_by_side([Job(square, {"number": number}) for number in (3, 1, 2)], bar)
    assert [result for result, *_ in found] == [9, 1, 4]
    processes = {process for _, process, _ in found}
    assert 1 <= len(processes) <= 2 and os.getpid() not in processes
    assert {threads for *_, threads in found} == {1}
    assert sorted(said.get().split("\n"))[1:] == ["said by 1", "said by 2", "said by 3"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # in processes, and one after the other in this one
def test_a_job_that_comes_after_another_takes_its_result(device, tmp_path):
    log = tmp_path / "log"
    jobs = [
        Job(noted, {"log": log, "name": "slow", "seconds": 1.5}),
        Job(noted, {"log": log, "name": "after slow"}, after=0, result_as="before"),
        Job(noted, {"log": log, "name": "free"}),
        Job(noted, {"log": log, "name": "after both"}, after=1, result_as="before", threads=2),
    ]
    found = side_by_side(jobs, Bar(), device=device)
    assert [result for result, _ in found] == ["slow", "slow < after slow", "free", "slow < after slow < after both"]
    if device == "cpu":
        assert log.read_text().split("\n")[0] == "free", "what can begin does not wait for what cannot"
        assert [threads for _, threads in found] == [1, 1, 1, 2]


def test_one_job_or_an_accelerator_needs_no_process():
    ((result, process, _),) = side_by_side([Job(square, {"number": 5})], Bar())
    assert (result, process) == (25, os.getpid())
    found = side_by_side([Job(square, {"number": 5})] * 2, Bar(), device="cuda")
    assert {process for _, process, _ in found} == {os.getpid()}
    assert side_by_side([], Bar()) == []


def test_threads_do_not_depend_on_what_is_left(monkeypatch):
    import torch

    before = torch.get_num_threads()
    ((_, process, threads),) = side_by_side([Job(square, {"number": 5}, threads=before + 1)], Bar())
    assert (process, threads) == (os.getpid(), before + 1) and torch.get_num_threads() == before
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    assert [share_of(jobs) for jobs in (1, 2, 9)] == [2, 1, 1] and share_of(9, most=1) == 2
    monkeypatch.setattr(module, "cores", lambda: 16)
    assert [share_of(jobs) for jobs in (1, 4, 6, 99)] == [12, 4, 2, 1]


def test_a_mistake_arrives_whole_and_ends_the_others(tmp_path):
    marker = tmp_path / "waiting"
    with pytest.raises(UserError, match="take another"):
        side_by_side([Job(wait, {"marker": marker}), Job(mistake)], Bar())
    assert not multiprocessing.active_children()


def test_a_cause_arrives_too():
    with pytest.raises(RuntimeError, match="a task broke") as raised:
        side_by_side([Job(wrapped), Job(wrapped)], Bar())
    assert isinstance(raised.value.__cause__, ValueError)
    assert "in wrapped" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("job", "said"), [(vanish, "a process died"), (leave, "without its result"), (unportable, "ickle")]
)
def test_a_process_that_ends_without_its_result_is_said(job, said):
    with pytest.raises((RuntimeError, AttributeError, pickle.PicklingError), match=said):
        side_by_side([Job(job), Job(job)], Bar())


def test_interrupted_jobs_may_save_what_they_have(tmp_path):
    markers = [tmp_path / "one", tmp_path / "two"]

    class Interrupted(Bar):
        def lane(self):
            while not all(marker.is_file() for marker in markers):
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side([Job(wait, {"marker": marker}) for marker in markers], Interrupted())
    assert all(marker.with_suffix(".saved").is_file() for marker in markers)
    assert not multiprocessing.active_children()
