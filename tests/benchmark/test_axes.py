"""Several values of a setting that is declared an axis make variants of a task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backbones import BACKBONES, Entry, find, register
from benchmark.plan import Plan
from benchmark.suites import SUITES
from benchmark.tasks import plan_tasks
from cliptex_common.errors import UserError
from probes.datasets.base import PreparedDataset
from reports.records import metric_key
from tests.benchmark.run_command import listing, run_command
from tests.probes.datasets.make import make_camvid, make_imagefolder


def plan(tasks, changes, suite="own"):
    return {task.name: task for task in plan_tasks(SUITES.find(suite), tasks, changes)}


def test_every_combination_of_values_is_a_variant():
    tasks = plan(["camvid/linear"], {"size": "224,448", "lr": "0.001,0.01", "flip": "0"})
    turned = plan(["camvid/linear"], {"lr": "0.001,0.01", "size": "224,448", "flip": "0"})
    assert list(tasks) == list(turned)
    assert {(task.settings.size, task.settings.lr) for task in tasks.values()} == {
        (224, 0.001),
        (224, 0.01),
        (448, 0.001),
        (448, 0.01),
    }
    assert "camvid/linear:lr=0.01:size=448" in tasks, "in the settings' order"
    assert all(task.settings.flip == 0 for task in tasks.values())


def test_one_value_is_a_setting_and_an_axis_may_have_a_name_of_its_own():
    (single,) = plan(["camvid/linear"], {"size": "224"}).values()
    assert (single.name, single.settings.size) == ("camvid/linear", 224)
    changes = {"k": "5,20"}
    by_name = plan(["camvid/patch-knn", "camvid/in-context"], changes)
    assert {name: task.settings.neighbours for name, task in by_name.items()} == {
        "camvid/patch-knn:k=5": (5,),
        "camvid/patch-knn:k=20": (20,),
        "camvid/in-context:k=5": 5,
        "camvid/in-context:k=20": 20,
    }
    grid = plan(["camvid/patch-knn"], {"neighbours": "5,20"})
    assert grid["camvid/patch-knn"].settings.neighbours == (5, 20)


def test_a_requested_variant_fixes_its_axis_beside_shares_and_shots():
    (task,) = plan(["camvid/linear:0.5:size=224"], {"lr": "0.01"}).values()
    assert (task.name, task.train_share, task.settings.size) == (
        "camvid/linear:0.5:size=224",
        0.5,
        224,
    )
    names = plan(["imagefolder/few-shot"], {"shots": "1,10", "size": "64,96"})
    assert list(names) == [
        "imagefolder/few-shot:1:size=64",
        "imagefolder/few-shot:1:size=96",
        "imagefolder/few-shot:size=64",
        "imagefolder/few-shot:size=96",
    ], "ten shots are the default, which has no name"


def test_a_tier_is_always_in_the_name_but_for_the_frozen_one_which_stays_as_it_was(tmp_path):
    def conditions(task):
        return task.conditions(PreparedDataset(task.spec.name, tmp_path, {}))

    (alone,) = plan(["camvid/linear"], {}).values()
    of_tuned = {"tune_rates": "0.1", "ema": "0.9", "drop_path": "0", "checkpointing": "true"}
    tiers = plan(["camvid/linear"], {"tune": "frozen,lora:16", "size": "512", **of_tuned})
    assert list(tiers) == ["camvid/linear", "camvid/linear:tune=lora:16"]
    assert conditions(tiers["camvid/linear"]) == conditions(alone), "its cell is found again"
    assert (
        not {"tune", "tune_rates", "layer_decay", "drop_path"}
        & conditions(alone)["settings"].keys()
    )
    (single,) = plan(["camvid/linear"], {"tune": "blocks:4"}).values()
    assert single.name == "camvid/linear:tune=blocks:4"
    assert conditions(single)["settings"]["tune"] == "blocks:4"
    (named,) = plan(["camvid/linear:0.5:tune=lora:16"], {}).values()
    assert (named.settings.tune, named.train_share) == ("lora:16", 0.5)
    suite = replace(SUITES.find("own"), tasks={"camvid/linear": {"tune": "all"}})
    assert [task.name for task in plan_tasks(suite, [], {})] == ["camvid/linear:tune=all"]
    with pytest.raises(UserError, match=r"--set ema=0\.9: no task of this run trains the backbone"):
        plan(["camvid/linear"], {"ema": "0.9"})
    lora = [
        plan(["camvid/linear"], {"tune": "lora:2", **each}) for each in ({}, {"layer_decay": "0.5"})
    ]
    assert conditions(*lora[0].values()) == conditions(*lora[1].values())
    with pytest.raises(UserError, match="tune=half: must be frozen, all, blocks:N or lora:R"):
        plan(["camvid/linear"], {"tune": "half"})


@pytest.mark.parametrize("sizes", ["64,96", (64, 96)])
def test_a_suite_may_give_an_axis_several_values_and_the_user_others(sizes):
    suite = replace(SUITES.find("own"), tasks={"camvid/linear": {"size": sizes, "lr": 0.5}})
    tasks = {task.name: task for task in plan_tasks(suite, [], {})}
    assert list(tasks) == ["camvid/linear:size=64", "camvid/linear:size=96"]
    assert all(task.settings.lr == 0.5 for task in tasks.values())
    (single,) = plan_tasks(suite, [], {"size": "32"})
    assert single.name == "camvid/linear"
    (requested,) = plan_tasks(suite, ["camvid/linear:size=64"], {})
    assert requested.name == "camvid/linear:size=64"


def test_words_of_one_setting_are_not_those_of_another_that_shares_its_axis():
    """Dense probes read ``last``, whole images have ``features``; numbers are for both."""
    tasks = plan(["mini-seg/linear", "mini-class/linear"], {"layers": "last"}, "mini")
    assert tasks["mini-seg/linear"].settings.layers == "last"
    assert tasks["mini-class/linear"].settings.features == "projected"
    tasks = plan(["mini-seg/linear", "mini-class/linear"], {"layers": "50%"}, "mini")
    assert tasks["mini-class/linear"].settings.features == "50%"


def test_sizes_are_units_of_their_own_and_layers_share_one(tmp_path):
    tasks = plan_tasks(SUITES.find("profile"), ["camvid/patch-knn"], {})
    data = PreparedDataset(tasks[0].spec.name, tmp_path, {"val": []})
    units = Plan(
        None, SUITES.find("profile"), tasks, data={task.name: data for task in tasks}
    ).units
    assert [[task.settings.size for task in unit] for unit in units] == [
        [size] * 4 for size in (224, 448, 672)
    ]
    assert {task.settings.layers for task in units[0]} == {"25%", "50%", "75%", "100%"}
    assert {task.encoded_layers for task in tasks} == {("25%", "50%", "75%", "100%")}


HEAD = "--task camvid/head --set head.type=FCNHead --set head.channels=8"


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("camvid/linear", {"size": "224,"}, r"size=224,: an axis has two or more different values"),
        ("camvid/linear", {"size": "224,,448"}, "separated by single commas"),
        ("camvid/linear", {"size": "224,large"}, "size=large: must be a valid integer"),
        (
            "camvid/linear",
            {"k": "5,20"},
            "it is a setting of in-context, knn, label-prop",
        ),
        ("camvid/linear:depth=3", {}, "camvid/linear has no axis 'depth', only train_share, "),
    ],
)
def test_wrong_axes_are_one_line(task, changes, message):
    with pytest.raises(UserError, match=message) as error:
        plan([task], changes)
    assert "\n" not in str(error.value)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("3,7", "layers=7: backbone 'random/timm/test_vit' has 6 layers; choose 1 to 6"),
        (f"3,4 {HEAD} --set head.in_index=2", "head.in_index: leave it out"),
    ],
)
def test_layers_that_do_not_exist_end_the_command_before_anything_is_written(
    values, message, workdir, capsys
):
    make_camvid(workdir / "camvid")
    before = listing(workdir)
    command = "run --task camvid/in-context --backbone random/timm/test_vit --data-root ."
    assert run_command(f"{command} --set layers={values}") == 2
    assert message in capsys.readouterr().err and listing(workdir) == before


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mini-seg/linear --set layers=3", "layers=3: backbone 'clip' has 2 layers"),
        ("mini-seg/head --set head.type=UPerHead --set head.channels=8", "feature_stride=none"),
        ("mini-depth/dpt", "dpt fuses 4 feature maps, and 'clip' gives 2"),
    ],
)
@pytest.mark.parametrize("option", ["", "--dry-run"])
def test_what_does_not_fit_a_backbone_that_the_suite_trains_is_refused_before_its_training(
    words, message, option, workdir, refused
):
    refused(f"run --suite smoke --backbone cliptex --task {words} {option}", message)
    assert not listing(workdir)


@pytest.mark.integration
def test_a_backbone_whose_layers_are_named_is_built_once(workdir):
    built = []

    def build(request):
        built.append(request.name)
        return random.build(replace(request, settings=random.settings))

    random = find("random")
    register(Entry("counted", "for tests", "none", build))
    make_imagefolder(workdir / "imagefolder", n_train=4, n_val=4)
    command = "run --task imagefolder/knn --backbone counted --data-root . --jobs 1"
    try:
        assert run_command(f"{command} --set size=32 --set layers=2,4 --num-workers 0") == 0
    finally:
        BACKBONES.pop("counted")
    assert built == ["counted"]


def test_names_of_variants_are_names_that_mlflow_accepts():
    assert metric_key("voc/knn:layers=50%:size=224/mIoU") == "voc/knn:layers-50pct:size-224/mIoU"
