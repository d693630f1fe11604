"""Standard streams without secrets and encoding errors."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from benchmark.unit import redact_streams

pytestmark = pytest.mark.integration


def test_no_secret_is_shown(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    redact_streams()
    print("λ ↑ at http://me:secret@host")
    sys.stdout.writelines(["http://TOKEN@host\n"])
    logging.getLogger("x").addHandler(handler := logging.StreamHandler(sys.stdout))
    logging.getLogger("x").error("postgresql://me:%s@host", "secret")
    logging.getLogger("x").removeHandler(handler)
    text = "? ? at http://***@host\nhttp://***@host\npostgresql://me:***@host\n"
    assert raw.getvalue().decode() == text
