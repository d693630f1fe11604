"""``reproduce``: a faithful run is not accused, and each planted fault is named."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import backbones.registry
import probes.dense.config
import probes.train.config
from backbones.registry import Entry, register
from benchmark import reproduce as targets_module
from benchmark.options import RunOptions
from benchmark.plan import make_plan
from benchmark.suites import SUITES, Suite, register_suite
from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec, mirrored
from probes.registry import DATASETS, PROTOCOLS, Preset, Protocol, register_dataset
from reports.published.table import PublishedNumber
from tests.benchmark.run_command import run_command
from tests.forks import Fork, command
from tests.probes import tiny_dense
from tests.probes.datasets.make import make_camvid

pytestmark = pytest.mark.integration

TRAIN, VAL, SIZE = 16, 24, (64, 64)
COMMAND = "reproduce golden --partial --jobs 1 --num-workers 0 --device cpu"
VIT = "random/timm/test_vit"
CLASSES = ("red", "green", "blue")
SETTINGS = {
    "size": 64,
    "crop": (64, 64),
    "max_iters": 24,
    "epochs": 0.0,
    "batch_size": 4,
    "schedule": "cosine",
    "lr": 1e-2,
    "layers": "last",
}


def without_norm(request):
    random = dataclasses.replace(request, random=True, seed=0)
    backbone = backbones.registry.build_timm(random)
    backbone.model.norm = torch.nn.Identity()
    return backbone


@pytest.fixture
def golden(workdir, monkeypatch):
    """A protocol whose source has a dataset like the one in the working folder; returns a function
    that sets the published value and runs ``reproduce``."""
    spec = DatasetSpec(
        "golden",
        "segmentation",
        "golden",
        mirrored("images/{part}", "truth/{part}"),
        expected={"train": TRAIN, "val": VAL},
        classes=CLASSES,
        label_offset=-1,
    )
    for registry in (DATASETS, PROTOCOLS, SUITES, backbones.registry.BACKBONES):
        monkeypatch.setattr(registry, "data", dict(registry.data))
    register_dataset(spec)
    preset = Preset("segmentation/linear", SETTINGS, ("golden",))
    protocol = Protocol("golden", "a test", (preset,), {"": {"": "nothing"}})
    PROTOCOLS["golden"] = protocol
    register(Entry("vit-without-norm", "", "none", without_norm, {"architecture": VIT[7:]}, ""))
    tiny_dense.make(workdir / "golden", "segmentation", TRAIN, VAL, SIZE)
    for path in (workdir / "golden" / "truth").rglob("*.png"):  # 0 is unlabelled, as in ADE20K
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.where(labels == 255, 0, labels + 1).astype(np.uint8)).save(path)

    def reproduce(published: float, backbone: str = VIT, words: str = "") -> int:
        number = PublishedNumber(
            model="golden",
            backbones=(backbone,),
            architecture="",
            task="golden/linear",
            metric="mIoU",
            value=published,
            digits=len(str(published).partition(".")[2]),
            preset="golden",
            **dict.fromkeys(("source", "title", "url", "licence", "protocol", "differs"), ""),
        )
        monkeypatch.setattr(targets_module, "published_numbers", lambda: [number])
        return run_command(f"{COMMAND} --backbone {backbone} --data golden=golden {words}")

    return reproduce


def test_a_faithful_run_is_not_accused(golden, capsys):
    assert golden(0.1) == 0
    output = capsys.readouterr().out
    assert "→ differs" in output and "none of the known causes fits" in output
    ours = output.partition("ours ")[2].partition(",")[0]
    assert golden(float(ours)) == 0
    assert "→ reproduced" in capsys.readouterr().out


def test_a_dry_run_shows_what_is_to_do_and_does_nothing(golden, workdir, capsys):
    assert golden(0.1, words="--dry-run") == 0
    output = capsys.readouterr().out
    assert f"to do · {VIT} · seed 0 · golden/linear" in output and "theirs" not in output
    assert not (workdir / "mlflow.db").exists()
    assert golden(0.1, words="--quick --dry-run") == 2


def test_the_weights_of_a_backbone_that_brings_none(golden, capsys):
    backbone = backbones.create(VIT, seed=5)
    save_file({**backbone.model_state()}, "own.safetensors")
    assert golden(0.1, VIT.removeprefix("random/"), "--weights own.safetensors") == 0
    assert "→ differs" in capsys.readouterr().out


def test_a_target_has_the_settings_of_the_suite_that_runs_it(golden):
    names = ["golden/linear"]
    register_suite(Suite("golden", "a test", {names[0]: {"weight_decay": 0.123}}))
    (target,) = targets_module.plan_preset("golden", names)
    plan = make_plan(RunOptions(backbones=[VIT], tasks=names, overrides={"protocol": "golden"}))
    assert target.settings == plan.tasks[0].settings and target.settings.weight_decay == 0.123


def halve_training_set(folder, monkeypatch):
    for kind in ("images", "truth"):
        for number in range(TRAIN // 2):
            (folder / kind / "train" / f"{number:03}.png").unlink()
    return "training images: 8 images of train, the source has 16"


def shrink_masks(folder, monkeypatch):
    for path in [*folder.rglob("val/*.png")]:
        image = Image.open(path)
        image.resize((20, 20), Image.Resampling.NEAREST).save(path)
    return "resolution of masks: label maps of val have 20 × 20 px"


def remove_label_zero_before(folder, monkeypatch):
    for path in (folder / "truth").rglob("*.png"):
        labels = np.asarray(Image.open(path)).astype(np.int64)
        Image.fromarray(np.where(labels == 0, 255, labels - 1).astype(np.uint8)).save(path)
    return "label 0: label maps hold 0 to 2 and 255, so label 0 was removed before; class red"


def step_per_batch(folder, monkeypatch):
    def schedule(settings):
        part = {"type": "CosineAnnealingLR", "T_max": 3, "eta_min": 0.0}
        return [{"by_epoch": False, "begin": 0, "end": settings.max_iters, **part}]

    monkeypatch.setattr(probes.train.config, "scheduler_configs", schedule)
    return "learning rate: the rate rises"


def double_rate(folder, monkeypatch):
    def apply_training(config, settings):
        apply(config, settings)
        config.optim_wrapper.optimizer.lr *= 2

    apply = probes.dense.config.apply_training
    monkeypatch.setattr(probes.dense.config, "apply_training", apply_training)
    return "learning rate: the rate is 0.02 at iteration 1, the protocol's is 0.01"


def ignore_a_class(folder, monkeypatch):
    spec = dataclasses.replace(DATASETS["golden"], ignore_index=1)
    monkeypatch.setitem(DATASETS.data, "golden", spec)
    return "label 0: class green is not scored, since ignore_index=1"


PLANTS = [
    halve_training_set,
    shrink_masks,
    remove_label_zero_before,
    step_per_batch,
    double_rate,
    ignore_a_class,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_named(golden, workdir, monkeypatch, capsys, plant):
    expected = plant(workdir / "golden", monkeypatch)
    assert golden(0.1) == 0
    output = capsys.readouterr().out
    assert expected in output and "none of the known causes" not in output
    causes = [line for line in output.splitlines() if line.startswith("  ") and ": " in line]
    assert len([line for line in causes if " seed " not in line]) == 1, causes


def test_a_missing_final_norm_is_named(golden, capsys):
    assert golden(0.1, "vit-without-norm") == 0
    assert "final norm: the backbone's final norm is an identity" in capsys.readouterr().out


def test_quick_runs_every_preset_whose_data_are_there(golden, capsys):
    quick = "reproduce golden --quick --jobs 1 --num-workers 0 --device cpu"
    assert run_command(f"{quick} --data golden=golden") == 0
    assert "golden/linear" in (output := capsys.readouterr().out) and "in place" in output
    assert run_command(f"{quick} --data-root elsewhere") == 2


def killed_run(options):
    with Path("runs").open("a") as file:
        file.write("x")
    with suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    raise UserError("a process of the run was killed, too")


def quick_twice() -> None:
    targets_module.run = killed_run
    command(*["reproduce", "mmseg", "--quick", "--data", "camvid=camvid"])


def test_a_signal_ends_quick_runs(workdir):
    make_camvid(workdir / "camvid")
    fork = Fork(quick_twice, output=workdir / "output")
    assert fork.end() == 143, fork.text()
    assert Path("runs").read_text() == "x" and "interrupted" in fork.text()


def test_the_list_says_what_to_bring(capsys):
    assert run_command("reproduce dinov3 --list") == 0
    output = capsys.readouterr().out
    assert "dinov3-b16" in output and "51.8" in output
    assert run_command("reproduce dinov2-b14 --list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    loaded = {protocol: backbone for protocol, backbone, *_ in rows}
    assert loaded["hummingbird"] == "hub/facebookresearch/dinov2:dinov2_vitb14"
    assert set(loaded.values()) == {loaded["hummingbird"], "dinov2-b14"}
    assert run_command("reproduce pixio hummingbird --list --task voc/linear,voc/in-context") == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert rows and all("voc: 10,582 train, 1,449 val" in row for row in rows)
    assert run_command("reproduce dinov3 --backbone clip --list") == 2
    assert run_command("reproduce no-such-name --list") == 2
    capsys.readouterr()
    assert run_command("reproduce visbench --list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len({(backbone, task) for _, backbone, task, *_ in rows}) == 52  # 4 boards of 13
    assert run_command("reproduce mmseg --list") == 0
    assert "`reproduce --quick mmseg --data-root DIR` tries" in capsys.readouterr().out
    assert run_command("reproduce") == 2
