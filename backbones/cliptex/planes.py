"""How one label of one image becomes bytes: image codecs for segmentation maps, inverse depth and normals.

Segmentation is lossless. Depth and normals are quantised to 8 bits a value and then coded by whichever is smaller of

* WebP lossless, where neighbours repeat (rendered labels): the error is the rounding's alone, at most 0.2 % of the
  depth range and 0.95° (octahedral 8+8 bits; Cigolle et al., "A Survey of Efficient Representations for Independent
  Unit Vectors", JCGT 2014, table 1);
* AVIF (AV1 intra, whose decoding is exact by specification), where they are the smooth output of a network, at the
  lowest quality whose error – measured after decoding, against the label handed in – stays within ``Tolerance``; where
  none does, lossless again.

Resolution is never reduced. Pixels whose truth is unknown are kept in a mask of their own.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

HAS_AVIF: bool = bool(features.check("avif"))
QUALITIES = (84, 90, 95, 98)
MIN_SIDE_FOR_AVIF = 128  # below, lossless is a third of the work and still small (3 to 5 kB an image at 64 px)


@dataclass(frozen=True)
class Tolerance:
    """Largest error that lossy coding may make on one image: its median and 99th percentile over pixels."""

    median: float
    p99: float


DEPTH = Tolerance(0.2, 1.0)  # per cent of the image's range of inverse depth
NORMAL = Tolerance(0.45, 3.0)  # degrees
CONFIDENCE = Tolerance(0.5, 2.0)  # quarters of an octave of κ


@dataclass(frozen=True)
class Plane:
    """One coded label: its ``data``, what it takes to decode it (``meta``, JSON-able) and the error measured."""

    data: bytes
    meta: dict[str, Any]
    error: dict[str, float]


def octahedral(normals: np.ndarray) -> np.ndarray:
    """Unit vectors (3, H, W) → the octahedron unfolded to the square [-1, 1]², (2, H, W) (Cigolle et al. 2014)."""
    p = normals[:2] / np.maximum(np.abs(normals).sum(0), 1e-12)
    folded = (1 - np.abs(p[::-1])) * np.where(p >= 0, 1, -1)
    return np.where(normals[2] < 0, folded, p)


def from_octahedral(p: np.ndarray) -> np.ndarray:
    """Inverse of :func:`octahedral`: (2, H, W) in [-1, 1] → unit vectors (3, H, W) float32."""
    p = p.astype(np.float32)
    n = np.concatenate([p, 1 - np.abs(p).sum(0, keepdims=True)])
    fold = np.maximum(-n[2], 0)
    n[:2] -= np.where(n[:2] >= 0, fold, -fold)
    return n / np.linalg.norm(n, axis=0, keepdims=True)


def encode_seg(seg: np.ndarray) -> Plane:
    """Integer map (H, W), uint8 or uint16, the largest value of its type for unlabelled pixels; lossless."""
    if seg.dtype == np.uint8:
        return Plane(_webp(seg), {"dtype": "uint8"}, {})
    if seg.dtype != np.uint16:
        raise TypeError(f"a segmentation map is uint8 or uint16, not {seg.dtype}")
    bytes_ = np.stack([seg & 255, seg >> 8, np.zeros_like(seg)], -1).astype(np.uint8)
    return Plane(_webp(bytes_), {"dtype": "uint16"}, {})


def decode_seg(data: bytes, meta: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8 or uint16, as it was."""
    if meta["dtype"] == "uint8":
        return _open(data)
    rgb = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.uint16)
    return rgb[..., 0] | (rgb[..., 1] << 8)


def encode_depth(depth: np.ndarray) -> Plane:
    """Relative inverse depth (H, W), any affine scale, larger is nearer; not-finite pixels are unknown.

    Stored as (d - low) / (high - low) with the image's own ``low`` and ``high``. Error in per cent of that range.
    """
    known = np.isfinite(depth)
    low, high = (float(depth[known].min()), float(depth[known].max())) if known.any() else (0.0, 0.0)
    unit = np.where(known, (depth - low) / max(high - low, 1e-12), 0).astype(np.float32)

    def errors(q: np.ndarray) -> np.ndarray:
        return 100 * np.abs(q.astype(np.float32) / 255 - unit)[known]

    plane = _code(np.round(unit * 255).astype(np.uint8), errors, DEPTH)
    return _masked(Plane(plane.data, {**plane.meta, "low": low, "high": high}, plane.error), known)


def decode_depth(data: bytes, meta: dict[str, Any]) -> np.ndarray:
    """(H, W) float32 in [0, 1], 0 the farthest and 1 the nearest of the image; NaN where unknown."""
    image, known = _unmask(data, meta)
    depth = _open(image).astype(np.float32) / 255
    return depth if known is None else np.where(known, depth, np.float32(np.nan))


def encode_normals(normals: np.ndarray) -> Plane:
    """Surface normals (3, H, W), unit length; zero vectors are unknown. Error in degrees."""
    length = np.linalg.norm(normals, axis=0)
    known = np.isfinite(length) & (length > 0.5)
    unit = np.where(known, normals / np.where(known, length, 1), np.array([0, 0, 1], np.float32)[:, None, None])
    # 254 steps, not 255: the axes – walls and floors – are then stored exactly
    stacked = np.concatenate(list(np.round(octahedral(unit) * 127 + 127).astype(np.uint8)), 0)

    def errors(q: np.ndarray) -> np.ndarray:
        chord = np.linalg.norm(_normals(q) - unit, axis=0)[known]  # 2 asin(c / 2): exact where arccos is not, near 0
        return np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))

    return _masked(_code(stacked, errors, NORMAL), known)


def decode_normals(data: bytes, meta: dict[str, Any]) -> np.ndarray:
    """(3, H, W) float32 unit vectors; zero where unknown."""
    image, known = _unmask(data, meta)
    normals = _normals(_open(image))
    return normals if known is None else normals * known


def encode_confidence(kappa: np.ndarray) -> Plane:
    """κ > 0 of the angular distribution (H, W), in steps of a quarter octave; clipped to 2^-10 … 2^30."""
    steps = 4 * (np.log2(np.clip(np.nan_to_num(kappa, nan=1e-3), 2.0**-10, 2.0**30)) + 10)

    def errors(q: np.ndarray) -> np.ndarray:
        return np.abs(q.astype(np.float32) - steps)

    return _code(np.round(steps).astype(np.uint8), errors, CONFIDENCE)


def decode_confidence(data: bytes, meta: dict[str, Any]) -> np.ndarray:
    """κ, (H, W) float32."""
    return np.exp2(_open(data).astype(np.float32) / 4 - 10)


ENCODE = {"seg": encode_seg, "depth": encode_depth, "normal": encode_normals, "confidence": encode_confidence}
DECODE = {"seg": decode_seg, "depth": decode_depth, "normal": decode_normals, "confidence": decode_confidence}


def _code(q: np.ndarray, errors: Any, tolerance: Tolerance) -> Plane:
    """``q`` (uint8) at the lowest AVIF quality within ``tolerance``; lossless if neighbours repeat or it is smaller."""
    repeats = float(np.mean(q[:, 1:] == q[:, :-1])) if q.shape[1] > 1 else 1.0
    if HAS_AVIF and repeats < 0.8 and min(q.shape) >= MIN_SIDE_FOR_AVIF:
        for quality in QUALITIES:
            data = _avif(q, quality)
            error = _summary(errors(_open(data)))
            if error["median"] <= tolerance.median and error["p99"] <= tolerance.p99:
                # only noise needs such quality, and on noise lossless coding may well be the smaller
                if quality >= 95 and len(lossless := _webp(q)) <= len(data):
                    return Plane(lossless, {"codec": "webp"}, _summary(errors(q)))
                return Plane(data, {"codec": f"avif{quality}"}, error)
    return Plane(_webp(q), {"codec": "webp"}, _summary(errors(q)))


def _summary(error: np.ndarray) -> dict[str, float]:
    if not error.size:
        return {"median": 0.0, "mean": 0.0, "p99": 0.0, "max": 0.0}
    median, p99 = np.quantile(error, [0.5, 0.99])
    return {"median": float(median), "mean": float(error.mean()), "p99": float(p99), "max": float(error.max())}


def _masked(plane: Plane, known: np.ndarray) -> Plane:
    """Append the mask of known pixels, if any is unknown; ``meta['image']`` says where the image ends."""
    if known.all():
        return plane
    meta = {**plane.meta, "image": len(plane.data)}
    return Plane(plane.data + _webp(known.astype(np.uint8) * 255), meta, plane.error)


def _unmask(data: bytes, meta: dict[str, Any]) -> tuple[bytes, np.ndarray | None]:
    if "image" not in meta:
        return data, None
    return data[: meta["image"]], _open(data[meta["image"] :]) > 127


def _normals(stacked: np.ndarray) -> np.ndarray:
    u, v = np.split(stacked.astype(np.float32), 2)
    return from_octahedral(np.clip(np.stack([u, v]) / 127 - 1, -1, 1))


def _webp(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "WEBP", lossless=True, quality=90, method=4, exact=True)
    return file.getvalue()


def _avif(array: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    advanced = {"tune": "psnr"}  # not for eyes: the error in the value is what counts
    Image.fromarray(array).save(
        file, "AVIF", quality=quality, speed=8, subsampling="4:0:0", max_threads=1, advanced=advanced
    )
    return file.getvalue()


def _open(data: bytes) -> np.ndarray:
    """(H, W) uint8; codecs without a grey mode give three equal channels, of which the first is read."""
    image = np.asarray(Image.open(io.BytesIO(data)))
    return image if image.ndim == 2 else image[..., 0]
