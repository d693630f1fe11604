"""States of a training on disk."""

from __future__ import annotations

from backbones.cliptex.trainer import States


def test_a_finished_training_leaves_no_folder_whatever_was_killed_in_it(tmp_path):
    states = States(tmp_path / "states", "key")
    states.save(1, {})
    states.finish()
    (states.folder / ".state-000000002.pt.123.tmp").touch()  # a writer was killed
    states.remove()
    assert not states.folder.exists()
