"""A file is complete or not there, and a full disk is reported as the user's to fix."""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cliptex_common.errors import UserError, user_error_message
from cliptex_common.files import atomic_write, content_key, home, json_output_path, write_text


def write_and_die(path):
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        os._exit(1)


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "a-[1].txt"
    child = multiprocessing.get_context("fork").Process(target=write_and_die, args=[path])
    child.start()
    child.join()
    assert len(list(tmp_path.iterdir())) == 1
    write_text(path, "new")
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
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
def test_a_full_disk_is_one_line(tmp_path, write):
    with (
        pytest.raises(UserError, match="free some space") as raised,
        atomic_write(tmp_path / "weights") as temporary,
    ):
        temporary.symlink_to("/dev/full")  # every write there fails with "no space left"
        write(temporary)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "path",
    ["{tmp}/file/a.txt", "/proc/a/b/c.txt", "/proc/c.txt", "{tmp}/" + "c" * 250, "{tmp}/pipe"],
)
def test_a_path_that_cannot_be_written_is_one_line(tmp_path, path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    path = path.format(tmp=tmp_path)
    with pytest.raises(UserError, match=f"cannot write {path}"):
        write_text(Path(path), "x")
    assert (tmp_path / "pipe").is_fifo(), "a file did not take its place"


def test_a_home_of_nobody_is_one_line(monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", "~no-such-user")
    with pytest.raises(UserError, match="no such user"):
        home()


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        (lambda path: Path("/nowhere/labels.json").read_text(), FileNotFoundError),
        (lambda path: None, FileNotFoundError),  # the block does not write the file
        (lambda path: {}["key"], KeyError),
        (lambda path: torch.load(io.BytesIO(b"PK\3\4 nonsense"), weights_only=True), RuntimeError),
        (lambda path: fail_with(OSError(errno.ENOSPC, "no space")), UserError),
    ],
    ids=["other file", "nothing", "key", "torch reads", "full"],
)
def test_only_errors_of_writing_that_file_are_the_users(tmp_path, block, kind):
    with pytest.raises(kind) as raised, atomic_write(tmp_path / "weights") as temporary:
        block(temporary)
    assert raised.type is kind


def os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code), "/data/x")


def fail_with(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("no such\nthing"), "no such thing"),
        (os_error(errno.ENOSPC), "cannot write /data/x: .*; free some space and run"),
        (os_error(errno.EROFS), "cannot write /data/x: .*; choose another folder and run"),
        (os_error(errno.EACCES), "cannot use /data/x: Permission denied"),
        (os_error(errno.ENAMETOOLONG), "cannot use /data/x: File name too long"),
        (
            UnicodeEncodeError("utf-8", "caf\udce9.jpg", 3, 4, "surrogates not allowed"),
            r"a name is not UTF-8, in 'caf\\udce9.jpg'; rename",
        ),
    ],
)
def test_errors_that_a_user_can_fix(error, message):
    assert re.match(message, user_error_message(error))
    wrapped = RuntimeError("the write failed")
    wrapped.__cause__ = error
    assert user_error_message(wrapped) == user_error_message(error)
    unrelated = KeyError("a bug")
    unrelated.__context__ = error
    assert user_error_message(unrelated) is None
    assert user_error_message(os_error(errno.ENOENT)) is None, "a bug"


def test_keys_do_not_change():
    assert content_key(["ä", 1]) == hashlib.sha256('["ä",1]'.encode()).hexdigest()[:16]


def test_json_overwrites_only_json(tmp_path):
    for name, content in (("empty.json", ""), ("old.json", "{}"), ("new.json", None)):
        if content is not None:
            (tmp_path / name).write_text(content)
        assert json_output_path(tmp_path / name) == tmp_path / name
    (tmp_path / "mine.yaml").write_text("suite: own")
    with pytest.raises(UserError, match="is not JSON; name another file"):
        json_output_path(tmp_path / "mine.yaml")


@pytest.mark.integration
def test_sockets_of_multiprocessing_fit_below_a_long_temporary_folder(tmp_path):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    script = (
        "import multiprocessing.util, cliptex_common.files;"
        " cliptex_common.files.shorten_socket_paths(); print(multiprocessing.util.get_temp_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("/tmp/pymp-")
