"""Commands that make weights and what they need: ``experts``, ``labels``, ``train``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from benchmark.executor import ExecutionOptions
from benchmark.options import Changes, DryRunOptions, PairsOptions, PluginOptions, TrackingOptions
from benchmark.parser import ConfigOptions, Positional
from benchmark.progress import Bar, console
from cliptex_common.errors import UserError
from cliptex_common.files import read_text
from cliptex_common.settings import Folder, Names, Seed, options_dataclass, with_changes

if TYPE_CHECKING:
    from benchmark.stages import TrainedWeights, Training


@options_dataclass
class TrainExpert(ConfigOptions, ExecutionOptions, PluginOptions, TrackingOptions):
    """Train an expert on a dataset in its official layout and evaluate it.

    examples:
      python -m benchmark experts train unet-seg --data-root DIR --out seg/
      python -m benchmark experts train unet-depth --data-root DIR --set epochs=4 --out depth/
    """

    name: Positional[str]
    """the expert; see `list experts`"""
    data_root: Folder
    """folder with coco/ (seg), nyu/ (depth, normal) or TASK/ (of a plugin), train and val"""
    out: Folder
    """output folder"""
    overrides: Changes = field(default_factory=dict)
    """change a setting of its training (repeatable): size, epochs, lr …"""
    seed: Seed = 0
    """random seed"""
    experiment: str = "experts"
    """MLflow experiment"""

    def main(self) -> int:
        """Train one expert."""
        from benchmark.executor import open_executor_and_tracker
        from benchmark.progress import console
        from benchmark.stages import ExpertTraining, make_expert
        from reports.store import using

        inputs = ExpertTraining(
            self.name,
            self.data_root.absolute(),
            self.out.absolute(),
            self.overrides,
            self.seed,
            experiment=self.experiment,
        )
        opened = open_executor_and_tracker(self, self.experiment)
        with using(self.tracking_uri), opened as (executor, _):
            asyncio.run(make_expert(inputs, executor))
        options = [f"--plugin {path}" for path in self.plugins]
        options.append(f"--experts {self.name}={self.out} --pairs … --out …")
        console.print("label with it: python -m benchmark labels predict", *options)
        return 0


EXPERTS_COMMAND = {"train": TrainExpert}


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
        from benchmark.executor import open_executor_and_tracker, unstarted_executor
        from benchmark.stages import LabelRequest, label_pairs, preview_labels
        from reports.store import using

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
                with unstarted_executor(self) as executor:
                    preview_labels(request, executor)
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
        from benchmark.executor import exclusive
        from benchmark.stages import print_note

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


LABELS_COMMAND = {
    "predict": PredictLabels,
    "make": MakeLabels,
    "check": CheckLabels,
    "draw": DrawLabels,
}


def _show(manifest: Mapping[str, Any], summary: str, out: Path) -> None:
    """Print what a label store has, and its first failures."""
    failed = manifest["failed"]
    console.print(f"{summary}, {len(failed)} failed: {out}")
    for key, reason in failed[:5]:
        console.print(f"  failed: {key}: {reason}")
    if len(failed) > 5:
        console.print(f"  … {out / 'manifest.json'} has all of them")


@options_dataclass
class TrainBackbone(
    ConfigOptions, PairsOptions, ExecutionOptions, PluginOptions, DryRunOptions, TrackingOptions
):
    """Train a backbone by a recipe: clip, clip-ft, cliptex.

    examples:
      python -m benchmark train --init open_clip/ViT-B-16/openai --pairs 'cc3m/{00000..00331}.tar'
        --labels labels/ --out b16.safetensors
      python -m benchmark train --recipe clip-ft --init open_clip/ViT-B-16/openai --pairs pairs.csv
        --set epochs=10 --out ft.safetensors --dry-run
    """

    multi_node = True
    recipe: str = "cliptex"
    """a name from `list recipes`, or a .json or .toml file"""
    init: str
    """initial weights: open_clip/ARCH/PRETRAINED, a weights file of this package, random, or
    imagenet (the recipe's model, its timm image tower with ImageNet weights)"""
    labels: Path | None = None
    """pseudo-labels of the pairs, from `labels predict`"""
    overrides: Changes = field(default_factory=dict)
    """change a setting of the recipe (repeatable)"""
    out: Path
    """file of the trained weights (.safetensors)"""
    manual_labels: Path | None = None
    """labels that override the experts' where a pair has them; from `labels make`"""
    experts: Names = ()
    """only these of seg, depth, normal (the same as --set experts=…)"""
    save_every: NonNegativeFloat = 60.0
    """seconds between two checkpoints to resume from; more where they would take over 2 % of the
    time"""
    keep_every: NonNegativeInt = 0
    """export weights every so many steps, and the last: w.safetensors has w.steps/, for `watch` and
    as columns of `run --backbone LABEL=w.steps`; 0: never"""
    experiment: str = "train"
    """MLflow experiment"""

    def main(self) -> int:
        """Train, export, and print how to use the weights."""
        import backbones
        from backbones.cliptex.recipes import find_recipe
        from backbones.cliptex.trainer import first_process
        from benchmark.executor import unstarted_executor
        from benchmark.progress import console
        from benchmark.stages import Training, preview_training
        from reports.store import using

        self._check_output()
        experts = {"experts": ",".join(self.experts)} if self.experts else {}
        recipe = find_recipe(self.recipe).changed({**self.overrides, **experts})
        labels = [path.absolute() for path in (self.manual_labels, self.labels) if path]
        inputs = Training(
            recipe=recipe,
            init=self.init,
            pairs=self.pairs,
            out=self.out.absolute(),
            labels=tuple(labels),
            save_seconds=self.save_every,
            keep_every=self.keep_every,
            experiment=self.experiment,
        )
        with using(self.tracking_uri):
            if self.dry_run:
                os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
                with unstarted_executor(_for_one_unit(self)) as executor:
                    preview_training(inputs, executor)
                return 0
            is_rank = "RANK" in os.environ  # set by torchrun in each of its processes
            weights = _train_rank(inputs, self) if is_rank else _submit(inputs, self)
        if first_process():
            action = "trained"
            if not weights.trained:
                action = "found in the cache (same recipe, initial weights, pairs and labels)"
                action += ", so no step was exported" if self.keep_every else ""
            run = f"  MLflow run {weights.run}" if weights.run else ""
            console.print(f"{recipe.name} {action}: {self.out}  sha256 {weights.sha256[:16]}{run}")
            name = recipe.name if recipe.name in backbones.names() else "cliptex"
            options = [f"--plugin {path}" for path in self.plugins]
            options.append(f"--backbone {name} --weights {self.out} --suite paper --data-root DIR")
            console.print("probe it: python -m benchmark run", *options)
            if self.keep_every and weights.trained:
                steps = self.out.with_suffix(".steps")
                console.print(
                    "each checkpoint as a column: python -m benchmark run --backbone"
                    f" LABEL={steps} --suite paper --data-root DIR"
                )
        return 0

    def _check_output(self) -> None:
        """Raise ``UserError`` if ``--out`` is the initial weights or not written by a training."""
        from backbones.weights import read_metadata
        from benchmark.result import check_writable

        if not self.out.is_file():
            if not self.dry_run:
                check_writable(self.out, "--out")
            return
        if Path(self.init).is_file() and self.out.samefile(self.init):
            raise UserError(f"--out {self.out} is the file of --init; give another")
        if not read_metadata(self.out):
            raise UserError(
                f"--out {self.out} exists and has no weights of this package; give another file, or"
                " move it away"
            )


TRAIN_COMMAND = TrainBackbone


def _train_rank(inputs: Training, options: ExecutionOptions) -> TrainedWeights:
    """Train as one of torchrun's processes; the first one reports progress."""
    from backbones.cliptex.trainer import first_process
    from benchmark.progress import Bar, reporting
    from benchmark.stages import train_unit
    from reports.tracking import Tracker

    workers = 2 if options.num_workers is None else options.num_workers
    inputs = replace(inputs, device=options.device, num_workers=workers)
    if not first_process():
        return train_unit(inputs)
    tracker = Tracker(inputs.experiment)
    tracker.close_stale()
    with Bar() as bar, reporting(bar):
        weights = train_unit(inputs)
    tracker.close_stale()  # of a process that was killed just before the start
    return weights


def _submit(inputs: Training, options: ExecutionOptions) -> TrainedWeights:
    """Train as a unit of work; on SLURM in a process for each GPU of each node."""
    from benchmark.executor import open_executor_and_tracker
    from benchmark.stages import train_weights

    opened = open_executor_and_tracker(_for_one_unit(options), inputs.experiment)
    with opened as (executor, _):
        return asyncio.run(train_weights(inputs, executor))


def _for_one_unit(options: ExecutionOptions) -> ExecutionOptions:
    """On this machine it runs in this process, with all cores."""
    return replace(options, jobs=1) if options.executor == "local" else options
