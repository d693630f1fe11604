"""The whole method, small: world, CLIP, experts, labels, CLIP-FT and CLIPTeX, from one command."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmark.mini.world import SIZES
from tests.backbones.cliptex.experts import toy_experts
from tests.benchmark.run_command import (
    read_json,
    run_command,
    runs_of,
    store,
    with_record_tags,
)

pytestmark = pytest.mark.integration

SMOKE = "run --suite smoke --task mini-class/zero-shot,mini-retrieval/retrieval --device cpu"


def test_smoke_makes_everything_once(workdir, capsys, refused, monkeypatch):
    smoke = SIZES["smoke"]
    world = replace(smoke.world, pairs=96, expert_train=24, expert_val=8, shard_size=48)
    experts = {name: {**toy_experts.SMALL_UNET, "epochs": 0.5} for name in smoke.experts}
    monkeypatch.setitem(SIZES, "smoke", replace(smoke, world=world, experts=experts))
    assert run_command(f"{SMOKE} --json first.json") == 0
    assert "the same weights" not in capsys.readouterr().out, "nothing is trained yet"
    first = read_json("first.json")
    assert set(first["backbones"]) == {"random", "clip", "clip-ft", "cliptex"}
    runs = runs_of("smoke")
    assert {run.info.status for run in runs} == {"FINISHED"}
    stages = [run.data.tags["stage"] for run in runs if "stage" in run.data.tags]
    assert sorted(stages) == ["experts"] * 3 + ["label"] + ["train"] * 3
    trained = {
        run.data.tags["recipe"]: run for run in runs if run.data.tags.get("stage") == "train"
    }
    for name in trained:
        parent = with_record_tags(store().get_run(first["mlflow"]["run_ids"][name]))
        assert parent.data.tags["train.run"] == trained[name].info.run_id
        assert parent.data.tags["weights.sha256"] == trained[name].data.tags["weights.sha256"]
        assert parent.data.metrics["cost/train_flops"] > 0
    sums = {run.data.tags["weights.sha256"] for run in trained.values()}
    assert len(sums) == 3
    assert {"train/loss_seg", "train/loss_depth", "train/loss_normal"} <= set(
        trained["cliptex"].data.metrics
    )
    assert "train/loss_seg" not in trained["clip-ft"].data.metrics

    assert run_command(f"{SMOKE} --json second.json") == 0
    assert read_json("second.json") == first and len(runs_of("smoke")) == len(runs)

    capsys.readouterr()
    assert run_command(f"{SMOKE} --dry-run") == 0
    *lines, total = capsys.readouterr().out.splitlines()
    reasons = [line for line in lines if "not applicable" in line]
    assert total == "4 backbones × 2 tasks × 1 seed: 6 done, 0 to do, 2 not applicable"
    assert len(reasons) == 2 and all("random · seed 0" in line for line in reasons)
    (weights,) = (workdir / "home/weights").glob("*-cliptex-s0-*.safetensors")
    weights.unlink()
    assert run_command(f"{SMOKE} --dry-run") == 0
    output = capsys.readouterr().out
    assert "to do · train cliptex · seed 0\n" in output
    assert "to do" in output
    refused(f"{SMOKE} --dump-config", "the weights of 'cliptex'")
    assert not weights.exists()
