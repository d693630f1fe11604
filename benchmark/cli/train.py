"""``train``: make a backbone's weights from image-caption pairs (and experts' labels) by a recipe; also under ``torchrun``."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import add_tracking, at_least, bar_of_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``train``."""
    parser.add_argument(
        "--recipe", default="cliptex", metavar="NAME|FILE", help="clip, clip-ft, cliptex, or a .json/.toml file"
    )
    parser.add_argument(
        "--init",
        required=True,
        metavar="WEIGHTS",
        help="open_clip/ARCH/PRETRAINED, a weights file of this suite, random, or imagenet (the recipe's model, its timm image "
        "tower with ImageNet weights)",
    )
    parser.add_argument(
        "--pairs", required=True, metavar="SHARDS|CSV", help="webdataset tars ('cc3m/{00000..00331}.tar'), CSV or TSV"
    )
    parser.add_argument("--labels", type=Path, metavar="DIR", help="pseudo-labels made by `label`")
    parser.add_argument(
        "--manual-labels", type=Path, metavar="DIR", help="labels that come before the experts' where a pair has some"
    )
    parser.add_argument(
        "--experts", metavar="TASKS", help="only these of seg, depth, normal (the same as --set experts=…)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="change a setting of the recipe"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="where the weights go")
    parser.add_argument("--device", default="auto", help="cpu, cuda … (default: auto)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="loading processes; never changes a result")
    parser.add_argument(
        "--save-every",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="between savings of what a killed run goes on from",
    )
    parser.add_argument("--experiment", default="train", help="MLflow experiment (default: train)")
    add_tracking(parser)


def main(options: argparse.Namespace) -> int:
    """Train, export, say how to use the weights."""
    from backbones.cliptex.joined import JoinedLabels
    from backbones.cliptex.labels import LabelStore
    from backbones.cliptex.pairs import open_pairs
    from backbones.cliptex.processes import first_process
    from backbones.cliptex.recipes import find_recipe
    from benchmark.execution.progress import console
    from benchmark.evaluation.runner import choose_device, must_be_writable
    from benchmark.stages import train_stage
    from reports.tracking import Tracker

    at_least(0, workers=options.workers, save_every=options.save_every)
    if not options.out.is_file():
        must_be_writable(options.out, "--out")
    changes = list(options.changes) + ([f"experts={options.experts}"] if options.experts else [])
    recipe = find_recipe(options.recipe, changes)
    stores = [LabelStore(path) for path in (options.manual_labels, options.labels) if path is not None]
    labels = JoinedLabels(stores) if len(stores) > 1 else (stores[0] if stores else None)
    first = first_process()
    tracker = Tracker(options.experiment, options.tracking_uri) if first else None
    if tracker is not None:
        tracker.close_vanished()
    with bar_of_process() as bar:
        pairs = open_pairs(options.pairs, bar)
        result, run = train_stage(
            tracker,
            recipe,
            init=options.init,
            pairs=pairs,
            labels=labels,
            out=options.out,
            bar=bar,
            device=choose_device(options.device),
            workers=options.workers,
            save_seconds=options.save_every,
        )
    if first:
        made = "trained" if result.trained else "found (same recipe, weights, pairs and labels: not trained again)"
        console.print(
            f"{recipe.name} {made}: {result.path}  sha256 {result.sha256[:16]}" + (f"  MLflow run {run}" if run else "")
        )
        console.print(
            f"probe it: python -m benchmark run --backbone {recipe.name} --weights {result.path} --suite paper --data-root DIR"
        )
    return 0
