"""Storages of sweeps: what is none is left alone."""

from __future__ import annotations

import pytest

from common.errors import UserError
from sweeps.storage import open_storage


def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("one\ntwo, without a newline")
    with pytest.raises(UserError, match="is no journal of Optuna"):
        open_storage(f"journal:///{notes}", create=False)
    assert notes.read_text() == "one\ntwo, without a newline"


def test_a_line_that_a_writer_left_in_the_middle_goes(tmp_path):
    journal = tmp_path / "journal"
    open_storage(f"journal:///{journal}", create=True).create_new_study(
        directions=[0], study_name="a"
    )
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 1')
    assert (
        open_storage(f"journal:///{journal}", create=False).get_all_studies()[0].study_name == "a"
    )
    assert journal.read_bytes() == whole
