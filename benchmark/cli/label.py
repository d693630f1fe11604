"""``label``: let experts write pseudo-labels for image-caption pairs, once; also under ``torchrun``."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.options import add_tracking, at_least, bar_of_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``label``."""
    parser.add_argument(
        "--pairs", required=True, metavar="SHARDS|CSV", help="webdataset tars ('cc3m/{00000..00331}.tar'), CSV or TSV"
    )
    parser.add_argument(
        "--experts",
        required=True,
        metavar="NAME=WHERE,…",
        help="mask-rcnn=…, dpt=…, nll-angmf=…; WHERE: see `experts list`",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the label store")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="input_side, label_side, confidence",
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto", help="cpu, cuda … (default: auto)")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="threads that decode and encode; never change a byte"
    )
    parser.add_argument("--experiment", default="label", help="MLflow experiment (default: label)")
    add_tracking(parser)


def main(options: argparse.Namespace) -> int:
    """Label, then say how many, how big, how exact."""
    import probes.experts  # noqa: F401 – makes the expert known that needs MMDetection
    from backbones.cliptex.label import LabelSettings
    from backbones.cliptex.pairs import open_pairs
    from backbones.cliptex.processes import first_process
    from backbones.overrides import parse_pairs, with_changes
    from benchmark.evaluation.plan import split_names
    from benchmark.execution.progress import console
    from benchmark.evaluation.runner import choose_device
    from benchmark.stages import label_stage
    from reports.tracking import Tracker

    at_least(1, batch_size=options.batch_size)
    at_least(0, workers=options.workers)
    settings = with_changes(LabelSettings(), parse_pairs(options.changes))
    first = first_process()
    tracker = Tracker(options.experiment, options.tracking_uri) if first else None
    if tracker is not None:
        tracker.close_vanished()
    with bar_of_process() as bar:
        pairs = open_pairs(options.pairs, bar)
        manifest = label_stage(
            tracker,
            pairs,
            split_names([options.experts]),
            options.out,
            settings=settings,
            bar=bar,
            device=choose_device(options.device),
            workers=options.workers,
            batch_size=options.batch_size,
        )
    if first:
        console.print(
            f"{manifest['pairs_in']} pairs in, {manifest['pairs_out']} labelled, {len(manifest['failed'])} failed, "
            f"{manifest['bytes_per_image']:.0f} bytes an image: {options.out}"
        )
        for key, reason in manifest["failed"][:5]:
            console.print(f"  failed: {key}: {reason}", markup=False)
        if len(manifest["failed"]) > 5:
            console.print(f"  … all of them are named in {options.out / 'manifest.json'}", markup=False)
    return 0
