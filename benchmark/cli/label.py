"""``label``: let experts write pseudo-labels for image-caption pairs, once; a task for each shard of pairs."""

from __future__ import annotations

import argparse
import os

from backbones.utils.errors import UserError
from benchmark.cli.options import (
    COUNT,
    REPEATED,
    add_dry_run,
    add_execution,
    add_tracking,
    executor_spec,
    folder,
    name,
    number,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``label``."""
    add = parser.add_argument
    add(
        "--pairs",
        required=True,
        metavar="SHARDS|CSV",
        help="webdataset tars ('cc3m/{00000..00331}.tar', also on https:// or s3://), CSV or TSV",
    )
    add(
        "--experts",
        required=True,
        metavar="NAME=WHERE,…",
        help="mask-rcnn=…, dpt=…, nll-angmf=…; WHERE: see `experts list`",
    )
    add("--out", type=folder, required=True, metavar="DIR", help="the label store")
    add("--set", **REPEATED, metavar="KEY=VALUE", dest="overrides", help="input_side, label_side")
    add("--batch-size", type=number(1, COUNT), default=32)
    add("--experiment", type=name, default="label", help="MLflow experiment (default: label)")
    add_execution(parser)
    add_dry_run(parser)
    add_tracking(parser)


def main(options: argparse.Namespace) -> int:
    """Label, then say how many, how big, how exact."""
    if "RANK" in os.environ:
        raise UserError(
            "label does not run under torchrun; start it once: its shards are tasks (see --executor and --jobs)"
        )
    import asyncio

    from backbones.cliptex.labels.labeller import LabelSettings
    from backbones.utils.overrides import parse_pairs, with_changes
    from benchmark.evaluation.plan import split_names
    from benchmark.execution.progress import console
    from benchmark.pipeline.labels import LabelRequest, label_stage
    from benchmark.pipeline.preview import preview_label
    from benchmark.pipeline.stage import driving
    from reports.mlflow.client import using

    spec = executor_spec(options)
    request = LabelRequest(
        options.pairs, tuple(split_names([options.experts])), options.out,
        with_changes(LabelSettings(), parse_pairs(options.overrides)), options.batch_size, experiment=options.experiment,
    )  # fmt: skip
    if options.dry_run:
        with using(options.tracking_uri):
            preview_label(request, spec)
        return 0
    with using(options.tracking_uri), driving(spec, options.experiment) as (executor, _):
        manifest = asyncio.run(label_stage(request, executor))
    console.print(
        f"{manifest['pairs_in']} pairs in, {manifest['pairs_out']} labelled, {len(manifest['failed'])} failed, "
        f"{manifest['bytes_per_image']:.0f} bytes an image: {options.out}"
    )
    for key, reason in manifest["failed"][:5]:
        console.print(f"  failed: {key}: {reason}", markup=False)
    if len(manifest["failed"]) > 5:
        console.print(f"  … all of them are named in {options.out / 'manifest.json'}", markup=False)
    return 0
