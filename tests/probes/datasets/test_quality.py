"""What ``data check --full`` says of images and targets beyond whether they can be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probes.datasets.check import survey
from tests.probes.datasets import make

pytestmark = pytest.mark.integration


def photo(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """A smooth picture of many colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def message(name: str, root: Path, full: bool = True) -> str:
    (row,) = survey(None, {name: root}, only=[name], full=full)
    assert row.state != "broken", row.message
    return row.message


@pytest.fixture
def folder(tmp_path):
    """Class folders of eight different photographs each."""
    seeds = iter(range(100))
    for split, count in (("train", 8), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / f"{split}/{name}").mkdir(parents=True)
            for index in range(count):
                photo(next(seeds)).save(tmp_path / f"{split}/{name}/{index}.png")
    return tmp_path


def test_different_photographs_are_no_copies(folder):
    text = message("imagefolder", folder)
    assert "copies" not in text and "extreme" not in text
    assert "train: most frequent class cat 50 %, rarest dog 50 %" in text


def test_a_copy_is_found_by_pixels_whatever_its_file_is(folder):
    photo(0).resize((64, 48)).save(folder / "train/dog/copy.webp", quality=80)
    photo(1).save(folder / "val/cat/copy.jpg", quality=60)
    text = message("imagefolder", folder)
    assert (
        "1 images are copies of one of another class in the same split, by pixels,"
        " such as train/dog/copy.webp of train/cat/0.png"
    ) in text
    assert (
        "1 of 7 val images are copies of train images, by pixels, such as val/cat/copy.jpg of"
        " train/cat/1.png"
    ) in text
    assert text == message("imagefolder", folder), "from the cache, too"
    assert "copies" not in message("imagefolder", folder, full=False)


def test_flat_pictures_and_crops_are_no_copies(folder):
    for name in ("train/cat/flat.png", "val/dog/flat.png"):
        make.save(folder / name, np.full((90, 120, 3), 128, np.uint8))
    photo(0).crop((0, 0, 80, 60)).save(folder / "val/dog/crop.png")
    assert "copies" not in message("imagefolder", folder)


def test_balance_and_extreme_sizes(folder):
    for index in range(4):
        (folder / f"train/dog/{index}.png").unlink()
    photo(200, (900, 60)).save(folder / "train/cat/wide.png")
    photo(201, (12, 9)).save(folder / "train/cat/tiny.png")
    text = message("imagefolder", folder)
    assert "train: most frequent class cat 71.4 %, rarest dog 28.6 %" in text
    assert "train: 2 images of extreme size or shape, such as train/cat/tiny.png (12×9)" in text


def test_maps_of_one_value_and_absent_classes(tmp_path):
    root = make.make_camvid(tmp_path, 2, 2)
    labels = np.full((40, 48), 3, np.uint8)
    labels[:5] = 255
    make.save(root / "annotations/train/frame_train_00001.png", labels)
    for index in range(2):
        make.save(root / f"annotations/val/frame_val_{index:05d}.png", labels)
    text = message("camvid", root)
    assert "train: 1 maps have one value, such as that of images/train/frame_train_00001" in text
    assert "val: most frequent class road 100 %" in text and "10 of 11 absent" in text
    depth = make.make_nyu(tmp_path / "nyu", 2, 1)
    make.save(depth / "annotations/test/nyu_0000.png", np.full((48, 64), 900, np.uint16))
    assert "val: 1 maps have one value" in message("nyu-depth", depth)
