"""``data check`` shows what is present, what is missing, and where it is looked for."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.benchmark.run_command import run_command
from tests.probes import tiny_coco
from tests.probes.datasets import make
from tests.probes.datasets.make import make_camvid, truncate

pytestmark = pytest.mark.integration


def test_data_check(workdir, capsys):
    make_camvid(workdir / "camvid", n_train=4, n_val=3)
    assert run_command("data check --data-root .") == 0
    output = capsys.readouterr().out
    assert "camvid" in output and "train 4" in output and "no folder VOCdevkit/VOC2012" in output
    assert "mini-" not in output
    assert run_command("data check --data-root . --json") == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["name"] == "camvid")
    assert row["state"] == "available" and row["counts"] == {"train": 4, "val": 3}


def test_what_is_present_alone(workdir, capsys):
    make_camvid(workdir / "camvid", n_train=4, n_val=3)
    assert run_command("data check --data-root . --present") == 0
    output = capsys.readouterr().out
    assert output.startswith("camvid available train 4, val 3\n") and "no folder" not in output
    assert run_command("data check --data-root . --present --json") == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["camvid"]


def test_a_broken_dataset_is_exit_code_2(workdir, capsys):
    root = make_camvid(workdir / "camvid", n_train=4, n_val=3)
    truncate(root / "images/val/frame_val_00000.jpg")
    command = "data check --data-root . --full"
    assert run_command(command) == 0
    assert "frame_val_00000.jpg: image cannot be decoded" in capsys.readouterr().out
    (workdir / "ade/ADEChallengeData2016").mkdir(parents=True)
    assert run_command(command) == 2
    assert "images/validation is missing" in capsys.readouterr().out


def make_images_of_many_names(root):
    """An ImageFolder of which each class has an image a suffix, one without, and two that are no
    images."""
    formats = {".jpg": "JPEG", ".jfif": "JPEG", ".GIF": "GIF", ".pnm": "PPM", "": "PNG"}
    for split in ("train", "val"):
        for number, colour in enumerate(("blue", "red")):
            folder = root / split / colour
            folder.mkdir(parents=True)
            for suffix, name in formats.items():
                pixels = make.picture(np.random.default_rng(number), (40, 32), make.COLOURS[colour])
                Image.fromarray(pixels).save(folder / f"image{suffix[1:]}{suffix}", name)
            for name in ("README", "notes.txt"):
                (folder / name).write_text("of these images\n")
    return root


def test_images_are_read_whatever_their_suffix_and_other_files_counted(workdir, capsys):
    root = make_images_of_many_names(workdir / "imagefolder")
    for options in ("", " --full"):
        assert run_command(f"data check --data imagefolder={root} --json{options}") == 0
        (row,) = (row for row in json.loads(capsys.readouterr().out) if row["counts"])
        assert row["counts"] == {"train": 10, "val": 10}
        left_out = f"8 files are not read as images, such as {root}/train/blue/README"
        assert row["message"].count(left_out) == 1
    command = "run --backbone random/timm/test_vit --task imagefolder/knn --only --no-report"
    assert run_command(f"{command} --data imagefolder={root} --set holdout=0.2") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "8 files are not read as images" in output


def test_maps_belong_to_images_of_any_suffix(workdir, capsys):
    root = make_camvid(workdir / "camvid", n_train=4, n_val=3)
    first, second, *_ = sorted((root / "images/train").iterdir())
    first.rename(first.with_suffix(""))
    second.rename(second.with_suffix(".jfif"))
    assert run_command(f"data check --data camvid={root} --full --json") == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["name"] == "camvid")
    assert row["counts"] == {"train": 4, "val": 3} and "missing" not in row["message"]


def test_annotations_with_one_id_are_named_before_a_run(workdir, capsys, refused):
    root = tiny_coco.write(workdir / "coco")
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["id"] = content["annotations"][0]["id"]
    path.write_text(json.dumps(content))
    message = f"{path} has two annotations with the id 1"
    for options in ("", " --full"):
        assert run_command(f"data check --data coco={root} --json{options}") == 2
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows["coco"]["state"] == "broken" and message in rows["coco"]["message"]
    run = f"run --backbone random/timm/test_vit --task coco/ssd --data coco={root} --partial"
    refused(run, message)
    refused(f"{run} --dry-run", message)


OWN_BOXES = """
import json
from probes.datasets.base import DatasetSpec, Sample
from probes.datasets.ground_truth import Boxes
from probes.registry import register_dataset

FILES = {"train": "train.json", "val": "val.json"}

def list_samples(root, split):
    images = json.loads((root / FILES[split]).read_text())["images"]
    return [Sample(f"images/{image['file_name']}", Boxes(image["id"])) for image in images]

register_dataset(
    DatasetSpec("beans", "detection", "beans", list_samples, annotations=FILES, classes=("bean",))
)
"""


@pytest.mark.parametrize("content", [[], {"pictures": []}, {"images": 5, "categories": []}])
def test_a_file_that_is_not_in_the_format_of_coco_is_one_line(content, workdir, capsys, refused):
    (workdir / "beans.py").write_text(OWN_BOXES)
    (workdir / "beans").mkdir()
    for name in ("train", "val"):
        (workdir / f"beans/{name}.json").write_text(json.dumps(content))
    options = "--plugin beans.py --data beans=beans"
    assert run_command(f"data check {options}") == 2
    assert "train.json is not a COCO annotation file" in capsys.readouterr().out
    message = "beans/train.json is not a COCO annotation file"
    refused(f"run --backbone random/timm/test_vit --task beans/ssd {options}", message)


def test_a_webdataset_is_got_by_the_name_of_its_folder(refused):
    refused("data get objectnet", "data get wds_objectnet")


def test_data_check_needs_a_folder(refused):
    refused("data check", "--data-root DIR and/or --data NAME=DIR")


def test_data_show_writes_a_page_of_both_splits(workdir, capsys, refused):
    make_camvid(workdir / "camvid", n_train=4, n_val=3)
    command = "data show camvid/linear --data camvid=camvid --count 2 --set size=32"
    assert run_command(command) == 0
    assert "samples-camvid-linear.html" in capsys.readouterr().out
    page = (workdir / "samples-camvid-linear.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 4 and "RandomCrop" in page
    assert page.count('src="data:image/') == 4 * 3 + 2
    assert 'src="http' not in page and "<script" not in page
    shutil.rmtree(workdir / "camvid/annotations/train")
    assert run_command(f"{command} --out val.html") == 0
    assert "annotations/train is missing" in (workdir / "val.html").read_text(encoding="utf-8")
    shutil.rmtree(workdir / "camvid/annotations")
    refused(command, "is missing")
    refused("data show camvid/linaer --data camvid=camvid", "did you mean camvid/linear")
    refused("data show camvid/linear", "--data camvid=DIR")
    assert not (workdir / "mlflow.db").exists()
