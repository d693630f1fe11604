"""What geometry does to the values of a map: a crop or a change of size does nothing, a left-right
flip turns vectors."""

from __future__ import annotations

# of every normal in this project: in the datasets' files, in what probes and experts predict, and
# in stored labels. Positions in an image count y downwards; normals do not.
AXES = "x right, y up, z towards the camera"
MIRRORED = (-1.0, 1.0, 1.0)  # what a flip multiplies x, y and z of a vector by
