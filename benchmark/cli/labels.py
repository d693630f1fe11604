"""``labels``: predict pseudo-labels of image-caption pairs, store manual ones, check and draw."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from benchmark.cli.parser import ConfigOptions, Positional
from benchmark.execution import ExecutionOptions
from benchmark.execution.progress import Bar, console
from benchmark.planning.options import (
    Changes,
    DryRunOptions,
    PairsOptions,
    PluginOptions,
    TrackingOptions,
)
from cliptex_common.errors import UserError
from cliptex_common.files import read_text
from cliptex_common.settings import Folder, Names, options_dataclass, with_changes


@options_dataclass
class PredictLabels(
    ConfigOptions, PairsOptions, ExecutionOptions, PluginOptions, DryRunOptions, TrackingOptions
):
    """Let experts write pseudo-labels, a unit of work for each shard of pairs.

    examples:
      python -m benchmark labels predict --pairs 'cc3m/{00000..00331}.tar'
        --experts dpt=Intel/dpt-large,nll-angmf=scannet.pt --out labels/
      python -m benchmark labels predict --pairs pairs.csv --experts unet-depth=depth/
        --set label_side=112 --out labels/ --dry-run
    """

    experts: Names
    """mask-rcnn=WEIGHTS, dpt=…, nll-angmf=…; see `list experts`"""
    out: Folder
    """the label store"""
    overrides: Changes = field(default_factory=dict)
    """change a label setting (repeatable): input_side, label_side"""
    batch_size: PositiveInt = 32
    """images per batch"""
    experiment: str = "label"
    """MLflow experiment"""

    def main(self) -> int:
        """Let experts label the pairs."""
        from backbones.cliptex.labelling import LabelSettings
        from benchmark.stages.labels import LabelRequest, label_pairs, preview_labels
        from benchmark.stages.session import open_executor_and_tracker
        from reports.mlflow.client import using

        if "RANK" in os.environ:
            raise UserError("labels predict does not run under torchrun; see --executor and --jobs")
        request = LabelRequest(
            self.pairs,
            tuple(self.experts),
            self.out,
            with_changes(LabelSettings(), self.overrides),
            self.batch_size,
            experiment=self.experiment,
        )
        with using(self.tracking_uri):
            if self.dry_run:
                os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
                preview_labels(request)
                return 0
            with open_executor_and_tracker(self, self.experiment) as (executor, _):
                manifest = asyncio.run(label_pairs(request, executor)).manifest
        counts = f"{manifest['pairs_out']} of {manifest['pairs_in']} pairs labelled"
        _show(manifest, f"{counts}, {manifest['bytes_per_image']:.0f} bytes per image", self.out)
        return 0


@options_dataclass
class MakeLabels(ConfigOptions, PairsOptions, PluginOptions):
    """Make a label store from folders of files, for `train --manual-labels`.

    examples:
      python -m benchmark labels make --pairs 'cc3m/{00000..00331}.tar' --from depth=depth/
        --out mine/
      python -m benchmark labels make --pairs pairs.csv --from seg=masks/ --classes names.txt
        --label-side 0 --out mine/
    """

    folders: Annotated[Mapping[str, Folder], Field(alias="from")]
    """seg=DIR: masks of class numbers, 255 unknown; depth=DIR: 16-bit PNGs in millimetres, 0
    unknown; normal=DIR: RGB PNGs, n = png / 127.5 - 1, x right, y up, z to the camera, black
    unknown. Files are named like their pairs (repeatable)"""
    classes: Path | None = None
    """class names of the masks, one a line"""
    label_side: NonNegativeInt = 60
    """short side of stored labels; 0: as they are"""
    out: Folder
    """the label store"""

    def main(self) -> int:
        """Make a label store from files."""
        from backbones.cliptex.labelling import LabelSettings, ManualLabels, make_labels
        from backbones.cliptex.pairs import open_pairs
        from backbones.cliptex.tasks import find_task
        from benchmark.execution.exclusive import exclusive
        from benchmark.stages.session import print_note

        try:
            classes = read_text(self.classes).split("\n") if self.classes else []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--classes {self.classes}: {error}; give a text in UTF-8") from error
        names = [name.strip() for name in classes if name.strip()]
        labels = [
            ManualLabels(task, folder, names if find_task(task).has_classes else ())
            for task, folder in self.folders.items()
        ]
        settings = with_changes(LabelSettings(), {"label_side": self.label_side})
        with Bar() as bar, exclusive(self.out):
            source = open_pairs(self.pairs, bar)
            manifest = make_labels(source, labels, self.out, settings, bar, print_note)
        counts = ", ".join(f"{count} of {name}" for name, count in manifest["files"].items())
        _show(manifest, f"{manifest['pairs_out']} pairs labelled ({counts})", self.out)
        return 0


@options_dataclass
class CheckLabels(PluginOptions):
    """Check that every byte is as written and all counts agree.

    examples:
      python -m benchmark labels check labels/
    """

    dir: Positional[Path]
    """the label store"""

    def main(self) -> int:
        """Print a line for each error of a store; exit code 1 if there are any."""
        from backbones.cliptex.labels import LabelStore, check_labels

        errors = check_labels(self.dir)
        for line in errors:
            console.print(line)
        if not errors:
            console.print(f"{self.dir} is intact: {len(LabelStore(self.dir))} pairs labelled")
        return 1 if errors else 0


@options_dataclass
class DrawLabels(PairsOptions, PluginOptions):
    """Draw labels beside their images.

    examples:
      python -m benchmark labels draw labels/ --pairs 'cc3m/{00000..00331}.tar'
      python -m benchmark labels draw labels/ --pairs pairs.csv --limit 20 --out look.png
    """

    dir: Positional[Path]
    """the label store"""
    limit: PositiveInt = 8
    """number of pairs"""
    out: Path = Path("labels.png")
    """the picture"""

    def main(self) -> int:
        """Draw a picture of labels."""
        from backbones.cliptex.labelling import draw_labels
        from backbones.cliptex.pairs import open_pairs

        draw_labels(self.dir, open_pairs(self.pairs), self.out, self.limit)
        console.print(f"written: {self.out}")
        return 0


COMMAND = {"predict": PredictLabels, "make": MakeLabels, "check": CheckLabels, "draw": DrawLabels}


def _show(manifest: Mapping[str, Any], summary: str, out: Path) -> None:
    failed = manifest["failed"]
    console.print(f"{summary}, {len(failed)} failed: {out}")
    for key, reason in failed[:5]:
        console.print(f"  failed: {key}: {reason}")
    if len(failed) > 5:
        console.print(f"  … {out / 'manifest.json'} has all of them")
