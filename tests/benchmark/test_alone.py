"""One maker at a time: the second waits until the first is done, and nothing is left behind."""

from __future__ import annotations

import threading

from benchmark.alone import alone

from benchmark.execution.progress import Bar


class Told(Bar):
    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Event()

    def start(self, description: str, total: int) -> None:
        assert description == "another process makes weights: waiting for it"
        self.waits.set()


def test_the_second_waits_and_nothing_is_left(tmp_path):
    told, order = Told(), []

    def second() -> None:
        with alone(tmp_path / "weights", told):
            order.append("second")

    thread = threading.Thread(target=second)
    with alone(tmp_path / "weights", Bar()):
        thread.start()
        assert told.waits.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_without_a_lock_the_work_is_done_all_the_same(tmp_path):
    (tmp_path / "file").touch()
    done = []
    with alone(tmp_path / "file" / "inside", Bar()):
        done.append(True)
    assert done == [True]
