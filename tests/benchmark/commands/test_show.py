"""``show``: a page of features from a folder of images."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from tests.benchmark.run_command import run_command
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


@pytest.mark.parametrize("kind", ["PostScript", "pipe"])
def test_a_file_that_is_no_picture_starts_nothing(kind, tmp_path, monkeypatch, capsys):
    path, program, trace = tmp_path / "0.jpg", tmp_path / "bin/gs", tmp_path / "trace"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    Image.new("RGB", (8, 8)).save(path, "EPS") if kind == "PostScript" else os.mkfifo(path)
    command = f"show --backbone random/timm/test_vit --images {tmp_path} --out {tmp_path}/out"
    assert run_command(command) == 2
    error = capsys.readouterr().err
    assert f"cannot read {path}" in error and error.count("\n") == 1 and not trace.exists()


def test_a_folder_without_images(tmp_path, capsys):
    assert run_command(f"show --backbone clip --images {tmp_path} --out {tmp_path}") == 2
    assert "no .jpg, .jpeg" in capsys.readouterr().err
