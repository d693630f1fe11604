"""MMDetection, with all that it registers, imported without what it prints."""

import io
from contextlib import redirect_stdout

with redirect_stdout(io.StringIO()):  # it prints that optional packages are absent
    import mmdet.datasets
    import mmdet.engine
    import mmdet.evaluation
    import mmdet.models

__all__ = ["mmdet"]
