"""Stores of features: what is read is what was built; damaged or incomplete stores never count."""

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

from cliptex_common.errors import UserError
from probes.features import files as budget
from probes.features import store as feature_store
from probes.features.store import CacheKey, get_or_build, remove_store

ITEMS = 12


@pytest.fixture(autouse=True)
def small_shards(tmp_path, monkeypatch):
    """A cache of its own, with four shards of three items."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(feature_store, "SHARD_BYTES", 3 * 200)


def cache_key(items: int = ITEMS, dtypes: tuple[str, ...] = ("fp32", "fp16"), **identity):
    return CacheKey("dense maps", "a test", {"weights": "w", **identity}, dtypes, [200] * items)


def tensors_of(item: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(item)
    return [
        torch.randn(2, 3, 4 + item % 3, generator=generator),
        torch.randn(5, generator=generator).half(),
    ]


def builder(built: list[int] | None = None):
    """A builder that yields the items of a shard backwards and lists them in ``built``."""

    def build(shards):
        for item in (item for shard in shards for item in reversed(shard)):
            if built is not None:
                built.append(item)
            yield item, tensors_of(item), {"item": item}

    return build


def is_correct(store) -> bool:
    return len(store) == ITEMS and all(
        store.metadata(item) == {"item": item}
        and all(torch.equal(a, b) for a, b in zip(store[item], tensors_of(item), strict=True))
        for item in range(ITEMS)
    )


def rebuilt() -> tuple[feature_store.FeatureStore, list[int]]:
    """The store, which must be correct, and what was built of it."""
    built: list[int] = []
    store = get_or_build(cache_key(), builder(built))
    assert is_correct(store)
    return store, built


def in_child(work) -> int:
    """Exit code of ``work`` in a forked process (negative: the signal that killed it)."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_store_holds_what_was_built_and_is_built_once():
    store, built = rebuilt()
    assert sorted(built) == list(range(ITEMS))
    assert len(list(store.folder.glob("*.safetensors"))) == 4
    assert not rebuilt()[1]


def test_every_dtype_comes_back_bit_by_bit():
    values = [
        torch.randn(3, 2),
        torch.randn(3).half(),
        torch.randn(4).bfloat16(),
        torch.arange(5, dtype=torch.uint8),
        torch.tensor([0, 65535], dtype=torch.int32).to(torch.uint16),
    ]
    key = CacheKey("ground truth", "types", {}, ("fp32", "fp16", "bf16", "uint8", "uint16"), [100])
    store = get_or_build(key, lambda shards: [(0, values, {})])
    for stored, value in zip(store[0], values, strict=True):
        assert stored.dtype == value.dtype and torch.equal(stored.float(), value.float())


@pytest.mark.parametrize("change", ["truncated", "altered", "missing"])
def test_a_damaged_store_is_reported_and_rebuilt(change, caplog):
    store = get_or_build(cache_key(), builder())
    store.close()
    shard = store.folder / "00002.safetensors"
    if change == "truncated":
        os.truncate(shard, shard.stat().st_size - 1)
    elif change == "altered":
        data = bytearray(shard.read_bytes())
        data[-100] ^= 1
        shard.write_bytes(data)
    else:
        shard.unlink()
    again, built = rebuilt()
    assert len(built) == ITEMS
    assert "00002.safetensors" in again.notes[0] and again.notes[0] in caplog.text


@pytest.mark.parametrize("content", ['{"file": ', '{"first": 0}', '{"first": 3}', "[]", ""])
def test_a_shard_whose_entry_is_damaged_is_built_again(content):
    store = get_or_build(cache_key(), builder())
    store.close()
    (store.folder / "00001.json").write_text(content)
    assert len(rebuilt()[1]) == 3


@pytest.mark.integration
def test_kill_9_anywhere_leaves_nothing_that_counts_as_complete(tmp_path):
    """A forked process builds a store and kills itself at its n-th function call, for random n."""
    calls = 0

    def count(frame, event, argument) -> None:
        nonlocal calls
        calls += 1

    get_or_build(cache_key(), builder()).close()  # imports what is imported on the way
    shutil.rmtree(tmp_path / "home")
    sys.setprofile(count)
    store = get_or_build(cache_key(), builder())
    sys.setprofile(None)
    folder = store.folder
    store.close()
    rng = random.Random(0)
    unfinished = resumed = 0
    for last in [rng.randrange(1, calls) for _ in range(20)]:
        shutil.rmtree(tmp_path / "home")

        def die_at(last: int = last) -> None:
            seen = 0

            def step(frame, event, argument) -> None:
                nonlocal seen
                seen += 1
                if seen == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.setprofile(step)
            get_or_build(cache_key(), builder())

        assert in_child(die_at) == -signal.SIGKILL
        is_complete = all(map(cache_key().entry, range(4)))
        store, built = rebuilt()
        assert not store.notes
        assert not (is_complete and built)
        assert is_complete or not list(folder.glob(".*.tmp"))
        unfinished += not is_complete
        resumed += 0 < len(built) < ITEMS
        store.close()
    assert unfinished > 10 and resumed > 3, "complete shards are not built again"


def test_processes_build_one_store_once(tmp_path):
    journal = tmp_path / "built"

    def logged(shards):
        for entry in builder()(shards):
            with journal.open("a") as file:
                file.write(f"{entry[0]}\n")
            yield entry

    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if is_correct(get_or_build(cache_key(), logged)) else 1
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    assert sorted(map(int, journal.read_text().split())) == list(range(ITEMS))


def test_each_reader_protects_a_store_until_it_ends():
    first, second = get_or_build(cache_key(), builder()), get_or_build(cache_key(), builder())
    assert in_child(lambda: os._exit(int(remove_store(first.folder)))) == 0
    assert not remove_store(first.folder)
    first.close()
    first.close()  # harmless, also for the second
    assert not remove_store(second.folder) and is_correct(second)
    in_child(second.close)  # a forked loader cannot release it
    assert not remove_store(second.folder)
    ends, started = os.pipe()
    reader = os.fork()
    if reader == 0:
        store = get_or_build(cache_key(), builder())
        os.write(started, b"x")
        time.sleep(600)
        os._exit(len(store))
    os.read(ends, 1)
    closing = threading.Thread(target=second.close)
    closing.start()
    closing.join()
    assert not remove_store(second.folder), "the other process reads it"
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    assert remove_store(second.folder)


def test_a_damaged_store_is_rebuilt_while_another_process_reads_it():
    store = get_or_build(cache_key(), builder())
    assert is_correct(store)
    shard = store.folder / feature_store.shard_name(1)
    shard.with_suffix(".new").write_bytes(bytes(shard.stat().st_size))
    shard.with_suffix(".new").replace(shard)
    again, _ = rebuilt()
    assert again.notes and is_correct(store)


def test_the_least_recently_used_stores_are_deleted_for_a_new_one(monkeypatch):
    folders = []
    for number in range(3):
        store = get_or_build(cache_key(number=number), builder())
        store.close()
        os.utime(store.folder, (1000 + number, 1000 + number))
        folders.append(store.folder)
    get_or_build(cache_key(number=0), builder()).close()  # used again
    size = budget.size_of(folders[0])
    monkeypatch.setenv(budget.LIMIT_VARIABLE, str((3 * size + 100) / 1e9))
    get_or_build(cache_key(number=3), builder()).close()
    assert [folder.exists() for folder in folders] == [True, False, True]


def test_values_beyond_fp16_are_refused():
    with pytest.raises(UserError, match="use cache=bf16"):
        feature_store.cast_features([torch.tensor([70000.0])], "fp16", "a test")
    assert (
        feature_store.cast_features([torch.tensor([70000.0])], "bf16", "a test")[0].isfinite().all()
    )


def test_a_full_cache_refuses_a_store(monkeypatch):
    store = get_or_build(cache_key(), builder())
    monkeypatch.setenv(budget.LIMIT_VARIABLE, str(budget.size_of(store.folder) / 1e9))
    with pytest.raises(budget.CacheFull, match="are in use"):
        get_or_build(cache_key(number=1), builder())
    assert is_correct(store)
    monkeypatch.setenv(budget.LIMIT_VARIABLE, "0.000001")
    with pytest.raises(budget.CacheFull, match=r"features of a test take 0\.0 MB.*; raise"):
        get_or_build(cache_key(number=1), builder())
    monkeypatch.setenv(budget.LIMIT_VARIABLE, "many")
    with pytest.raises(UserError, match="not a number of gigabytes"):
        get_or_build(cache_key(number=1), builder())


def test_a_resumed_build_does_not_trust_damaged_shards():
    store = get_or_build(cache_key(), builder())
    store.close()
    (store.folder / "00003.json").unlink()  # as if killed before it was written
    os.truncate(store.folder / "00001.safetensors", 10)
    assert is_correct(get_or_build(cache_key(), builder()))
