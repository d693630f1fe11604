"""``labels``: predict pseudo-labels of image-caption pairs, store manual ones, check and draw."""

from __future__ import annotations

import argparse
import asyncio
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
    parse_folders,
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
        "let experts write pseudo-labels, a task for each shard of pairs",
        "--pairs 'cc3m/{00000..00331}.tar' --experts dpt=Intel/dpt-large,nll-angmf=scannet.pt --out"
        " labels/",
        "--pairs pairs.csv --experts dpt=dpt/ --set label_side=112 --out labels/ --dry-run",
    )
    add(predict, "--config", "--dry-run")
    add(predict, "--pairs", required=True)
    predict.add_argument(
        "--experts",
        required=True,
        type=names,
        metavar="NAME=WEIGHTS[,…]",
        help="mask-rcnn=…, dpt=…, nll-angmf=…; see `list experts`",
    )
    add(predict, "--out", required=True, type=folder, metavar="DIR", help="the label store")
    add(predict, "--set", help="change a label setting (repeatable): input_side, label_side")
    predict.add_argument("--batch-size", **COUNT, default=32, help="images per batch (default: 32)")
    add_execution(predict)
    add_tracking(predict, "label")

    make = add_command(
        commands,
        "make",
        "make a label store from folders of files, for `train --manual-labels`",
        "--pairs 'cc3m/{00000..00331}.tar' --from depth=depth/ --out mine/",
        "--pairs pairs.csv --from seg=masks/ --classes names.txt --label-side 0 --out mine/",
    )
    add(make, "--config")
    add(make, "--pairs", required=True)
    folders = {**PAIRS, "metavar": "TASK=DIR", "dest": "folders", "required": True}
    make.add_argument(
        "--from",
        **folders,
        help=(
            "seg=DIR: masks of class numbers, 255 unknown; depth=DIR: 16-bit PNGs in millimetres, 0"
            " unknown; normal=DIR: RGB PNGs, n = png / 127.5 - 1, x right, y up, z to the camera,"
            " black unknown. Files are named like their pairs (repeatable)"
        ),
    )
    make.add_argument(
        "--classes",
        type=Path,
        metavar="FILE|DIR",
        help="class names of the masks, one a line; or another label store",
    )
    make.add_argument(
        "--label-side",
        type=number(0),
        default=60,
        metavar="N",
        help="short side of stored labels; 0: as they are (default: 60)",
    )
    add(make, "--out", required=True, type=folder, metavar="DIR", help="the label store")

    about = "check that every byte is as written and all counts agree"
    check = add_command(commands, "check", about, "labels/", "/shared/labels")
    draw = add_command(
        commands,
        "draw",
        "draw labels beside their images",
        "labels/ --pairs 'cc3m/{00000..00331}.tar'",
        "labels/ --pairs pairs.csv --limit 20 --out look.png",
    )
    for command in (check, draw):
        command.add_argument("dir", type=Path, metavar="DIR", help="the label store")
    add(draw, "--pairs", required=True)
    add(draw, "--limit", default=8, help="number of pairs (default: 8)")
    add(draw, "--out", default=Path("labels.png"), help="the picture (default: labels.png)")


def main(options: argparse.Namespace) -> int:
    """Run one of the commands; exit code 1 if ``check`` finds errors."""
    return {"predict": predict, "make": make, "check": check, "draw": draw}[options.what](options)


def predict(options: argparse.Namespace) -> int:
    """Let experts label the pairs."""
    from backbones.cliptex.labels.labeller import LabelSettings
    from benchmark.stages.labels import LabelRequest, label_stage, preview_labels
    from benchmark.stages.stage import open_executor_and_tracker
    from common.settings import parse_pairs, with_changes
    from reports.mlflow.client import using

    if "RANK" in os.environ:
        raise UserError("labels predict does not run under torchrun; see --executor and --jobs")
    spec = executor_spec(options)
    request = LabelRequest(
        options.pairs,
        tuple(dict.fromkeys(options.experts)),
        options.out,
        with_changes(LabelSettings(), parse_pairs(options.overrides)),
        options.batch_size,
        experiment=options.experiment,
    )
    with using(options.tracking_uri):
        if options.dry_run:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
            preview_labels(request)
            return 0
        with open_executor_and_tracker(spec, options.experiment) as (executor, _):
            manifest = asyncio.run(label_stage(request, executor)).manifest
    counts = f"{manifest['pairs_out']} of {manifest['pairs_in']} pairs labelled"
    _show(manifest, f"{counts}, {manifest['bytes_per_image']:.0f} bytes per image", options.out)
    return 0


def make(options: argparse.Namespace) -> int:
    """Make a label store from files."""
    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.labels.labeller import LabelSettings, make_labels
    from backbones.cliptex.labels.manual import ManualLabels
    from backbones.cliptex.tasks import find_task
    from benchmark.execution.exclusive import exclusive
    from benchmark.execution.progress import Bar
    from benchmark.stages.stage import print_note

    folders = parse_folders(options.folders, "--from")
    classes = _read_classes(options.classes) if options.classes else {}
    labels = []
    for task, path in folders.items():
        names = classes.get(task, classes.get("", ())) if find_task(task).has_classes else ()
        labels.append(ManualLabels(task, path, names))
    settings = LabelSettings(label_side=options.label_side)

    with Bar() as bar, exclusive(options.out):
        source = open_pairs(options.pairs, bar)
        manifest = make_labels(source, labels, options.out, settings, bar, print_note)
    counts = ", ".join(f"{count} of {name}" for name, count in manifest["files"].items())
    _show(manifest, f"{manifest['pairs_out']} pairs labelled ({counts})", options.out)
    return 0


def check(options: argparse.Namespace) -> int:
    """Print a line for each error of a store."""
    from backbones.cliptex.labels.store import LabelStore, check_labels
    from benchmark.execution.progress import console

    errors = check_labels(options.dir)
    for line in errors:
        console.print(line)
    if not errors:
        console.print(f"{options.dir} is intact: {len(LabelStore(options.dir))} pairs labelled")
    return 1 if errors else 0


def draw(options: argparse.Namespace) -> int:
    """Draw a picture of labels."""
    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.labels.picture import draw_labels
    from benchmark.execution.progress import console

    draw_labels(options.dir, open_pairs(options.pairs), options.out, options.limit)
    console.print(f"written: {options.out}")
    return 0


def _show(manifest: Mapping[str, Any], summary: str, out: Path) -> None:
    from benchmark.execution.progress import console

    failed = manifest["failed"]
    console.print(f"{summary}, {len(failed)} failed: {out}")
    for key, reason in failed[:5]:
        console.print(f"  failed: {key}: {reason}")
    if len(failed) > 5:
        console.print(f"  … {out / 'manifest.json'} has all of them")


def _read_classes(path: Path) -> dict[str, list[str]]:
    """Task → class names; those of a text file are for every task, under ''."""
    from backbones.cliptex.labels.store import LabelStore

    if path.is_dir():
        return {task: list(names) for task, names in LabelStore(path).classes.items()}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read --classes {path} ({error}); give a text file with a name on each line"
        ) from error
    return {"": [line.strip() for line in lines if line.strip()]}
