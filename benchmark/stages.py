"""Stages before probing – training, experts, labelling – each an MLflow run of its own, skipped when its result is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import backbones
from backbones.cliptex.experts.registry import load_experts
from backbones.cliptex.experts.training import train_expert
from backbones.cliptex.label import LabelSettings, label_pairs, labels_key
from backbones.cliptex.labels_picture import draw_labels
from backbones.cliptex.pairs import PairSource
from backbones.cliptex.processes import first_process
from backbones.cliptex.protocols import Silent
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.train import TrainResult, find_trained, train
from benchmark import side_by_side as processes
from benchmark.alone import alone
from benchmark.interrupt import as_interrupt
from benchmark.progress import Bar, console
from benchmark.side_by_side import Job, side_by_side
from reports.store import hide_password
from reports.tracking import Run, Tracker, environment, git_commit
from sweeps.errors import TrialPruned

Watch = Callable[[Mapping[str, float], int], None]
MOST_LABELLERS = 4  # each has all experts in its memory: gigabytes, where they are large ones


@contextmanager
def stage_run(
    tracker: Tracker | None,
    stage: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    parent: Run | None = None,
) -> Iterator[Run | None]:
    """An MLflow run for a stage (under ``parent``); without a tracker nothing is written."""
    if tracker is None:
        yield None
        return
    commit = git_commit()
    facts = {"stage": stage, "suite": tracker.experiment, "mlflow.source.name": f"python -m benchmark {stage}", **tags}
    if commit:
        facts["git.commit"] = commit
    with tracker.run(name, tags=facts, params=params, parent=parent) as run, as_interrupt():
        yield run


def finished_stage(tracker: Tracker | None, **tags: str) -> str:
    """Id of the newest finished run with these tags, or ''."""
    run = tracker.finished(**tags) if tracker is not None else None
    return run.info.run_id if run is not None else ""


def train_stage(
    tracker: Tracker | None,
    recipe: Recipe,
    *,
    init: str,
    pairs: PairSource,
    labels: Any,
    out: Path,
    bar: Bar,
    device: torch.device | str = "cpu",
    workers: int = 2,
    parent: Run | None = None,
    watch: Watch | None = None,
    save_seconds: float = 60.0,
) -> tuple[TrainResult, str]:
    """Train (or find) a backbone's weights; returns the result and the id of the MLflow run that trained them.

    ``watch(metrics, step)`` sees what is validated during training, and may raise ``TrialPruned`` to end it.

    Raises:
        UserError, NonFiniteLoss: as ``backbones.cliptex.train.train``.
        TrialPruned: ``watch`` ended it.
    """
    with _alone(out, bar):
        found = find_trained(recipe, init=init, pairs=pairs, out=out, labels=labels)
        if found is not None:
            return found, finished_stage(tracker, **{"train.key": found.key})
        return _train(
            tracker, recipe, init=init, pairs=pairs, labels=labels, out=out, bar=bar, device=device, workers=workers,
            parent=parent, watch=watch, save_seconds=save_seconds,
        )  # fmt: skip


def _alone(out: Path, bar: Bar) -> AbstractContextManager[None]:
    """Nobody else makes ``out`` meanwhile; of torchrun's processes the first says so for all."""
    return alone(out, bar) if first_process() else nullcontext()


def _train(
    tracker: Tracker | None,
    recipe: Recipe,
    *,
    init: str,
    pairs: PairSource,
    labels: Any,
    out: Path,
    bar: Bar,
    device: torch.device | str,
    workers: int,
    parent: Run | None,
    watch: Watch | None,
    save_seconds: float,
) -> tuple[TrainResult, str]:
    params = {k: v for k, v in asdict(recipe).items() if k != "name"}
    name = f"train {recipe.name} · seed {recipe.seed}"
    tags = {"recipe": recipe.name, "seed": str(recipe.seed), "backbone": recipe.name, "experts": ",".join(recipe.tasks)}
    with stage_run(tracker, "train", name, tags, params, parent) as run:
        pruned, result = None, None
        try:
            result = train(
                recipe,
                init=init,
                pairs=pairs,
                labels=labels,
                out=out,
                log=_Watched(run, watch) if watch else run,
                progress=bar,
                device=device,
                workers=workers,
                save_seconds=save_seconds,
            )
        except TrialPruned as error:
            pruned = error
            shutil.rmtree(out.with_name(f"{out.name}.resume"), ignore_errors=True)
            if run is not None:
                run.status = "KILLED"
                run.set_tags({"failure": f"pruned: {error}"})
        if run is not None and result is not None:
            run.set_tags(
                {"train.key": result.key, "weights.sha256": result.sha256, "weights.file": str(result.path.absolute())}
            )
            run.log_metrics({f"cost/{key}": value for key, value in result.cost.items()})
            run.log_metrics({k: v for k, v in result.metrics.items() if k.startswith("val/")})
            run.log_dataset(pairs.name, pairs.fingerprint, "training", pairs=len(pairs))
            run.log_json(
                {"recipe": asdict(recipe), "init": init, "environment": environment(), "notes": result.notes},
                "train.json",
            )
            # the many trials of a sweep stay in CLIPTEX_HOME alone
            kept = parent is None and _log_weights(run, result.path, _read_as(recipe))
            run.describe(_how_to_load(result, recipe, run.id if kept else "", run.tracker.uri))
    if result is None:
        assert pruned is not None
        raise pruned
    for note in result.notes if first_process() else ():
        console.print(f"  note · train {recipe.name}: {note}", style="dim", markup=False)
    return result, run.id if run is not None else ""


class _Watched:
    """A log that shows validation results to ``watch`` as they come."""

    def __init__(self, log: Run | None, watch: Watch) -> None:
        self.log, self.watch = log or Silent(), watch

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.log.log_metrics(metrics, step)
        if any(name.startswith("val/") for name in metrics):
            self.watch(metrics, step)


LOADER = '''"""Loads the weights beside this file as a frozen backbone: ``from load import load``."""

from pathlib import Path

import backbones


def load():
    weights = Path(__file__).with_name({file!r})
    return backbones.create({name!r}, weights=str(weights), any_architecture=True)
'''
MOST_BYTES = 200_000_000  # of weights that are kept in MLflow; bigger ones stay where they are, by path


def _log_weights(run: Run, path: Path, name: str) -> bool:
    """Keep the weights and their loader as artifacts ``weights/`` of the run that made them, unless they are too big."""
    if path.stat().st_size > MOST_BYTES:
        return False
    run.log_file(path, "weights")
    run.log_text(LOADER.format(name=name, file=path.name), "weights/load.py")
    return True


def _read_as(recipe: Recipe) -> str:
    """The backbone that the weights are loaded as: the recipe's own where one has its name (a recipe file's may be any)."""
    return recipe.name if recipe.name in backbones.names() else "cliptex"


def _how_to_load(result: TrainResult, recipe: Recipe, run_id: str, uri: str) -> str:
    """The description of a training run; the store is named, so that the command holds in every folder (not with a password)."""
    store = f"MLFLOW_TRACKING_URI={uri} " if hide_password(uri) == uri else ""
    path, name = result.path.absolute(), _read_as(recipe)
    kept = (
        f"They are kept with this run:\n\n```\n{store}mlflow artifacts download -r {run_id} -a weights -d .\n"
        f'python -c "from weights.load import load; print(load())"\n```\n\n'
        if run_id
        else ""
    )
    create = f"backbones.create({name!r}, weights={str(path)!r}, any_architecture=True)"
    probe = f"python -m benchmark run --backbone {name} --weights {path} --suite paper --data-root DIR"
    return (
        f"Weights of `{recipe.name}`: `{path}` (sha256 `{result.sha256[:16]}…`).\n\n{kept}"
        f"```python\nimport backbones\nbackbone = {create}\n```\n\n" + ("" if name == "clip" else f"```\n{probe}\n```")
        # on the command line `clip` is one architecture, which these weights need not have
    )


def expert_stage(
    tracker: Tracker | None,
    name: str,
    data_root: Path,
    out: Path,
    *,
    settings: Mapping[str, Any],
    seed: int = 0,
    bar: Bar,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Train (or find) an expert in the folder ``out``; returns its ``expert.json`` with its accuracy on truth.

    Raises:
        UserError: as ``backbones.cliptex.experts.training.train_expert``.
    """
    asked: dict[str, Any] = {"settings": settings, "seed": seed, "device": device, "progress": bar}
    with _alone(out, bar):
        if (out / "expert.json").is_file():
            return train_expert(name, data_root, out, **asked, log=Silent())
        return _train_expert(tracker, name, data_root, out, asked)


def _train_expert(
    tracker: Tracker | None, name: str, data_root: Path, out: Path, asked: Mapping[str, Any]
) -> dict[str, Any]:
    tags = {"expert": name, "seed": str(asked["seed"])}
    with stage_run(tracker, "experts", f"expert {name} · seed {asked['seed']}", tags, asked["settings"]) as run:
        made = train_expert(name, data_root, out, **asked, log=run or Silent())
        if run is not None:
            run.log_json(made, "expert.json")
            run.log_metrics({"cost/train_seconds": made["seconds"], "cost/train_flops": made["flops"]})
            run.set_tags({"weights.sha256": made["sha256"], "weights.file": str(out)})
    accuracy = ", ".join(f"{key} {value:.3g}" for key, value in made["accuracy"].items())
    console.print(f"  expert {name}: {accuracy}  [dim]{made['seconds']:.0f} s[/dim]")
    return made


def label_stage(
    tracker: Tracker | None,
    pairs: PairSource,
    experts: Sequence[str],
    out: Path | Callable[[str], Path],
    *,
    settings: LabelSettings | None = None,
    bar: Bar,
    device: torch.device | str = "cpu",
    workers: int = 2,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Label every pair with every expert (``NAME=WHERE``); returns the store's manifest. Finished shards are kept.

    Args:
        out: the store's folder, or what names it by the ``key`` that its manifest will have.

    Raises:
        UserError: as ``backbones.cliptex.label.label_pairs``.
    """
    loaded = load_experts(list(experts), device)
    out = out if isinstance(out, Path) else out(labels_key(pairs, loaded, settings))
    shared: dict[str, Any] = {
        "settings": settings,
        "batch_size": batch_size,
        "workers": max(1, workers),
        "device": device,
    }

    def work(log: Any) -> dict[str, Any]:
        return label_pairs(
            pairs, loaded, out, **shared, progress=bar, log=log,
            say=lambda line: console.print(f"  note · {line}", style="dim", markup=False),
        )  # fmt: skip

    with _alone(out, bar):
        if (out / "manifest.json").is_file():
            return work(Silent())
        params = {"experts": ",".join(expert.name for expert in loaded), "pairs": pairs.name, "count": len(pairs)}
        with stage_run(tracker, "label", f"label {pairs.name}", {"labels.file": str(out)}, params) as run:
            parts = min(processes.cores(), len(pairs.shards), MOST_LABELLERS) if "RANK" not in os.environ else 1
            if parts > 1 and str(device).startswith("cpu"):
                # the store is then finished by this process, from what is there
                part_of = {"pairs": pairs, "experts": list(experts), "out": out, "shared": shared}
                side_by_side([Job(label_part, {**part_of, "part": (i, parts)}) for i in range(parts)], bar)
            manifest = work(run or Silent())
            if run is not None and manifest:
                run.log_json(manifest, "manifest.json")
                run.log_dataset(pairs.name, pairs.fingerprint, "labelling", pairs=len(pairs))
                cost = manifest["cost"]
                run.log_metrics(
                    {
                        "cost/label_seconds": cost["seconds"],
                        "cost/label_flops": cost["flops"],
                        **{f"cost/label_seconds/{name}": seconds for name, seconds in cost["expert_seconds"].items()},
                        "bytes_per_image": manifest["bytes_per_image"],
                    }
                )
                with TemporaryDirectory() as folder:
                    picture = Path(folder) / "labels.png"
                    draw_labels(out, pairs, picture)
                    run.log_file(picture, "pictures")
        return manifest


def label_part(
    *, pairs: PairSource, experts: Sequence[str], out: Path, shared: Mapping[str, Any], part: tuple[int, int], bar: Bar
) -> None:
    """Some of the shards, in a process of its own."""
    label_pairs(
        pairs, load_experts(list(experts), shared["device"]), out, **shared, progress=bar, log=Silent(), part=part,
        say=lambda line: console.print(f"  note · {line}", style="dim", markup=False),
    )  # fmt: skip
