"""Ray casting with Embree: first hits and shadows of a triangle soup."""

from __future__ import annotations

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene


class Rays:
    """Triangles ready for ray casting: ``vertices`` (V, 3; metres) and ``faces`` (F, 3).

    ``normals`` (F, 3) float64 and ``normals32`` are unit normals, of either side.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        corner = vertices[faces]
        normals = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        self.normals = normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-30)
        self.normals32 = self.normals.astype(np.float32)
        self._offsets = dot(self.normals, corner[:, 0])
        self._scene = EmbreeScene()
        self._mesh = TriangleMesh(self._scene, vertices.astype(np.float32), faces.astype(np.int32))

    def first_hit(
        self, origin: np.ndarray, directions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """First triangle (N,) hit from ``origin`` (3,), -1 for none, and the ray parameter (N,).

        The parameter is in units of the length of ``directions`` (N, 3) and in their precision:
        float32 for pictures, float64 (exact on the triangle's plane) for ground truth.
        """
        origins = np.full(directions.shape, origin, np.float32)
        if directions.dtype == np.float32:
            hit = self._scene.run(origins, directions, query="INTERSECT", output=1)
            return hit["primID"], hit["tfar"]
        triangle = self._scene.run(origins, directions.astype(np.float32), query="INTERSECT")
        normal = self.normals[triangle]
        slope = dot(normal, directions)
        slope = np.where(np.abs(slope) < 1e-9, 1e-9, slope)
        return triangle, (self._offsets[triangle] - normal @ origin) / slope

    def blocked(self, origins: np.ndarray, directions: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """Whether anything is within ``reach`` (N,) units of each ray (N, 3) float32."""
        return self._scene.run(origins, directions, dists=reach, query="OCCLUDED") == 0


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise scalar product of (N, 3) arrays, (N,)."""
    return np.einsum("ij,ij->i", a, b)
