"""MMSegmentation and MMDetection, with all that they register, imported without what they print."""

import io
from contextlib import redirect_stdout

with redirect_stdout(io.StringIO()):  # both print that an optional package is absent
    import mmdet.datasets
    import mmdet.engine
    import mmdet.evaluation
    import mmdet.models
    import mmseg.datasets
    import mmseg.engine
    import mmseg.evaluation
    import mmseg.models

__all__ = ["mmdet", "mmseg"]
