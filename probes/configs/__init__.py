"""The probes that are trained through MMEngine, a config file each: ``KIND/PROBE.py``."""

from pathlib import Path

FOLDER = Path(__file__).parent


def config_file(kind: str, name: str) -> Path:
    """The config file of a probe; a plugin's dense tasks have those of ``dense``."""
    path = FOLDER / kind / f"{name}.py"
    return path if path.is_file() else FOLDER / "dense" / f"{name}.py"
