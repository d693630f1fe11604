"""``show``: a page of features from a folder of images."""

from __future__ import annotations

import pytest

from tests.benchmark.commands import run_command
from tests.probes.datasets.make import make_imagefolder


@pytest.fixture
def images(tmp_path):
    return make_imagefolder(tmp_path / "images", 3, 2)


def test_a_page_of_two_backbones(images, tmp_path):
    names = "random/timm/test_vit,random/timm/resnet18"
    out = tmp_path / "out"
    assert run_command(f"show --backbone {names} --images {images} --size 64 --out {out}") == 0
    page = (out / "index.html").read_text()
    assert page.count("data-map=") == 2 and "principal components" in page
    assert (out / "index.html").stat().st_size < 8e6


@pytest.mark.parametrize("options", ["--layer 99", "--size 33", "--weights x.pt"])
def test_what_does_not_fit_is_one_line(options, images, tmp_path, capsys):
    names = "random/timm/test_vit" + (",clip" if "weights" in options else "")
    assert run_command(f"show --backbone {names} --images {images} --out {tmp_path} {options}") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_without_images(tmp_path, capsys):
    assert run_command(f"show --backbone clip --images {tmp_path} --out {tmp_path}") == 2
    assert "no webp, png" in capsys.readouterr().err
