"""The configs of the probes that are trained through MMEngine: of a dense probe the file of its
head and that of its data, of a detection probe one of its own."""

from pathlib import Path

FOLDER = Path(__file__).parent


def config_files(kind: str, name: str) -> tuple[Path, ...]:
    """The config files of a probe; a plugin's dense tasks have the data of ``dense``."""
    path = FOLDER / kind / f"{name}.py"
    if path.is_file():
        return (path,)
    base = FOLDER / "_base_"
    data = base / f"{kind}.py"
    return base / "heads" / f"{name}.py", data if data.is_file() else base / "dense.py"
