"""MMSegmentation's transforms, imported without what it prints; and images that mmcv resizes keep a
pixel of each side, where it would round that of a long one to none."""

import io
from contextlib import redirect_stdout

with redirect_stdout(io.StringIO()):  # it prints that optional packages are absent
    import mmseg.datasets
from mmcv.image import geometric

__all__ = ["mmseg"]
_scale_size = geometric._scale_size
geometric._scale_size = lambda *sizes: tuple(max(1, side) for side in _scale_size(*sizes))
