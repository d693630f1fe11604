"""Standard streams: no secrets, and never an error of encoding."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys

from benchmark.execution import streams


def test_whoever_writes_no_secret_is_seen(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    with streams.discreet():
        print("λ ↑ at http://me:secret@host")
        sys.stdout.writelines(["http://TOKEN@host\n"])
        logging.getLogger("x").addHandler(handler := logging.StreamHandler(sys.stdout))
        logging.getLogger("x").error("postgresql://me:%s@host", "secret")
        logging.getLogger("x").removeHandler(handler)
        assert not sys.stdout.isatty() and sys.stdout.encoding == "ascii"
    assert (
        raw.getvalue().decode()
        == "? ? at http://***@host\nhttp://***@host\npostgresql://me:***@host\n"
    )
    assert isinstance(sys.stdout, io.TextIOWrapper)


def test_a_terminal_obeys_no_name(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "utf-8", write_through=True))
    with streams.discreet():
        print("a\x1b]0;title\x07 b\x00 \x1b[31mred\tc")
    assert raw.getvalue().decode() == "a\\x1b]0;title\\x07 b\\x00 \x1b[31mred\tc\n"


def test_a_terminal_without_unicode_gets_what_it_can_show():
    plain = {
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    for words in (["list", "protocols"], ["--help"], ["list", "t\udcffsks"]):
        ended = subprocess.run(
            [sys.executable, "-m", "benchmark", *words],
            env={**os.environ, **plain},
            capture_output=True,
            timeout=60,
        )
        assert ended.returncode == (2 if "\udcff" in words[-1] else 0), ended.stderr
        assert b"Traceback" not in ended.stderr and (ended.stdout + ended.stderr).isascii()
