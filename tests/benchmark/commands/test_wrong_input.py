"""Wrong input is one line, before any work, with exit code 2."""

from __future__ import annotations

import os

import pytest
import torch

from backbones.checkpoint import Checkpoint, save_checkpoint
from benchmark.executor import EXECUTORS
from benchmark.local import LocalExecutor
from tests.backbones.mini import CONFIG, DATA
from tests.benchmark.other_package import registries
from tests.probes.datasets.make import make_imagefolder

LABEL = "labels predict --pairs pairs --experts dpt=there --out labels"
TRAIN = "train --init random --pairs pairs --out w.safetensors"
EXPERT = "experts train unet --data-root there --out expert"
SWEEP = "sweep launch --suite smoke"
LONG = "x" * 300
DEEP = "[" * 50_000
KNN = "run --task imagefolder/knn --backbone random --device cpu --data imagefolder=images"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{LABEL} --batch-size 0", "batch_size=0: must be greater than 0"),
        (f"{LABEL} --out file", "out=file: give a folder"),
        ("train --init random --pairs pairs --out .", "--out . is a folder"),
        ("run --seed 2147483648", "seed=2147483648: must be less than or equal to 2147483647"),
        (EXPERT.replace("unet", "mask-rcnn"), "expert 'mask-rcnn' cannot be trained here"),
        ("run --task ,", "tasks=[',']: separate names by commas"),
        ("run --suite smoke --dry-run --json x.json", "--json needs a run"),
        ("run --suite smoke --dry-run --device cpu:x", "no device 'cpu:x'"),
        ("run --data coco", "--data 'coco' is not of the form key=value"),
        ("run --suite=", "--suite is empty; give a value"),
        ("run --seeds 1000000000", "seeds=1000000000: must be less than or equal to 1000"),
        (
            "show --backbone clip --images . --size 100000",
            "size=100000: must be less than or equal",
        ),
        (f"run --data-root {LONG}", "File name too long"),
        ("run --data imagefolder=~nobody99/x", "~nobody99/x: there is no such user"),
        ("run --plugin ~nobody99/x.py", "~nobody99/x.py: there is no such user"),
        ("results check ~nobody99/x.zip", "~nobody99/x.zip: there is no such user"),
        ("report --margin .", "margin=.: give a number, as 0.5 or 2%"),
        ("report --margin 5px", "margin=5px: give a number, as 0.5 or 2%"),
        ("report --ui-url localhost:5000", "localhost:5000: give an address that begins with http"),
        ("results check http://[::1", "http://[::1 is no URL"),
        ("results export --out file", "--out file exists and is no .zip; name another file"),
        ("run --suite smoke --json pipe", "--json pipe is a folder or device"),
        (f"run --suite smoke --head {LONG}", "File name too long"),
        (f"results check {LONG}", "File name too long"),
        ("run --config pipe", "cannot read --config pipe: [Errno 22] not a regular file"),
        ("run --config deep.yaml", "cannot read --config deep.yaml: it is nested too deeply"),
        ("run --config deep.toml", "cannot read --config deep.toml: it is nested too deeply"),
        (f"{TRAIN} --recipe deep.json", "recipe deep.json is not valid JSON: it is nested too"),
    ],
)
def test_one_line(command, message, workdir, refused):
    (workdir / "file").touch()
    os.mkfifo("pipe")
    for name in ("deep.yaml", "deep.toml", "deep.json"):
        (workdir / name).write_text("a = " * name.endswith("toml") + DEEP)
    refused(command, message)


@pytest.mark.parametrize("name", ["red/caf\udce9.JPEG", "r\udce9d/0.JPEG"])
def test_names_that_are_not_utf8(name, workdir, refused):
    root = make_imagefolder(workdir / "images")
    for split in ("train", "val"):
        path = root / split / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((root / "val/red/0000.JPEG").read_bytes())
    refused(KNN, "a name is not UTF-8")


def test_class_names_that_are_nested_too_deeply(workdir, refused):
    (make_imagefolder(workdir / "images") / "classnames.json").write_text(DEEP)
    refused(KNN, "classnames.json is not valid JSON (it is nested too deeply)")


DRY = [f"{each} --dry-run" for each in (LABEL, TRAIN, SWEEP)]


@pytest.mark.parametrize("command", [LABEL, TRAIN, EXPERT, SWEEP, *DRY])
def test_a_database_file_is_no_store_for_several_machines(command, workdir, refused):
    class Remote(LocalExecutor):
        is_remote = True

    with registries():
        EXECUTORS.register("remote", Remote)
        message = "start `mlflow server` and give --tracking-uri"
        refused(f"{command} --executor remote", message)
    # a sweep's lock file stays, as all do
    written = [path for path in workdir.glob("home/*/*") if path.parent.name != "locks"]
    assert not written and not list(workdir.glob("*.safetensors"))


@pytest.mark.parametrize("option", ["", "--dry-run"])
def test_a_training_overwrites_no_foreign_file(option, workdir, refused):
    (workdir / "w.safetensors").write_bytes(b"my notes")
    message = "--out w.safetensors exists and has no weights of this package"
    refused(f"{TRAIN} {option}", message)
    assert (workdir / "w.safetensors").read_bytes() == b"my notes"


def test_a_training_overwrites_weights_but_not_its_initial_ones(workdir, refused):
    file = workdir / "w.safetensors"
    save_checkpoint(Checkpoint(file, {"a": torch.zeros(9)}, "open_clip/Mini", CONFIG, DATA))
    command = "train --pairs pairs --out w.safetensors --init"
    refused(f"{command} w.safetensors", "--out w.safetensors is the file of --init")
    refused(f"{command} random --recipe nothing", "no recipe 'nothing'")  # and nothing about --out
