"""``labels``: let experts predict pseudo-labels of image-caption pairs, make a store of people's
labels, check and draw them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.cli.options import (
    COUNT,
    PAIRS,
    add,
    add_execution,
    add_tracking,
    executor_spec,
    folder,
    names,
    number,
    placed,
)
from benchmark.cli.parser import add_command, add_commands, with_examples
from common.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``labels``."""
    with_examples(parser, "check labels/", "draw labels/ --pairs cc3m/00000.tar")
    commands = add_commands(parser, "what")
    predict = add_command(
        commands,
        "predict",
        "let experts write pseudo-labels, once; a task for each shard of pairs",
        "--pairs 'cc3m/{00000..00331}.tar' --experts dpt=Intel/dpt-large,nll-angmf=scannet.pt --out"
        " labels/",
        "--pairs pairs.csv --experts dpt=dpt/ --set label_side=112 --out labels/ --dry-run",
    )
    add(predict, "--config", "--dry-run")
    add(predict, "--pairs", required=True)
    about = "mask-rcnn=…, dpt=…, nll-angmf=…; see `list experts`"
    predict.add_argument(
        "--experts", required=True, type=names, metavar="NAME=WHERE[,…]", help=about
    )
    add(predict, "--out", required=True, type=folder, metavar="DIR", help="the label store")
    add(predict, "--set", help="change how labels are made (repeatable): input_side, label_side")
    predict.add_argument(
        "--batch-size", type=number(1, COUNT), default=32, metavar="N", help="images (default: 32)"
    )
    add_execution(predict)
    add_tracking(predict, "label")

    make = add_command(
        commands,
        "make",
        "a label store from folders of files, for `train --manual-labels`",
        "--pairs 'cc3m/{00000..00331}.tar' --from depth=depth/ --out mine/",
        "--pairs pairs.csv --from seg=masks/ --classes names.txt --label-side 0 --out mine/",
    )
    add(make, "--config")
    add(make, "--pairs", required=True)
    make.add_argument(
        "--from",
        **PAIRS | {"metavar": "TASK=DIR"},
        required=True,
        dest="folders",
        help=(
            "seg=DIR: masks of class numbers, 255 unknown; depth=DIR: 16-bit PNGs in millimetres, 0"
            " unknown; normal=DIR: RGB PNGs, n = png / 127.5 - 1, x right, y up, z to the camera,"
            " black unknown. Files are called as their pairs (repeatable)"
        ),
    )
    about = "names of the masks' classes, one a line; or those of another label store"
    make.add_argument("--classes", type=Path, metavar="FILE|DIR", help=about)
    about = "short side that labels are kept at; 0: as they are (default: 60)"
    make.add_argument("--label-side", type=number(0, COUNT), default=60, metavar="N", help=about)
    add(make, "--out", required=True, type=folder, metavar="DIR", help="the label store")

    check = add_command(
        commands,
        "check",
        "whether every byte is as it was written, and all counts agree",
        "labels/",
        "/shared/labels",
    )
    draw = add_command(
        commands,
        "draw",
        "a picture of labels beside images",
        "labels/ --pairs 'cc3m/{00000..00331}.tar'",
        "labels/ --pairs pairs.csv --limit 20 --out look.png",
    )
    for command in (check, draw):
        command.add_argument("dir", type=Path, metavar="DIR", help="the label store")
    add(draw, "--pairs", required=True)
    add(draw, "--limit", type=number(1, COUNT), default=8, help="how many pairs (default: 8)")
    add(draw, "--out", default=Path("labels.png"), help="the picture (default: labels.png)")


def main(options: argparse.Namespace) -> int:
    """Exit code 1 when a store is damaged."""
    return {"predict": predict, "make": make, "check": check, "draw": draw}[options.what](options)


def predict(options: argparse.Namespace) -> int:
    """Let experts label, then say how many, how big, how exact."""
    if "RANK" in os.environ:
        told = "start it once: its shards are tasks (see --executor and --jobs)"
        raise UserError(f"labels predict does not run under torchrun; {told}")
    import asyncio

    from backbones.cliptex.labels.labeller import LabelSettings
    from benchmark.stages.dry_run import preview_label
    from benchmark.stages.labels import LabelRequest, label_stage
    from benchmark.stages.stage import driving
    from common.settings import parse_pairs, with_changes
    from reports.mlflow.client import using

    spec = executor_spec(options)
    settings = with_changes(LabelSettings(), parse_pairs(options.overrides))
    experts = tuple(dict.fromkeys(options.experts))
    request = LabelRequest(
        options.pairs,
        experts,
        options.out,
        settings,
        options.batch_size,
        experiment=options.experiment,
    )
    if options.dry_run:
        with using(options.tracking_uri):
            preview_label(request, spec)
        return 0
    with using(options.tracking_uri), driving(spec, options.experiment) as (executor, _):
        manifest = asyncio.run(label_stage(request, executor))
    size = f"{manifest['bytes_per_image']:.0f} bytes an image"
    return _say(
        manifest,
        f"{manifest['pairs_in']} pairs in, {manifest['pairs_out']} labelled",
        size,
        options.out,
    )


def make(options: argparse.Namespace) -> int:
    """A store from files."""
    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.labels.make import ManualLabels, make_labels
    from backbones.cliptex.tasks import find_task
    from benchmark.execution.progress import Bar, console
    from benchmark.stages.stage import one_maker

    folders = placed(options.folders, "--from")
    classes = _classes(options.classes) if options.classes else {}
    named = {
        name: classes.get(name, classes.get("", ()))
        for name in folders
        if find_task(name).has_classes
    }
    manual = ManualLabels(folders, named, options.label_side)

    def say(line: str) -> None:
        console.print(f"  note · {line}", style="dim", markup=False)

    with Bar() as bar, one_maker(options.out):
        manifest = make_labels(open_pairs(options.pairs, bar), manual, options.out, bar, say)
    made = ", ".join(f"{count} of {name}" for name, count in manifest["files"].items())
    return _say(manifest, f"labels of {manifest['pairs_out']} pairs made ({made})", "", options.out)


def check(options: argparse.Namespace) -> int:
    """A line for each thing that is wrong."""
    from backbones.cliptex.labels.store import LabelStore, check_labels
    from benchmark.execution.progress import console

    wrong = check_labels(options.dir)
    for line in wrong or [f"{options.dir} is whole: {len(LabelStore(options.dir))} pairs labelled"]:
        console.print(line, markup=False)
    return 1 if wrong else 0


def draw(options: argparse.Namespace) -> int:
    """A picture."""
    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.labels.picture import draw_labels
    from benchmark.execution.progress import console

    draw_labels(options.dir, open_pairs(options.pairs), options.out, options.limit)
    console.print(f"drawn: {options.out}", markup=False)
    return 0


def _say(manifest: Mapping[str, Any], done: str, size: str, out: Path) -> int:
    """What was labelled, and the first that failed."""
    from benchmark.execution.progress import console

    failed = manifest["failed"]
    console.print(f"{done}, {len(failed)} failed{f', {size}' if size else ''}: {out}", markup=False)
    for key, reason in failed[:5]:
        console.print(f"  failed: {key}: {reason}", markup=False)
    if len(failed) > 5:
        console.print(f"  … all of them are named in {out / 'manifest.json'}", markup=False)
    return 0


def _classes(path: Path) -> dict[str, list[str]]:
    """Task → names of its classes; those of a text file are for every task."""
    from backbones.cliptex.labels.store import LabelStore
    from common.files import read_text

    if path.is_dir():
        return {task: list(names) for task, names in LabelStore(path).classes.items()}
    try:
        return {"": [line.strip() for line in read_text(path).splitlines() if line.strip()]}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the classes in {path} ({error}); give a text file with a name a line"
        ) from error
