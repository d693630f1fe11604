"""Hashes of files: they follow the content, and no file is read twice for one."""

import hashlib
import os

import pytest

from cliptex_common.errors import UserError
from cliptex_common.files import home
from probes.datasets.check import prepare
from probes.features import files as hashing
from probes.features.files import content_hashes
from probes.registry import DATASETS
from tests.probes.datasets import make


@pytest.fixture(autouse=True)
def reads(tmp_path, monkeypatch) -> list[str]:
    """The files that were read to be hashed, in a home of the test's own."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    paths: list[str] = []
    real = hashing.read_sha256
    monkeypatch.setattr(hashing, "read_sha256", lambda path: paths.append(path.name) or real(path))
    return paths


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "data" / name for name in ("x/a", "x/b", "y/c")]
    for file in paths:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(file.name.encode())
    return paths


def test_they_follow_the_content_and_each_file_is_read_once(files, reads):
    first = content_hashes(files)
    assert first == [hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c")]
    assert sorted(reads) == ["a", "b", "c"]
    assert content_hashes(files[::-1]) == first[::-1] and content_hashes(files[1:]) == first[1:]
    assert len(reads) == 3  # another list of the same files
    files[1].write_bytes(b"x")
    assert [a == b for a, b in zip(first, content_hashes(files), strict=True)] == [
        True,
        False,
        True,
    ]
    assert reads[3:] == ["b"]
    files[2].unlink()
    with pytest.raises(UserError, match="cannot read"):
        content_hashes(files)


def test_a_memory_that_was_cut_short_or_cannot_be_written_is_only_slower(files, reads):
    first = content_hashes(files)
    for memory in (home() / "content_hashes").iterdir():
        os.truncate(memory, memory.stat().st_size - 9)
    assert content_hashes(files) == first and sorted(reads[3:]) == ["b", "c"]
    assert content_hashes(files) == first and len(reads) == 5
    for memory in (home() / "content_hashes").iterdir():
        memory.unlink()
        memory.mkdir()
    assert content_hashes(files) == first and len(reads) == 8


def test_what_the_check_of_a_dataset_has_read_is_not_read_again(tmp_path, reads):
    root = make.make_imagefolder(tmp_path / "images", 3, 2)
    data = prepare(DATASETS["imagefolder"], root)
    images = [root / sample.image for split in ("train", "val") for sample in data.samples[split]]
    assert content_hashes(images) == [
        hashlib.sha256(image.read_bytes()).hexdigest() for image in images
    ]
    assert not reads
