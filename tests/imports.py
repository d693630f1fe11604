"""What a command imports."""

from __future__ import annotations

import subprocess
import sys

# what computes, and what writes a store
HEAVY = "mmengine mmcv mmseg mmdet torchvision timm open_clip transformers sympy mlflow optuna ray"
REPORTS = "pandas scipy jinja2 plotly sqlalchemy"


def run_and_count(words: str, forbidden: str, most: int) -> str:
    """Run a command, or several with a ``;``, in a process; its output. Fails if it imports one of
    these libraries, or more modules than ``most``."""
    code = (
        "import sys; from benchmark.parser import main\n"
        f"code = max(main(words.split()) for words in {words!r}.split(';'))\n"
        f"imported = set({forbidden!r}.split()) & set(sys.modules)\n"
        "count = len(sys.modules)\n"
        f"sys.exit(code or ' '.join(imported) or (str(count) if count > {most} else None))"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0 and process.stdout, process.stderr
    return process.stdout
