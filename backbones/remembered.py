"""What is known of a backbone that was built before, so that asking for its identity builds nothing
and imports no torch: literals in ``$CLIPTEX_HOME/backbones``, under a key of all that decides it.

Only backbones that this package builds of timm and open_clip are remembered. What decides others –
a plugin's code, a repository's – is not known.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbones.registry import (
    OWN_NAMES,
    build_from_checkpoint,
    build_open_clip,
    build_random,
    build_timm,
    find,
)
from backbones.weights import read_metadata
from cliptex_common.files import content_key, home, sha256_files, write_text
from cliptex_common.process import versions
from cliptex_common.registry import plugin_sources

BUILDERS = (build_timm, build_open_clip, build_random, build_from_checkpoint)
LIBRARIES = ("torch", "timm", "open_clip", "transformers", "safetensors", "huggingface_hub")


def recall(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What ``remember`` wrote of the backbone of these arguments of ``backbones.create``; {} if
    nothing, if a file has changed since, or if what was written is damaged."""
    weights = sha256_files(filter(None, [arguments.get("weights")]))
    path = _path(arguments, weights)
    if path is None or not path.is_file():
        return {}
    digest, _, text = path.read_text(encoding="utf-8", errors="replace").partition("\n")
    if digest != content_key(text):
        return {}
    description = ast.literal_eval(text)
    files = description["files"]
    is_current = sha256_files(files) == files
    return {**description, "files": {**files, **weights}} if is_current else {}


def remember(arguments: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Store literals about the backbone of these arguments, unless something else decides it.

    Args:
        description: with ``files``, as of ``Backbone``. If one has changed since, perhaps while it
            was read, nothing is stored.
    """
    files, own = dict(description["files"]), str(arguments.get("weights"))
    path = _path(arguments, {own: files[own]} if own in files else {})
    text = repr({**description, "files": {name: files[name] for name in files if name != own}})
    text = f"{content_key(text)}\n{text}"
    is_stored = path is not None and path.is_file() and path.read_bytes() == text.encode()
    if path is not None and not is_stored and sha256_files(files) == files:
        write_text(path, text)


def _path(arguments: Mapping[str, Any], weights: Mapping[str, str]) -> Path | None:
    """The file of a backbone by the content of what decides it: the arguments, the user's weights,
    this package's code, plugins and the libraries; None if more does.

    Args:
        weights: path → sha256, of the user's if there are any.
    """
    own_name, architecture = arguments["name"].removeprefix("random/"), ""
    for path in weights:
        if not Path(path).is_file():
            return None
        architecture = read_metadata(Path(path)).get("architecture", "")
    entry = find(own_name)
    architecture = architecture or entry.settings.get("architecture", own_name)
    is_known = own_name in OWN_NAMES or "/" in own_name
    is_known &= architecture.partition("/")[0] in ("timm", "open_clip")
    if not (is_known and entry.build in BUILDERS):
        return None
    folder = Path(__file__).parent
    code = sha256_files([*folder.glob("*.py"), *folder.glob("adapters/*.py")])
    key = {
        "arguments": {name: value for name, value in arguments.items() if name != "weights"},
        "weights": [*weights.values()],
        "code": sorted(code.values()),
        "plugins": [source for _, source in plugin_sources()],
        "libraries": versions(*LIBRARIES),
    }
    return home() / "backbones" / f"{content_key(key)}.txt"
