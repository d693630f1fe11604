"""What is imported of OpenMMLab."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.integration
def test_dense_probes_do_without_mmdetection_which_can_be_imported_after_them():
    program = (
        "import sys\n"
        "import probes.dense.config\n"
        "assert 'mmdet' not in sys.modules\n"
        "import probes.detection.coco, probes.detection.models\n"
        "from mmdet.registry import MODELS\n"
        "assert MODELS.get('MaskRCNN') is not None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
