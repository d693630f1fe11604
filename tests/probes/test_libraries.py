"""What is imported of OpenMMLab."""

import subprocess
import sys

import pytest

from tests.probes.datasets.make import make_camvid


@pytest.mark.slow
def test_dense_probes_do_without_mmdetection_which_can_be_imported_after_them():
    program = (
        "import sys\n"
        "import probes.detection.probe, probes.dense.probe, probes.catalog\n"
        "assert 'mmseg' not in sys.modules\n"
        "import probes.dense.config\n"
        "assert 'mmdet' not in sys.modules\n"
        "import probes.detection.coco, probes.detection.models\n"
        "from mmdet.registry import MODELS\n"
        "assert MODELS.get('MaskRCNN') is not None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout


@pytest.mark.integration
def test_samples_are_drawn_without_models_optimizers_and_tables(tmp_path):
    """What takes seconds to import, and no picture needs."""
    make_camvid(tmp_path / "camvid", n_train=1, n_val=1)
    program = (
        "import sys\n"
        "from benchmark.parser import main\n"
        "assert main('data show camvid/linear --data camvid=camvid --out p.html'.split()) == 0\n"
        "slow = 'mmseg.models mmengine.optim mmcv.ops timm torchvision pandas mlflow'\n"
        "print(*sorted(set(slow.split()) & set(sys.modules)))\n"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "", "imported"
