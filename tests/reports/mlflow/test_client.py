"""Opening a store: one process at a time, by a lock that nobody else can turn against the user."""

from __future__ import annotations

import tempfile
from pathlib import Path

import filelock
import pytest

from reports.errors import TrackingError
from reports.mlflow.client import _one_at_a_time, connect, known_schemas


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_one_at_a_time(temporary):
    with _one_at_a_time("sqlite:////a.db") as held:
        with pytest.raises(filelock.Timeout):
            _one_at_a_time("sqlite:////a.db").acquire(blocking=False)
        with _one_at_a_time("sqlite:////b.db"):
            pass
    assert Path(held.lock_file).exists()  # whoever waits for it waits for this very file
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_planted_folder_is_refused_in_one_line_and_what_it_points_to_is_left_alone(temporary):
    with _one_at_a_time("x") as held:
        folder = Path(held.lock_file).parent
    name = Path(held.lock_file).name
    folder.rename(temporary / "away")
    (temporary / "theirs").mkdir()
    folder.symlink_to(temporary / "theirs")
    with pytest.raises(TrackingError, match=r"is no folder that only you can write; .* TMPDIR") as caught:
        connect(f"sqlite:///{temporary}/a.db")
    assert "\n" not in str(caught.value)
    assert not any((temporary / "theirs").iterdir())
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(TrackingError):
        _one_at_a_time("x")
    folder.chmod(0o700)
    (temporary / "precious").write_text("precious")
    (folder / name).symlink_to(temporary / "precious")
    with pytest.raises(OSError), _one_at_a_time("x"):
        pass
    assert (temporary / "precious").read_text() == "precious"


def test_known_schemas_are_those_of_alembic():
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    script = ScriptDirectory.from_config(_get_alembic_config("sqlite:///none.db"))
    assert known_schemas()[::-1] == [revision.revision for revision in script.walk_revisions()]
