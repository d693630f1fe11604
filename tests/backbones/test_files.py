"""A file is there whole or not at all, and a full disk is the user's to mend whoever writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backbones.errors import UserError
from backbones.files import replacing, write_text


def test_a_file_that_breaks_off_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as temporary:
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
    with pytest.raises(UserError, match="free some space") as caught, replacing(tmp_path / "weights") as temporary:
        temporary.symlink_to("/dev/full")  # every write there says that no space is left
        write(temporary)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
