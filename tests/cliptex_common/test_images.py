"""Whoever decodes an image sees the same pixels: Pillow (embeddings, pairs, experts) and OpenCV
(dense probes, detection)."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from backbones.cliptex.pairs import decode_image
from cliptex_common.images import FORMATS, open_image, read_normals, to_rgb

COLUMNS, ROWS = np.meshgrid(np.arange(60), np.arange(40))
COLOURS = np.stack([COLUMNS * 4, ROWS * 6, (COLUMNS + ROWS) * 2], -1).astype(np.uint8)
TURNED = Image.Exif()
TURNED[0x112] = 6  # the camera was held upright


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PICTURE = Image.fromarray(COLOURS)
GREY16 = Image.fromarray((COLUMNS * 1000).astype(np.uint16))
FILES = {
    "jpeg, turned": encoded(PICTURE, "JPEG", exif=TURNED),
    "png, turned": encoded(PICTURE, "PNG", exif=TURNED),
    "cmyk": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "palette": encoded(PICTURE.convert("P"), "PNG"),
    "alpha": encoded(Image.merge("RGBA", [*PICTURE.split(), PICTURE.split()[0]]), "PNG"),
    "16 bits": encoded(GREY16, "PNG"),
    "16 bits a colour": cv2.imencode(".png", COLOURS[..., ::-1].astype(np.uint16) * 257)[
        1
    ].tobytes(),
}


@pytest.mark.parametrize("name", FILES)
def test_all_readers_see_the_same_pixels(name):
    import mmcv

    with open_image(io.BytesIO(FILES[name])) as image:
        ours = np.asarray(to_rgb(image)).astype(int)
    assert ours.shape == (40, 60, 3), "as it is stored, like its labels"
    assert np.array_equal(ours, decode_image(FILES[name]))
    theirs = mmcv.imfrombytes(FILES[name], "color_ignore_orientation")[..., ::-1].astype(int)
    assert np.abs(ours - theirs).max() <= (name == "cmyk")  # rounding
    if name.startswith("16 bits") and "colour" not in name:
        assert np.array_equal(ours[..., 0], COLUMNS * 1000 >> 8)


@pytest.mark.parametrize("kind", [*FORMATS, "EPS", "ICNS"])
def test_only_formats_that_start_nothing_are_opened(kind, tmp_path):
    path = tmp_path / "0.jpg"
    PICTURE.save(path, kind)
    if kind in FORMATS:
        assert open_image(path).size == PICTURE.size
    else:
        with pytest.raises(OSError, match="cannot identify it as one of JPEG, PNG"):
            open_image(path)


def test_normals_of_a_turned_file_lie_on_its_image(tmp_path):
    (tmp_path / "n.png").write_bytes(FILES["png, turned"])
    assert read_normals(str(tmp_path / "n.png")).shape == (40, 60, 3)
