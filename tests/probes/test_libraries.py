"""What is imported of OpenMMLab."""

import json
import subprocess
import sys

import pytest

import benchmark.catalog  # noqa: F401  registers datasets
from probes.registry import DATASETS
from tests.probes import tiny_coco
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


@pytest.mark.integration
def test_boxes_and_names_of_coco_need_no_mmdetection(tmp_path):
    root = tiny_coco.write(tmp_path / "coco", train=3, val=1)
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        others = set(DATASETS["coco"].class_names(root)) - set(tiny_coco.CLASSES)
        content["categories"] += [
            {"id": number, "name": name} for number, name in enumerate(sorted(others), 100)
        ]
        path.write_text(json.dumps(content))
    program = (
        "import sys\n"
        "from benchmark.parser import main\n"
        "show = 'coco/ssd', 'coco/mask-rcnn', 'coco-labels/linear'\n"
        "for command in ('check', *(f'show {task} --out p.html' for task in show)):\n"
        "    assert main(f'data {command} --data coco=coco'.split()) == 0\n"
        "print('mmdet' in sys.modules)\n"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False", "imported"
