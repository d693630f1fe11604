"""What a unit of work does not import, and that it is there when somebody uses it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration
PROBES = """
import sys
import benchmark.cell, probes.dense.group, probes.image_level.linear, timm, torch
weight = torch.nn.Parameter(torch.ones(1))
for kind in (torch.optim.SGD, torch.optim.AdamW):
    optimizer = kind([weight], lr=0.1)
    weight.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def output_of(program: str) -> str:
    """What a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_heads_are_trained_without_compilers_other_trainers_and_logs():
    slow = "torch._dynamo.convert_frame torch.distributed.fsdp sympy transformers peft wandb mmdet"
    slow += " scipy.ndimage scipy.optimize scipy.interpolate"
    program = PROBES + f"print(*sorted(set('{slow}'.split()) & set(sys.modules)))"
    assert output_of(program) == "", "imported"


def test_compiled_modules_are_compiled():
    program = PROBES + (
        "import torch._dynamo.config as config\n"
        "assert config is torch._dynamo.config\n"
        "from torch._dynamo.testing import CompileCounter\n"
        "counter = CompileCounter()\n"
        "torch.compile(lambda x: x + 1, backend=counter)(weight)\n"
        "optimizer.step()\n"
        "from torchvision.ops import roi_align\n"
        "assert roi_align(torch.ones(1, 1, 4, 4), [torch.ones(1, 4)], 2).shape == (1, 1, 2, 2)\n"
        "print(counter.frame_count, type(torch._dynamo).__name__)\n"
    )
    assert output_of(program) == "1 module"


def test_what_openmmlab_registers_is_still_found():
    program = PROBES + (
        "import numpy, scipy.ndimage, transformers\n"
        "from mmengine.optim import build_optim_wrapper\n"
        "options = dict(type='Adafactor', lr=0.1, relative_step=False)\n"
        "built = build_optim_wrapper(torch.nn.Linear(2, 2), dict(optimizer=options))\n"
        "assert type(built.optimizer) is transformers.Adafactor\n"
        "from mmseg.models.text_encoder.clip_text_encoder import tokenizer\n"
        "assert tokenizer.tokenize(['a dog']).shape == (1, 77)\n"
        "from mmseg.models.losses import huasdorff_distance_loss as loss\n"
        "inside = numpy.eye(5) == 0\n"
        "expected = scipy.ndimage.distance_transform_edt(inside)\n"
        "assert (loss.distance(inside) == expected).all()\n"
        "print('found')\n"
    )
    assert output_of(program).endswith("found")
