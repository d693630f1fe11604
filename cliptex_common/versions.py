"""Versions of the libraries that can change a number, which are part of the keys of cached features
and finished cells. Nothing is imported.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

# import name → distributions with another name
DISTRIBUTIONS = {
    "open_clip": ("open_clip_torch",),
    "PIL": ("pillow", "pillow-simd"),
    "cv2": (
        "opencv-python-headless",
        "opencv-python",
        "opencv-contrib-python-headless",
        "opencv-contrib-python",
    ),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
    "mmdet": ("onedl-mmdetection", "mmdet"),
}
# libraries that decode, resize and compute whole images; and in MMLab's pipelines
IMAGE_LIBRARIES = ("torch", "torchvision", "PIL", "timm")
DENSE_LIBRARIES = ("torch", "cv2", "mmcv", "mmengine")
# those that can change a number of any probe
PROBING_LIBRARIES = (
    *("torch", "torchvision", "numpy", "PIL", "cv2", "mmcv", "mmengine", "mmseg", "mmdet"),
    *("pycocotools", "faster_coco_eval"),  # COCO's mean AP
    *("timm", "open_clip"),  # class names and transforms; prompts
)


def versions(*libraries: str) -> dict[str, str]:
    """Import name → version, without the build after its ``+`` (``2.13.0`` of ``2.13.0+cu128``);
    ``absent`` if it is not installed. Nothing is imported."""
    return {library: _version(library) for library in libraries}


@cache
def _version(library: str) -> str:
    for distribution in DISTRIBUTIONS.get(library, (library,)):
        try:
            return version(distribution).partition("+")[0]
        except PackageNotFoundError:
            continue
    return "absent"
