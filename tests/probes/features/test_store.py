"""Stores of features: what is kept is what was made, and nothing that is damaged, stale or
half-written is ever read."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback

import pytest
import torch

from common.errors import UserError
from probes.features import budget
from probes.features import store as feature_cache
from probes.features.store import CacheKey, get_or_build, read_manifest, remove

torch.set_num_threads(1)
ITEMS = 12


@pytest.fixture(autouse=True)
def small_shards(tmp_path, monkeypatch):
    """A cache of its own, whose shards hold a few items only."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 3 * 200)


def recipe(items: int = ITEMS, dtypes: tuple[str, ...] = ("fp32", "fp16"), **identity) -> CacheKey:
    return CacheKey("dense maps", "a test", {"weights": "w", **identity}, dtypes, [200] * items)


def value(item: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(item)
    return [
        torch.randn(2, 3, 4 + item % 3, generator=generator),
        torch.randn(5, generator=generator).half(),
    ]


def maker(made: list[int] | None = None, backwards: bool = True):
    def make(wanted):
        for shard in wanted:
            for item in reversed(shard) if backwards else shard:
                if made is not None:
                    made.append(item)
                yield item, value(item), {"item": item}

    return make


def is_right(store) -> bool:
    same = [
        all(torch.equal(a, b) for a, b in zip(store[i], value(i), strict=True))
        and store.metadata(i) == {"item": i}
        for i in range(ITEMS)
    ]
    return len(store) == ITEMS and all(same)


def in_child(work) -> int:
    """Run ``work`` in a forked process; returns it's exit code (negative: the signal that killed
    it)."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_is_kept_is_what_was_made_and_made_once():
    made: list[int] = []
    with_shards = get_or_build(recipe(), maker(made))
    assert is_right(with_shards) and sorted(made) == list(range(ITEMS))
    assert len(list(with_shards.folder.glob("*.safetensors"))) == 4
    again = get_or_build(recipe(), maker(made))
    assert is_right(again) and len(made) == ITEMS
    with pytest.raises(IndexError):
        again[ITEMS]


def test_every_dtype_comes_back_bit_by_bit():
    values = [
        torch.randn(3, 2),
        torch.randn(3).half(),
        torch.randn(4).bfloat16(),
        torch.arange(5, dtype=torch.uint8),
        torch.tensor([0, 65535], dtype=torch.int32).to(torch.uint16),
    ]
    kind = CacheKey("ground truth", "types", {}, ("fp32", "fp16", "bf16", "uint8", "uint16"), [100])
    store = get_or_build(kind, lambda wanted: [(0, values, {})])
    for kept, given in zip(store[0], values, strict=True):
        assert kept.dtype == given.dtype and torch.equal(kept.float(), given.float())


def test_stacked_is_all_items_in_order():
    rows = torch.randn(ITEMS, 7)
    made = CacheKey("embeddings", "rows", {}, ("fp32",), [28] * ITEMS)
    store = get_or_build(
        made, lambda wanted: [(i, [rows[i]], {}) for shard in wanted for i in shard]
    )
    assert torch.equal(store.stacked(), rows)


def test_another_recipe_is_another_store():
    others = [
        recipe(),
        recipe(weights="v"),
        recipe(view="flip"),
        recipe(split="val"),
        recipe(11),
        recipe(dtypes=("fp16", "fp16")),
        CacheKey("ground truth", "a test", {"weights": "w"}, ("fp32", "fp16"), [1]),
    ]
    assert len({key.digest for key in others}) == 7


@pytest.mark.parametrize("damage", ["truncated", "longer", "altered", "header", "gone"])
def test_a_damaged_shard_is_found_said_and_made_again(damage, caplog):
    store = get_or_build(recipe(), maker())
    store.close()
    shard = store.folder / "00002.safetensors"
    if damage == "truncated":
        os.truncate(shard, shard.stat().st_size - 1)
    elif damage == "longer":
        shard.write_bytes(shard.read_bytes() + b"x")
    elif damage == "altered":
        data = bytearray(shard.read_bytes())
        data[-100] ^= 1
        shard.write_bytes(data)
    elif damage == "header":
        shard.write_bytes(shard.read_bytes().replace(b'\\"item\\": 7', b'\\"item\\": 8'))
    else:
        shard.unlink()
    made: list[int] = []
    mended = get_or_build(recipe(), maker(made))
    assert is_right(mended)
    assert sorted(made) == [6, 7, 8]  # the other shards are whole
    assert "00002.safetensors" in mended.notes[0] and "made again" in mended.notes[0]
    assert mended.notes[0] in caplog.text


def test_a_manifest_that_was_meddled_with_does_not_count():
    store = get_or_build(recipe(), maker())
    store.close()
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace('"dtypes": [\n    "fp32"', '"dtypes": [\n    "fp16"'))
    assert read_manifest(store.folder) is None
    assert is_right(get_or_build(recipe(), maker()))


def test_kill_9_anywhere_leaves_nothing_that_counts_as_done(tmp_path):
    """A forked process makes a store and kills itself at its n-th function call, for random n up to
    the last."""
    calls = 0

    def count(frame, event, argument) -> None:
        nonlocal calls
        calls += 1

    get_or_build(recipe(), maker()).close()  # what is imported on the way is imported now
    shutil.rmtree(tmp_path / "home")
    sys.setprofile(count)
    store = get_or_build(recipe(), maker())
    sys.setprofile(None)
    folder = store.folder
    store.close()
    dice = random.Random(0)
    unfinished = kept = 0
    for last in [dice.randrange(1, calls) for _ in range(20)]:
        shutil.rmtree(tmp_path / "home")

        def die_at(last: int = last) -> None:
            seen = 0

            def step(frame, event, argument) -> None:
                nonlocal seen
                seen += 1
                if seen == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.setprofile(step)
            get_or_build(recipe(), maker())

        assert in_child(die_at) == -signal.SIGKILL
        done = read_manifest(folder)
        unfinished += done is None
        made: list[int] = []
        store = get_or_build(recipe(), maker(made))
        assert is_right(store) and not store.notes
        assert not made if done else True
        kept += 0 < len(made) < ITEMS
        assert done or not list(folder.glob(".*.tmp"))
        store.close()
    assert (
        unfinished > 10 and kept > 3
    )  # most died in the middle, and what was finished then was not made again


def test_two_processes_make_one_store_once(tmp_path):
    journal = tmp_path / "made"

    def noting(wanted):
        for item, arrays, facts in maker()(wanted):
            with journal.open("a") as file:
                file.write(f"{item}\n")
            yield item, arrays, facts

    def work() -> None:
        assert is_right(get_or_build(recipe(), noting))

    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    assert sorted(map(int, journal.read_text().split())) == list(range(ITEMS))


def test_a_store_in_use_is_not_removed():
    store = get_or_build(recipe(), maker())
    assert in_child(lambda: os._exit(int(remove(store.folder)))) == 0
    store.close()
    assert remove(store.folder) and not store.folder.exists()


def test_each_reader_keeps_a_store_and_a_killed_one_does_not():
    first, second = get_or_build(recipe(), maker()), get_or_build(recipe(), maker())
    assert not remove(first.folder)
    first.close()
    first.close()  # does no harm, nor to the second
    assert not remove(second.folder) and is_right(second)
    in_child(second.close)  # a loader has no say
    assert not remove(second.folder)
    ends, begun = os.pipe()
    reader = os.fork()
    if reader == 0:
        store = get_or_build(recipe(), maker())
        os.write(begun, b"x")
        time.sleep(60)
        os._exit(len(store))
    os.read(ends, 1)
    threading.Thread(target=second.close).start()
    time.sleep(0.2)
    assert not remove(second.folder), "the other process reads it"
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    assert remove(second.folder)


def test_a_damaged_store_is_mended_while_another_reads_it():
    store = get_or_build(recipe(), maker())
    assert is_right(store)
    shard = store.folder / feature_cache.shard_name(1)
    shard.with_suffix(".new").write_bytes(bytes(shard.stat().st_size))
    shard.with_suffix(".new").replace(shard)
    mended = get_or_build(recipe(), maker())
    assert mended.notes and is_right(mended) and is_right(store)


def test_the_least_recently_used_go_when_room_is_needed(monkeypatch):
    folders = []
    for number in range(3):
        store = get_or_build(recipe(number=number), maker())
        store.close()
        os.utime(store.folder / "used", (1000 + number, 1000 + number))
        folders.append(store.folder)
    get_or_build(recipe(number=0), maker()).close()  # used again
    size = budget.size_of(folders[0])
    monkeypatch.setenv(budget.VARIABLE, str((3 * size + 100) / 1e9))
    get_or_build(recipe(number=3), maker()).close()
    assert [folder.exists() for folder in folders] == [True, False, True]


def test_what_does_not_fit_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv(budget.VARIABLE, "0.000001")
    with pytest.raises(
        UserError,
        match=r"features of a test would take 0\.0 MB, and the cache may hold 0\.0 MB; raise",
    ):
        get_or_build(recipe(), maker())
    monkeypatch.setenv(budget.VARIABLE, "many")
    with pytest.raises(UserError, match="not a number of gigabytes"):
        get_or_build(recipe(), maker())


def test_stores_in_use_leave_no_room(monkeypatch):
    store = get_or_build(recipe(), maker())
    monkeypatch.setenv(budget.VARIABLE, str(budget.size_of(store.folder) / 1e9))
    with pytest.raises(UserError, match="in use by this task or other processes"):
        get_or_build(recipe(number=1), maker())


def test_what_is_not_finite_in_fp16_is_refused():
    with pytest.raises(UserError, match="use cache=bf16"):
        feature_cache.as_dtype([torch.tensor([70000.0])], "fp16", "a test")
    assert feature_cache.as_dtype([torch.tensor([70000.0])], "bf16", "a test")[0].isfinite().all()
