"""MMSegmentation, with all that it registers, imported without what it prints."""

import io
from contextlib import redirect_stdout

with redirect_stdout(io.StringIO()):  # it prints that optional packages are absent
    import mmseg.datasets
    import mmseg.engine
    import mmseg.evaluation
    import mmseg.models

__all__ = ["mmseg"]
