"""Images and maps with a class, a number or a vector for each pixel: read, drawn, and COCO's masks.

Pixels are as stored, for images and maps alike: orientation tags are ignored."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from cliptex_common.errors import UserError, report_malformed
from cliptex_common.files import atomic_write, check_regular, read_json

Instances = dict[int, dict[str, Any]]


def read_instances(path: Path) -> tuple[dict[int, str], Instances]:
    """Categories (id → name) and images (id → the file's entry, and its ``annotations``) of a COCO
    file.

    Raises:
        UserError: it is malformed or lists no images, two images or two annotations have one id, or
            an annotation is of no image.
    """
    with report_malformed(f"{path} is not a COCO annotation file", "correct it, or get it again"):
        content, seen = read_json(path), set()
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {
            entry["id"]: {**entry, "file_name": str(entry["file_name"]), "annotations": []}
            for entry in content["images"]
        }
        for annotation in content["annotations"]:
            if annotation["id"] in seen:
                raise UserError(
                    f"{path} has two annotations with the id {annotation['id']}; give each its own"
                )
            seen.add(annotation["id"])
            if annotation["image_id"] not in images:
                raise UserError(
                    f"{path} annotation {annotation['id']} belongs to image"
                    f" {annotation['image_id']}, which is not in the file"
                )
            images[annotation["image_id"]]["annotations"].append(annotation)
    if len(images) < len(content["images"]):
        raise UserError(f"{path} has two images with the same id; get the file again")
    if not images:
        raise UserError(f"{path} lists no images")
    return categories, images


def mask_error(mask: Any, height: int, width: int) -> str:
    """What is wrong with a ``segmentation`` in an image of this size; empty if it is valid. Ask
    before pycocotools reads it: it reads past the end of a run-length code that is too short.

    A mask is a list of polygons ``[x, y, x, y, x, y, …]``, or a run-length code
    ``{"size": [height, width], "counts": …}``, whose counts are numbers or packed as text.
    """
    if isinstance(mask, list):
        if mask and all(_is_outline(polygon, max(height, width)) for polygon in mask):
            return ""
        return "a polygon that is not a list of three or more points near its image"
    if not isinstance(mask, dict):
        return "no mask (polygons or a run-length code; of a box alone, its four corners)"
    if mask.get("size") != [height, width]:
        return f"a mask of size {mask.get('size')} in an image of {width}x{height}"
    counts = mask.get("counts")
    if isinstance(counts, str):
        counts = _unpack(counts)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        return "a run-length code that cannot be read"
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        return "a run-length code that does not fill its image"
    return ""


def _is_outline(points: Any, side: int) -> bool:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    return all(
        type(value) in (int, float) and math.isfinite(value) and -side <= value <= 2 * side
        for value in points
    )


def _unpack(text: str) -> list[int] | None:
    """The counts in a packed run-length code; None if it is damaged.

    Format (``rleFrString`` of cocoapi's ``maskApi.c``): five bits a letter, lowest first, and a
    sixth if more follow; from the fourth count on differences to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts


def instance_mask(mask: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool of a ``segmentation`` that has no ``mask_error``; without one all are False."""
    from pycocotools import mask as coco_mask

    if not mask:
        return np.zeros((height, width), bool)
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    elif isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, height, width)
    return coco_mask.decode(mask).astype(bool)


# of every normal in this project: in the datasets' files, in what probes and experts predict, and
# in stored labels. Positions in an image count y downwards; normals do not. A crop or a change of
# size leaves the values of a map as they are, a left-right flip turns vectors.
AXES = "x right, y up, z towards the camera"
MIRRORED = (-1.0, 1.0, 1.0)  # what a flip multiplies x, y and z of a vector by


INK, PALE, PAPER = (32, 32, 32), (96, 96, 96), (255, 255, 255)
GAP = 8  # pixels between the pictures of a grid
TILE = 256  # longest side of a picture of a grid, pixels
IGNORED_COLOUR = (224, 224, 192)  # PASCAL VOC's cream: no class has it
UNKNOWN_COLOUR = (128, 128, 128)  # grey is not in viridis


def spread_indices(count: int, limit: int) -> list[int]:
    """Up to ``limit`` indices of ``count`` items, evenly spaced, first and last included."""
    return np.linspace(0, count - 1, min(limit, count)).round().astype(int).tolist()


@cache
def palette(classes: int) -> np.ndarray:
    """Colours of label maps, (classes, 3) uint8.

    PASCAL VOC's own series: the bits of the index, spread over R, G and B.
    """
    indices = np.arange(classes)
    colours = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            value = ((indices >> (3 * bit + channel)) & 1) << (7 - bit)
            colours[:, channel] |= value.astype(np.uint8)
    return colours


def label_picture(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W) class indices → (H, W, 3) uint8; cream where there is no class."""
    is_class = np.logical_and(labels >= 0, labels < len(colours))
    all_colours = np.vstack([colours, np.array(IGNORED_COLOUR, np.uint8)])
    return all_colours.take(np.where(is_class, labels, len(colours)), axis=0)


def scalar_picture(values: np.ndarray, low: float, high: float, valid: np.ndarray) -> np.ndarray:
    """(H, W) numbers → (H, W, 3) uint8 in viridis, dark at ``low`` and bright at ``high``; grey
    where not ``valid``."""
    shade = np.clip(255 * (values - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)
    return np.where(valid[..., None], _viridis()[shade], np.array(UNKNOWN_COLOUR, np.uint8))


def depth_picture(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """``scalar_picture`` of (H, W) metres; 0 is unknown."""
    return scalar_picture(depth, low, high, depth > 0)


@cache
def _viridis() -> np.ndarray:
    """(256, 3) uint8 RGB."""
    import cv2  # a tenth of a second, which lists need not wait for

    return cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]


def normal_picture(normals: np.ndarray) -> np.ndarray:
    """(3, H, W) unit vectors → (H, W, 3) uint8: x, y, z from -1 to 1 as R, G, B from 0 to 255.

    (0, 0, 0), unknown, is black.
    """
    rgb = np.clip((normals.transpose(1, 2, 0) + 1) * 127.5, 0, 255).astype(np.uint8)
    return np.where(np.expand_dims(normals.any(axis=0), -1), rgb, np.uint8(0))


def scale_bar(low: float, high: float, unit: str = " m", width: int = 360) -> np.ndarray:
    """Legend of ``scalar_picture``: the colours from ``low`` to ``high``, labelled with their
    ``unit`` at both ends; (28, width, 3) uint8."""
    low_text, high_text = f"{low:.3g}{unit}", f"{high:.3g}{unit}"
    picture = Image.new("RGB", (width, 28), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    start = int(pen.textlength(low_text, font=font)) + 8
    end = width - int(pen.textlength(high_text, font=font)) - 8
    ramp = np.linspace(low, high, end - start)[None].repeat(16, axis=0)
    colours = scalar_picture(ramp, low, high, np.ones_like(ramp, bool))
    picture.paste(Image.fromarray(colours), (start, 6))
    pen.text((0, 14), low_text, INK, font, anchor="lm")
    pen.text((width, 14), high_text, INK, font, anchor="rm")
    return np.asarray(picture)


def normal_ball(side: int = 160) -> np.ndarray:
    """Legend of ``normal_picture``: the normals of a ball, with rings at 30 and 60 degrees to the
    camera and the names of four directions; (side, 2 * side, 3) uint8."""
    radius = 0.4 * side
    y, x = np.mgrid[:side, : 2 * side]
    x, y = (x - side + 0.5) / radius, (side / 2 - 0.5 - y) / radius
    square = x**2 + y**2
    normals = np.stack([x, y, np.sqrt(np.clip(1 - square, 0, None))])
    sheet = np.where((square <= 1)[..., None], normal_picture(normals), np.uint8(255))
    picture = Image.fromarray(sheet)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for degrees in (30, 60):
        ring = radius * math.sin(math.radians(degrees))
        pen.circle((side, side / 2), ring, outline=PAPER)
        pen.text((side, side / 2 - ring), f"{degrees}°", INK, font, anchor="mm")
    edge = radius + 4
    for name, offset, anchor in (("right", edge, "lm"), ("left", -edge, "rm")):
        pen.text((side + offset, side / 2), name, INK, font, anchor=anchor)
    for name, offset, anchor in (("up", -edge, "mb"), ("down", edge, "mt")):
        pen.text((side, side / 2 + offset), name, INK, font, anchor=anchor)
    return np.asarray(picture)


def hatched(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with diagonal stripes where ``mask`` (H, W): pixels that do not count."""
    height, width = mask.shape
    position = np.add.outer(np.arange(height), np.arange(width))
    stripes = position // max(1, max(mask.shape) // 64) % 2
    return np.where(mask[..., None], (80 + 160 * stripes)[..., None], picture).astype(np.uint8)


def blended(photo: np.ndarray, drawing: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A photo (H, W, 3) uint8, half covered by a drawing of its size where ``mask`` (H, W)."""
    both = (photo.astype(np.uint16) + drawing) // 2
    return np.where(mask[..., None], both, photo).astype(np.uint8)


def join_points(
    photos: Sequence[np.ndarray],
    starts: Sequence[Sequence[float]],
    ends: Sequence[Sequence[float]],
    colours: Sequence[tuple[int, ...]],
) -> np.ndarray:
    """Two photos of one height beside each other, (H, 2W, 3) uint8, and a line in a colour from
    each start (x, y) in the first to its end in the second."""
    sheet = Image.fromarray(np.concatenate(photos, axis=1))
    pen = ImageDraw.Draw(sheet)
    for (x1, y1), (x2, y2), colour in zip(starts, ends, colours, strict=True):
        pen.line((x1, y1, x2 + photos[0].shape[1], y2), colour, width=2)
    return np.asarray(sheet)


def class_legend(names: Sequence[str], colours: np.ndarray, width: int) -> np.ndarray:
    """Legend of ``label_picture``: a swatch and a name for each class, wrapped to ``width``;
    (height, width, 3) uint8."""
    font = ImageFont.load_default(14)
    positions, x, y = [], 0, 0
    for name in names:
        length = 24 + int(font.getlength(name)) + 12
        if x and x + length > width:
            x, y = 0, y + 22
        positions.append((x, y))
        x += length
    picture = Image.new("RGB", (width, y + 22), PAPER)
    pen = ImageDraw.Draw(picture)
    for (x, y), name, colour in zip(positions, names, colours, strict=True):
        pen.rectangle((x, y + 3, x + 16, y + 17), tuple(colour.tolist()), INK)
        pen.text((x + 22, y + 10), name, INK, font, anchor="lm")
    return np.asarray(picture)


def write_grid(path: Path, *grid: Any, **options: Any) -> Path:
    """Write ``draw_grid`` of the other arguments, completely or not at all; its suffix says the
    format. Returns ``path``.

    Raises:
        UserError: the file cannot be written.
    """
    sheet = draw_grid(*grid, **options)
    with atomic_write(path) as temporary:
        sheet.save(temporary, Image.registered_extensions()[path.suffix.lower()])
    return path


def draw_grid(
    titles: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str] = (),
    legend: np.ndarray | None = None,
    side: int = TILE,
) -> Image.Image:
    """A grid of pictures.

    Args:
        titles: one for each column.
        rows: pictures (H, W, 3) uint8 RGB, resized so that their longest side is ``side``; the last
            row may be shorter.
        captions: one for each row, above it; may be left out.
        legend: (h, w, 3) uint8, below the grid.
    """
    tiles = [[fit_picture(picture, side) for picture in row] for row in rows]
    widths = [max(tile.width for tile in column if tile) for column in zip_longest(*tiles)]
    heights = [max(tile.height for tile in row) for row in tiles]
    lefts = [GAP * (column + 1) + sum(widths[:column]) for column in range(len(widths))]
    caption_height = 20 if captions else 0
    width = lefts[-1] + widths[-1] + GAP
    height = 28 + sum(heights) + (GAP + caption_height) * len(heights) + GAP
    if legend is not None:
        width, height = max(width, legend.shape[1] + 2 * GAP), height + legend.shape[0] + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, column_width, title in zip(lefts, widths, titles, strict=True):
        pen.text((x + column_width / 2, 16), title, INK, ImageFont.load_default(16), anchor="mm")
    y = 28
    all_captions = captions or [""] * len(tiles)
    for row, row_height, caption in zip(tiles, heights, all_captions, strict=True):
        pen.text((GAP, y + 10), caption, PALE, ImageFont.load_default(13), anchor="lm")
        for x, tile in zip(lefts, row, strict=False):
            sheet.paste(tile, (x, y + caption_height))
        y += caption_height + row_height + GAP
    if legend is not None:
        sheet.paste(Image.fromarray(legend), (GAP, y))
    return sheet


def fit_picture(picture: np.ndarray, side: int) -> Image.Image:
    """A picture (H, W, 3) uint8 RGB, resized so that its longest side is ``side`` pixels."""
    image = Image.fromarray(picture)
    factor = side / max(image.size)
    size = [max(1, round(length * factor)) for length in image.size]
    return image.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)


FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

# raised by Pillow for a damaged file
IMAGE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def open_image(file: str | Path | IO[bytes]) -> Image.Image:
    """An image in one of ``FORMATS``, whatever its name; pixels are decoded when they are read.

    For other formats Pillow may start programs: Ghostscript for PostScript.

    Raises:
        OSError: it is none, or no regular file (see ``IMAGE_ERRORS`` for damaged ones).
    """
    if isinstance(file, str | Path):
        check_regular(file)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise UnidentifiedImageError(f"cannot identify it as one of {formats}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as 8-bit RGB, as stored: EXIF orientation is ignored, since labels ignore it.

    Of 16-bit grey the upper eight bits count, as in OpenCV; Pillow would clip all above 255.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    return image.convert("RGB")


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the file's header. Raises ``UserError`` if it cannot be read."""
    try:
        with open_image(path) as image:
            return image.size
    except IMAGE_ERRORS as error:
        raise UserError(f"cannot read {path}: {error}") from error


UNKNOWN_CLASS = 255  # in stored maps of classes of 8 bits; of 16 bits 65535
GREY16_MODES = ("I", "I;16")  # Pillow's modes of 16-bit grey
GREY_MODES = ("L", "1", *GREY16_MODES)
ImageFile = str | Path | IO[bytes]


def read_stored(file: ImageFile, modes: Sequence[str], expected: str) -> np.ndarray:
    """The values that an image file stores, (H, W) or (H, W, channels), whatever they mean.

    Args:
        modes: Pillow's, that the file may have.
        expected: what it should be, for the message (``a mask has one number a pixel``).

    Raises:
        OSError, ValueError: it is no image, or of another mode (see ``IMAGE_ERRORS``).
    """
    with open_image(file) as image:
        if image.mode not in modes:
            raise ValueError(f"{expected}, this one is {image.mode}")
        return np.asarray(image)


def read_classes(file: ImageFile) -> np.ndarray:
    """Class numbers as a palette or grey PNG of 8 or 16 bits stores them, (H, W) uint8 or uint16.

    Raises:
        OSError, ValueError: it is no such file.
    """
    stored = read_stored(
        file, ("P", *GREY_MODES), "a mask has one number a pixel (palette or grey)"
    )
    return stored.astype(np.uint8 if stored.dtype in (np.uint8, np.bool_) else np.uint16)


def read_scalars(file: ImageFile, low: float, high: float) -> np.ndarray:
    """Numbers as a grey PNG of 8 or 16 bits stores them, black ``low`` and white ``high``, in even
    steps: (H, W) float32.

    Raises:
        OSError, ValueError: it is no such file.
    """
    stored = read_stored(file, GREY_MODES, "a map of numbers is a grey PNG")
    white = {np.bool_: 1, np.uint8: 255}.get(stored.dtype.type, 65535)
    return (low + stored / white * (high - low)).astype(np.float32)


def read_rgb(file: ImageFile) -> np.ndarray:
    """Vectors as an 8-bit RGB PNG codes them, (H, W, 3) uint8: n = value / 127.5 - 1.

    Raises:
        OSError, ValueError: it is no such file.
    """
    stored = read_stored(file, ("RGB", "RGBA"), "a map of normals is an 8-bit RGB PNG")
    return stored[..., :3]


@contextmanager
def _report_unreadable(kind: str, path: str) -> Iterator[None]:
    try:
        yield
    except IMAGE_ERRORS as error:
        raise UserError(f"cannot read {kind} map {path}: {error}") from error


def read_labels(path: str, offset: int, ignore_index: int, classes: int) -> np.ndarray:
    """A label map, (H, W) uint16 class indices or ``ignore_index``.

    Args:
        path: single-channel or palette PNG; 8 or 16 bits.
        offset: added to stored values; a value that would fall below 0 is ignored, as is a stored
            ``ignore_index``.
        ignore_index: value of pixels that are not scored, in the file and in the result.
        classes: number of classes.

    Raises:
        UserError: the file cannot be read, or holds a label that is no class.
    """
    with _report_unreadable("label", path):
        stored = read_classes(path)
    labels = stored.astype(np.int32) + offset
    labels[(stored == ignore_index) | (labels < 0)] = ignore_index
    wrong = (labels >= classes) & (labels != ignore_index)
    if wrong.any():
        raise UserError(
            f"label map {path} holds {labels[wrong][0] - offset}, which is none of the {classes}"
            " classes"
        )
    return labels.astype(np.uint16)


def unrotated(stored: np.ndarray, bits: int) -> np.ndarray:
    """16-bit values whose bits were rotated to the left by so many."""
    return stored if not bits else (stored >> bits) | ((stored << (16 - bits)) & 0xFFFF)


def read_depth(path: str, scale: float, rotated_bits: int = 0) -> np.ndarray:
    """A depth PNG (8 or 16 bits, stored 0 = unknown) × ``scale`` → (H, W) float32 metres, 0 where
    unknown; see ``unrotated``.

    Raises:
        UserError: the file cannot be read.
    """
    with _report_unreadable("depth", path):
        stored = read_stored(path, GREY_MODES, "it must be a PNG with one channel")
    return unrotated(stored, rotated_bits).astype(np.float32) * np.float32(scale)


def read_normals(path: str) -> np.ndarray:
    """An 8-bit RGB PNG with n = value / 127.5 - 1 → (H, W, 3) float32 unit vectors; stored (0, 0,
    0) stays (0, 0, 0).

    A stored vector shorter than a half counts as unknown, too: its direction is noise.

    Raises:
        UserError: the file cannot be read.
    """
    with _report_unreadable("normal", path):
        stored = read_rgb(path)
    normals = stored.astype(np.float32)
    normals /= 127.5
    normals -= 1
    # without linalg.norm and where, which take longer than reading the file
    length = np.sqrt(np.einsum("hwc,hwc->hw", normals, normals))
    valid = ((stored[..., 0] > 0) | (stored[..., 1] > 0) | (stored[..., 2] > 0)) & (length > 0.5)
    normals *= np.where(valid, 1 / np.maximum(length, 1e-6), 0)[..., None]
    return normals
