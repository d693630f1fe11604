"""A file is there whole or not at all, and a full disk is the user's to mend whoever writes."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import socket
import tempfile
from pathlib import Path

import pytest
import torch

from common.errors import UserError, user_error_message
from common.files import (
    UnfitFile,
    atomic_write,
    content_key,
    home,
    json_output_path,
    keep_sockets_short,
    open_regular,
    read_json,
    read_whole,
    sha256_file,
    write_text,
)
from tests.forks import Fork


def test_a_file_that_breaks_off_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to write to")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x" * 100_000),
        lambda path: torch.save({"weight": torch.zeros(1_000_000)}, path),
    ],
    ids=["text", "torch"],
)
def test_a_full_disk_is_said_in_one_line(tmp_path, write):
    with (
        pytest.raises(UserError, match="free some space") as caught,
        atomic_write(tmp_path / "weights") as temporary,
    ):
        temporary.symlink_to("/dev/full")  # every write there says that no space is left
        write(temporary)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write .*file/a.txt: (Not a directory|File exists)"
    ):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_place_that_is_a_folder_is_one_line(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match=r"a.txt is a folder; name a file"):
        write_text(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        (lambda path: Path("/nowhere/labels.json").read_text(), FileNotFoundError),
        (lambda path: (path.parent / "a/b").mkdir(), FileNotFoundError),
        (lambda path: None, FileNotFoundError),  # whoever forgot to write
        (lambda path: {}["key"], KeyError),
        (lambda path: 1 / 0, ZeroDivisionError),
        (lambda path: socket.create_connection(("127.0.0.1", 9)), ConnectionRefusedError),
        (lambda path: torch.load(io.BytesIO(b"PK\3\4 nonsense"), weights_only=True), RuntimeError),
        (full, UserError),
        (lambda path: path.mkdir() or path.write_text("x"), UserError),
    ],
    ids=[
        "another file",
        "another folder",
        "nothing",
        "key",
        "sum",
        "network",
        "torch reads",
        "full",
        "refused",
    ],
)
def test_only_errors_of_writing_that_file_are_the_users(tmp_path, block, kind):
    with pytest.raises(kind) as caught, atomic_write(tmp_path / "weights") as temporary:
        block(temporary)
    assert caught.type is kind


def refused(code: int) -> OSError:
    return OSError(code, os.strerror(code), "/data/x")


def test_what_the_user_can_mend_is_found_along_causes_and_nowhere_else():
    assert user_error_message(UserError("no such\nthing")) == "no such thing"
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        mend = "choose another folder" if code == errno.EROFS else "free some space"
        assert (
            user_error_message(refused(code))
            == f"cannot write /data/x: {os.strerror(code)}; {mend} and run the command again"
        )
    assert user_error_message(refused(errno.ENOENT)) is None
    assert user_error_message(KeyError("x")) is None

    def raised(how):
        try:
            how()
        except Exception as error:
            return user_error_message(error)

    def of_a_cause():
        try:
            raise refused(errno.ENOSPC)
        except OSError as error:
            raise RuntimeError("the write failed") from error

    def beside_another():
        try:
            raise refused(errno.EROFS)
        except OSError:
            {}["key"]

    assert raised(of_a_cause).startswith("cannot write /data/x: No space left")
    assert raised(beside_another) is None
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    assert user_error_message(first) is None


@pytest.mark.parametrize(
    "name", ["pipe", "link", "/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"]
)
def test_what_is_no_file_is_never_replaced(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    path = tmp_path / name
    before = path.lstat()
    with pytest.raises(UserError, match=r"no regular file|no place for a file"):
        write_text(path, "x")
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_a_link_to_a_file_stays_one(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")
    for text in ("made", "replaced"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (
            tmp_path / "folder" / "file"
        ).read_text() == text


@pytest.mark.parametrize("read", [open_regular, read_whole, read_json, sha256_file])
def test_only_files_are_read_and_none_without_end(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(UnfitFile, match=f"cannot read {path}: it is no regular file") as caught:
            read(path)
        assert user_error_message(caught.value) == str(caught.value)
    with pytest.raises(OSError, match="no file has such a name"):
        read(tmp_path / "a\0b")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # of zeros, on no disk
    with pytest.raises(UnfitFile, match="larger than 1024 MiB"):
        read_whole(tmp_path / "large")
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ELOOP])
def test_a_file_that_cannot_be_had_is_one_line_and_a_bug_is_none(number):
    error = OSError(number, os.strerror(number), "/data/weights")
    assert (
        user_error_message(error)
        == f"cannot use /data/weights: {os.strerror(number)}; mend that, or name another file"
    )
    assert user_error_message(OSError(number, os.strerror(number))) is None  # of what, nobody knows


def test_a_home_that_nobody_knows_is_one_line(monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", "~nosuch/cliptex")
    with pytest.raises(
        UserError,
        match="~nosuch/cliptex: Could not determine home directory; name a folder in full",
    ):
        home()


def _load(temporary: str) -> None:
    tempfile.tempdir = temporary
    keep_sockets_short()
    loader = torch.utils.data.DataLoader([torch.zeros(3)] * 4, num_workers=1)
    print(len(list(loader)), tempfile.gettempdir() == temporary)


def test_a_loading_process_hands_tensors_over_wherever_temporary_files_are(tmp_path):
    """PyTorch's own waits for ever where the path is too long for a socket."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    fork = Fork(_load, str(folder), output=tmp_path / "said")
    assert fork.end(60) == 0 and fork.said() == "4 True\n"
    assert list(folder.iterdir()) == []


def test_keys_of_text_stay_and_half_of_a_character_has_one():
    assert content_key(["ä", 1]) == hashlib.sha256('["ä",1]'.encode()).hexdigest()[:16]
    assert content_key("\ud83d") != content_key("\ud83e")


def test_json_takes_the_place_of_json_alone(tmp_path):
    for name, content in (
        ("new.json", None),
        ("empty.json", ""),
        ("old.json", "{}"),
        ("list.json", "[1]"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        assert json_output_path(tmp_path / name) == tmp_path / name
    (tmp_path / "mine.yaml").write_text("suite: own")
    with pytest.raises(UserError, match="is there and is no JSON; name another file"):
        json_output_path(tmp_path / "mine.yaml")
