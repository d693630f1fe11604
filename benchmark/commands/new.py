"""``new``: write a plugin to begin from."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from benchmark.parser import Positional
from cliptex_common.errors import UserError, suggest
from cliptex_common.files import write_text
from cliptex_common.registry import LOADED, load
from cliptex_common.settings import options_dataclass

# kind, which is also the name of the template → the name that it registers
NAMES = {
    "backbone": "my-net",
    "dataset": "leaves",
    "probe": "nearest-mean",
    "head": "sum-of-maps",
    "dense-task": "saliency",
    "task": "edges",
    "expert": "ground-plane",
}


@options_dataclass
class New:
    """Write a commented file to begin a plugin from: a backbone, dataset, probe, dense head,
    family of dense tasks, task of CLIPTeX or expert of your own.

    examples:
      python -m benchmark new backbone my-net
      python -m benchmark new dataset leaves --out plugins/leaves.py
    """

    kind: Positional[str]
    """backbone, dataset, probe, head, dense-task, task, expert"""
    name: Positional[str]
    """what to call it, in lower-case letters, digits and dashes"""
    out: Path | None = None
    """the file (default: NAME.py)"""

    def main(self) -> int:
        """Write the file and say what to do with it."""
        from benchmark.progress import console

        if self.kind not in NAMES:
            raise UserError(f"no template for {self.kind!r}; {suggest(self.kind, NAMES)}")
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", self.name):
            raise UserError(
                f"name {self.name!r}: use lower-case letters, digits and dashes, such as my-net"
            )
        # without the template's own class, which is replaced: does the new name occur in the rest?
        text = template(self.kind, NAMES[self.kind]).replace(_class_name(NAMES[self.kind]), "")
        if re.search(rf"\b{_class_name(self.name)}\b", text):
            raise UserError(f"name {self.name!r} means something else in the file; choose another")
        path = self.out or Path(f"{self.name}.py")
        if path.exists():
            raise UserError(f"{path} exists already; choose another name, or --out FILE")
        source = template(self.kind, self.name)
        load(path, source.encode(), registers=False)  # raises if the name is taken
        LOADED[path.resolve()].remove()
        write_text(path, source)
        console.print(f"wrote {path}; its first lines say how to try it")
        return 0


NEW_COMMAND = New


def template(kind: str, name: str) -> str:
    """The source of a plugin that registers ``name``."""
    folder, file = files("benchmark.commands.templates"), f"{kind.replace('-', '_')}.py"
    text = folder.joinpath(file).read_text(encoding="utf-8")
    for old, new in ((NAMES[kind], name), (_class_name(NAMES[kind]), _class_name(name))):
        text = text.replace(old, new)
    return text


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-"))
