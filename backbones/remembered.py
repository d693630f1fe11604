"""What is known of a backbone that was built before, so that asking for its identity builds nothing
and imports no torch: literals in ``$CLIPTEX_HOME/backbones``, under a key of all that decides it.

Only backbones that this package builds of timm and open_clip are remembered. What decides others –
a plugin's code, a repository's – is not known.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backbones.registry import (
    BACKBONES,
    FAMILIES,
    build_from_checkpoint,
    build_open_clip,
    build_random,
    build_timm,
    find,
)
from backbones.weights import read_metadata, versions
from cliptex_common.files import content_key, home, sha256_file, write_text

BUILDERS = (build_timm, build_open_clip, build_random, build_from_checkpoint)
LIBRARIES = ("torch", "timm", "open_clip", "transformers", "safetensors", "huggingface_hub")


def sha256_files(files: Sequence[Path]) -> dict[str, str]:
    """Path → hex sha256; '' of a file that is gone."""
    return {str(path): sha256_file(path) if path.is_file() else "" for path in files}


def recall(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What ``remember`` wrote of the backbone of these arguments of ``backbones.create``; {} if
    nothing, or if a file has changed since."""
    path = _path(**arguments)
    if path is None or not path.is_file():
        return {}
    facts = ast.literal_eval(path.read_text(encoding="utf-8"))
    is_current = sha256_files([Path(each) for each in facts["files"]]) == facts["files"]
    return facts if is_current else {}


def remember(arguments: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Store literals about the backbone of these arguments, unless something else decides it.

    Args:
        facts: with ``files``, ``sha256_files`` of ``Backbone.files``.
    """
    path = _path(**arguments)
    if path is not None and not path.is_file():
        write_text(path, repr(dict(facts)))


def _path(
    name: str, weights: str | Path | None = None, any_architecture: bool = False, **others: Any
) -> Path | None:
    """The file of a backbone by the content of what decides it: the arguments, its entry, the
    user's weights, this package's code and the libraries; None if more does."""
    own_name, stored = name.removeprefix("random/"), ""
    if weights is not None:
        if not Path(weights).is_file():
            return None
        stored = read_metadata(Path(weights)).get("architecture", "")
    entry = find(own_name)
    family, _, _ = (stored or entry.settings.get("architecture", own_name)).partition("/")
    is_ours = entry.build in BUILDERS and family in ("timm", "open_clip")
    if not is_ours or BACKBONES.origin(own_name) or FAMILIES.origin(family):
        return None
    code = Path(__file__).parent
    key = {
        "arguments": [name, any_architecture, others],
        "licence": entry.licence,
        "weights": weights and sha256_file(Path(weights)),
        "code": sorted(sha256_files([*code.glob("*.py"), *code.glob("adapters/*.py")]).values()),
        "libraries": versions(*LIBRARIES),
    }
    return home() / "backbones" / f"{content_key(key)}.txt"
