"""Triplets of images with people's choices: NIGHTS."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

from cliptex_common import files
from cliptex_common.errors import report_malformed
from probes.datasets.base import DatasetSpec, Sample, Split, require_file
from probes.datasets.ground_truth import Triplet
from probes.registry import register_dataset

FEWEST_VOTES = 6


def list_nights(root: Path, split: Split) -> list[Sample]:
    """The triplets of the official test split that at least six people agree on, as DreamSim's
    ``TwoAFCDataset`` reads them; columns are read by their names.

    ``data.csv``, ``ref/000/002.png``, ``distort/000/{002_0,002_1}.png``. Images were generated
    (Fu, Tamir, Sundaram et al., NeurIPS 2023); ``imagenet`` are prompts of ImageNet's classes.
    """
    if split == "train":
        return []
    path = require_file(root, "data.csv")
    with report_malformed(f"{path} is not the table of NIGHTS"):
        samples = []
        for row in csv.DictReader(io.StringIO(files.read_text(path))):
            share, votes = float(row["right_vote"]), int(row["votes"])
            if not 0 <= share <= 1:
                raise ValueError(f"right_vote {share:g} is no share")
            if row["split"] == "test" and votes >= FEWEST_VOTES:
                subset = "imagenet" if row["is_imagenet"].lower() == "true" else "no_imagenet"
                triplet = Triplet(row["left_path"], row["right_path"], share, votes, subset)
                samples.append(Sample(row["ref_path"], triplet))
        return samples


def adapt(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """With as many triplets as the table of the copy has."""
    return replace(spec, expected={"train": 0, "val": len(list_nights(root, "val"))})


register_dataset(
    DatasetSpec(
        name="nights",
        kind="triplets",
        folder="nights",
        list_samples=list_nights,
        expected={"train": 0},
        adapt=adapt,
        extra={"split": "test", "fewest_votes": FEWEST_VOTES},
        about=(
            "NIGHTS, which of two images people find more like a third: data.csv, ref, distort"
            " (github.com/ssundaram21/dreamsim; `data get nights`)"
        ),
    )
)
