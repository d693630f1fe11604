"""``labels check``, ``draw`` and ``make``: is a label store whole, what does it look like, and one from people's labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import COUNT, REPEATED, folder, number, placed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``labels``."""
    commands = parser.add_subparsers(dest="what", required=True)
    check = commands.add_parser("check", help="every byte as it was written, all counts agree")
    check.add_argument("dir", type=Path)
    draw = commands.add_parser("draw", help="a picture of labels beside images")
    draw.add_argument("dir", type=Path)
    draw.add_argument("--pairs", required=True, help="the pairs that were labelled")
    draw.add_argument("--out", type=Path, default=Path("labels.png"))
    draw.add_argument("-n", type=number(1, COUNT), default=8, help="how many pairs (default: 8)")
    make = commands.add_parser("make", help="a label store from folders of files, for `train --manual-labels`")
    make.add_argument(
        "--pairs", required=True, metavar="SHARDS|CSV", help="the pairs that are labelled; some of them suffice"
    )
    make.add_argument(
        "--from", **REPEATED, required=True, metavar="TASK=DIR", dest="folders",
        help="seg=DIR: masks of class numbers, 255 unknown; depth=DIR: 16-bit PNGs in millimetres, 0 unknown; normal=DIR: RGB "
        "PNGs, n = png / 127.5 - 1, x right, y up, z to the camera, black unknown. Files are called as their pairs (repeatable)",
    )  # fmt: skip
    make.add_argument(
        "--classes",
        type=Path,
        metavar="FILE|DIR",
        help="names of the masks' classes, one a line; or those of another label store",
    )
    make.add_argument(
        "--label-side", type=number(0, COUNT), default=60, help="short side that labels are kept at; 0: as they are"
    )
    make.add_argument("--out", type=folder, required=True, metavar="DIR", help="the label store")


def main(options: argparse.Namespace) -> int:
    """Exit code 1 when a store is damaged."""
    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.labels.picture import draw_labels
    from backbones.cliptex.labels.store import LabelStore, check_labels
    from benchmark.execution.progress import console

    if options.what == "make":
        return _make(options)
    if options.what == "draw":
        draw_labels(options.dir, open_pairs(options.pairs), options.out, options.n)
        console.print(f"drawn: {options.out}")
        return 0
    wrong = check_labels(options.dir)
    for line in wrong:
        console.print(line, markup=False)
    if not wrong:
        console.print(f"{options.dir} is whole: {len(LabelStore(options.dir))} pairs labelled")
    return 1 if wrong else 0


def _make(options: argparse.Namespace) -> int:
    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.labels.make import ManualLabels, make_labels
    from backbones.cliptex.tasks import find_task
    from benchmark.execution.progress import Bar, console
    from benchmark.pipeline.stage import one_maker

    folders = placed(options.folders, "--from")
    classes = _classes(options.classes) if options.classes else {}
    named = {name: classes.get(name, classes.get("", ())) for name in folders if find_task(name).has_classes}
    manual = ManualLabels(folders, named, options.label_side)

    def say(line: str) -> None:
        console.print(f"  note · {line}", style="dim", markup=False)

    with Bar() as bar, one_maker(options.out):
        manifest = make_labels(open_pairs(options.pairs, bar), manual, options.out, bar, say)
    made = ", ".join(f"{count} of {name}" for name, count in manifest["files"].items())
    console.print(
        f"labels of {manifest['pairs_out']} pairs made ({made}), {len(manifest['failed'])} failed: {options.out}",
        markup=False,
    )
    for key, reason in manifest["failed"][:5]:
        console.print(f"  failed: {key}: {reason}", markup=False)
    return 0


def _classes(path: Path) -> dict[str, list[str]]:
    """Task → names of its classes; those of a text file are for every task."""
    from backbones.cliptex.labels.store import LabelStore
    from backbones.utils.errors import UserError
    from backbones.utils.files import read_utf8

    if path.is_dir():
        return {task: list(names) for task, names in LabelStore(path).classes.items()}
    try:
        return {"": [line.strip() for line in read_utf8(path).splitlines() if line.strip()]}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the classes in {path} ({error}); give a text file with a name a line") from error
