"""A training on an accelerator, whose dropout draws from the accelerator's generator, is the same
with probes inside it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmark import InLoop
from tests.benchmark.test_in_loop import IMAGES, KNN, Model, read
from tests.probes.datasets.make import make_imagefolder


def train(device, probe=None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Model().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(1, 7):
        images = torch.randn(4, 3, 32, 32, device=device)
        labels = torch.tensor([0, 1, 0, 1]).to(device)
        loss = F.cross_entropy(model(images, labels)["logits"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if probe is not None:
            probe(model, step)
        assert next(model.parameters()).device.type == device.type
    return {name: value.cpu() for name, value in model.state_dict().items()}


def test_a_training_is_the_same_with_it(device, tmp_path, monkeypatch):
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=12)
    monkeypatch.chdir(tmp_path)
    probe = InLoop(
        **KNN,
        every=3,
        encoder=lambda model: model.encoder,
        images=IMAGES,
        data={"imagefolder": tmp_path / "imagefolder"},
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        num_workers=0,
        device=device.type,
        on_error="raise",
    )
    plain, probed = train(device), train(device, probe)
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    assert {row["step"] for row in read()} == {"3", "6"}
