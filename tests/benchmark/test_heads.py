"""Heads of a command's options: planned, refused before work, part of the identity."""

from __future__ import annotations

import pytest
import yaml

from benchmark.options import RunOptions
from benchmark.plan import make_plan
from benchmark.suites import SUITES
from benchmark.tasks import plan_tasks
from cliptex_common.errors import UserError
from probes.datasets.base import PreparedDataset
from tests.benchmark.run_command import run_command, runs_of

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("camvid")]

RUN = "run --suite own --data-root . --backbone random --num-workers 0 --device cpu --jobs 1"
RUN += " --set batch_size=2 --set size=32 --set max_iters=1"
HEAD = "--task camvid/head --set head.type=UPerHead --set head.channels=8"


def test_options_of_a_head_are_part_of_the_identity(workdir):
    own = SUITES.find("own")

    def conditions(**overrides):
        (task,) = plan_tasks(own, ["camvid/head"], overrides)
        return task.conditions(PreparedDataset(task.spec.name, workdir, {}))

    narrow = {"head.type": "UPerHead", "head.channels": "8"}
    planned = conditions(**narrow, **{"head.norm_cfg.type": "BN"})
    expected = {"type": "UPerHead", "channels": 8, "norm_cfg": {"type": "BN"}}
    assert planned["settings"]["head"] == expected
    assert "channels" not in planned["settings"]
    assert conditions(head=str(expected)) == planned
    assert conditions(**narrow) != planned
    with pytest.raises(UserError, match="channels: none of the tasks has this setting"):
        conditions(**narrow, channels="8")


def test_a_config_file_has_a_head_as_a_table(workdir, capsys):
    head = {"type": "FCNHead", "channels": 8, "in_index": [0], "input_transform": "resize_concat"}
    options = {"suite": "own", "task": ["camvid/head"], "backbone": "random", "set": {"head": head}}
    (workdir / "run.yaml").write_text(yaml.safe_dump({**options, "data-root": "."}))
    assert (
        run_command("run --config run.yaml --set head.channels=4 --set size=32 --dump-config") == 0
    )
    text = capsys.readouterr().out
    assert "type='FCNHead'" in text and "channels=4" in text
    plan = make_plan(RunOptions(suite="own", tasks=["camvid/head"], overrides={"head": str(head)}))
    (workdir / "saved.yaml").write_text(yaml.safe_dump(plan.as_config_file()))
    assert run_command("run --config saved.yaml --data-root . --dump-config") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--task camvid/head --set head.type=UPerHed --set head.channels=8",
            "did you mean UPerHead",
        ),
        ("--task camvid/linear --set head.type=UPerHead", "it is a setting of head"),
        (f"{HEAD} --set head.in_channels=[1,2]", "head.in_channels: leave it out"),
    ],
)
def test_a_head_that_does_not_fit_ends_the_command_before_it_trains(refused, options, message):
    refused(f"{RUN} {options}", message)
    assert runs_of("own") == []
