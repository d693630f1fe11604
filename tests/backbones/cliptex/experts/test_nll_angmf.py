"""NLL-AngMF from its authors' checkpoints; a golden record proves names, shapes and arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from backbones.cliptex.experts.base import load_experts
from backbones.cliptex.experts.published import NllAngMF
from cliptex_common.errors import UserError
from tests.kinds import slow_except

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("norm", slow_except(["BN", "GN"], ["BN"]))
def test_a_checkpoint_of_the_authors(norm, tmp_path):
    """As saved from several GPUs; images of any size, also in bf16."""
    torch.manual_seed(0)
    original = NllAngMF(norm, size=32).freeze()
    state = {f"module.{name}": tensor for name, tensor in original.net.state_dict().items()}
    path = tmp_path / "scannet.pt"
    torch.save({"model": state, "iter": 5000}, path)
    (expert,) = load_experts([f"nll-angmf={path}"])
    assert expert.identity()["settings"]["norm"] == norm and not expert.training
    expert.settings = replace(expert.settings, size=32)
    images = torch.randint(0, 256, (3, 3, 32, 40), dtype=torch.uint8)
    output = expert.predict(images)
    for name, values in original.predict(images).items():
        np.testing.assert_array_equal(output[name], values)
    assert output["normal"].shape == (3, 3, 32, 40)
    rounded = expert.freeze(bf16=True).predict(images)["normal"]
    assert rounded.dtype == np.float32 and 0 < np.abs(rounded - output["normal"]).mean() < 0.05


def test_another_network_is_refused(tmp_path):
    weights = {"encoder.original_model.conv_stem.weight": torch.zeros(1)}
    torch.save({"model": weights}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad\.pt does not fit the authors' NLL-AngMF network"):
        load_experts([f"nll-angmf={tmp_path / 'bad.pt'}"])
