"""NYU Depth v2: metric depth and surface normals of the same images, scored on the official 654
test images (``val``).

Layout of mmseg's ``NYUDataset``: ``images/{train,test}`` (jpg or png, scene folders allowed) and,
under the same names, the ground truth as PNG.

``data get nyu`` and ``data get nyu-24k`` make the images and depths of it (``download/nyu.py``).

* ``nyu-depth``: ``annotations/{train,test}``, 16 bits, millimetres, 0 where there is none; scored
  inside the Eigen crop. The train set is the 795 images of the labelled set, or the 24,231 frames
  of the raw videos (Lee et al. 2019, "BTS") that most published depth heads are trained on, as
  mmseg's ``tools/dataset_converters/nyu.py`` lays out their ``nyu.zip``
  (``kitchen_0028b/rgb_00045.jpg`` becomes ``images/train/kitchen_0028b_00045.jpg``). The number of
  a copy's images says which train set it has, and this is part of the protocol.
* ``nyu-normal``: ``normals/{train,test}``, 8-bit RGB: n = png / 127.5 - 1, then scaled to unit
  length. Axes: x right, y up, z towards the camera. A stored (0, 0, 0), which would decode to (-1,
  -1, -1), means 'no normal here' and is neither trained on nor scored.
"""

from dataclasses import replace
from pathlib import Path

from probes.datasets.base import DatasetSpec
from probes.datasets.download.nyu import SCENES
from probes.datasets.layouts import IMAGE_SUFFIXES, mirrored, walk
from probes.registry import register_dataset

EXPECTED = {"train": 795, "val": 654}
RAW_FRAMES = 24231
IMAGES = "images/train"


def adapt(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """With the frames of the raw videos the train split is another one, and so is the protocol."""
    if not (root / IMAGES).is_dir() or len(walk(root, IMAGES, IMAGE_SUFFIXES)) <= EXPECTED["train"]:
        return spec
    extra = {**spec.extra, "split": "24k/654", "train_list": "24,231 raw frames"}
    return replace(spec, expected={**spec.expected, "train": RAW_FRAMES}, extra=extra)


def scenes(root: Path) -> dict[str, str]:
    """Image → its room, which several images show; empty for a copy that does not tell."""
    path = root / SCENES
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(line.split("\t") for line in lines)


DEPTH = register_dataset(
    DatasetSpec(
        name="nyu-depth",
        kind="depth",
        folder="nyu",
        list_samples=mirrored("images/{part}", "annotations/{part}", val="test"),
        expected=EXPECTED,
        extra={
            "depth_scale": 1e-3,  # metres per stored unit
            "min_depth": 1e-3,  # metres; values outside the range are not scored
            "max_depth": 10.0,
            # Eigen et al. 2014: rows 45-470, columns 41-600 of 480 x 640
            "crop": (45, 471, 41, 601),
            "split": "official 795/654",
        },
        adapt=adapt,
        units=scenes,
        about=(
            "NYU Depth v2 in metres, 795 (cs.nyu.edu/~silberman) or 24,231 train / 654 test, in"
            " mmseg's layout"
        ),
    )
)
NORMAL = register_dataset(
    DatasetSpec(
        name="nyu-normal",
        kind="normals",
        folder="nyu",
        list_samples=mirrored("images/{part}", "normals/{part}", val="test"),
        expected=EXPECTED,
        extra={
            "encoding": "n = png / 127.5 - 1",
            "invalid": (0, 0, 0),  # the stored value
            "axes": "x right, y up, z towards the camera",
            "split": "official 795/654",
        },
        units=scenes,
        about=(
            "NYU Depth v2 surface normals, 795 train / 654 test: nyu/normals/{train,test} 8-bit"
            " RGB, (0,0,0) invalid"
        ),
    )
)
