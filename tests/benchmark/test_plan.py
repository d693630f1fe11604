"""What a run will do is decided and checked before any work."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import benchmark.catalog  # noqa: F401
from backbones.backbone import DataConfig
from backbones.checkpoint import Checkpoint, save_checkpoint
from backbones.cliptex.recipes import find_recipe
from benchmark.options import RunOptions
from benchmark.plan import find_folders, make_plan, prepare_data
from benchmark.suites import SUITES, settings_in
from benchmark.tasks import plan_tasks
from cliptex_common.errors import UserError
from cliptex_common.settings import one_line_errors
from probes.datasets.base import PreparedDataset
from probes.datasets.check import prepare
from probes.registry import DATASETS
from tests.probes.datasets.make import make_camvid
from tests.probes.datasets.make_shifts import make_imagenet


def test_settings_of_suite_protocol_and_user_in_this_order(tmp_path):
    suite = replace(
        SUITES.find("paper"), tasks={"nyu-depth/linear": {"lr": 0.5, "precision": "bf16"}}
    )
    (task,) = plan_tasks(suite, [], {"protocol": "dinov3", "max_iters": "100"})
    settings = task.settings
    assert (settings.protocol, settings.lr, settings.bins) == ("dinov3", 3e-4, 256)
    assert settings.precision == "fp32" and settings.max_iters == 100
    data = PreparedDataset("nyu-depth", tmp_path, {})
    line = task.deviations(data)
    assert line.startswith("differs from dinov3: max_iters=100 instead of 38400")
    (own,) = plan_tasks(suite, [], {"max_iters": "100"})
    assert (own.settings.protocol, own.settings.lr, own.settings.precision) == ("own", 0.5, "bf16")
    assert own.deviations(data) == ""
    assert own.conditions(data) != task.conditions(data)
    named = replace(suite, tasks={"nyu-depth/linear": {"protocol": "dinov3"}})
    assert plan_tasks(named, [], {})[0].settings.bins == 256


@pytest.mark.parametrize("can", [True, False])
def test_precision_follows_the_device_and_is_part_of_the_identity(can, tmp_path, monkeypatch):
    monkeypatch.setattr("cliptex_common.device.prefers_bf16", lambda device: can)
    tasks, note = ["nyu-depth/dpt-probe3d"], "precision bf16" if can else "precision fp32"

    def planned(**changes):
        plan = make_plan(RunOptions(suite="paper", tasks=tasks, overrides=changes))
        (task,) = plan.tasks
        return task, any(line.startswith(note) for line in plan.notes)

    data = PreparedDataset("nyu-depth", tmp_path, {})
    automatic, is_noted = planned()
    assert (automatic.settings.precision, is_noted) == ("bf16" if can else "fp32", True)
    for precision in ("fp32", "bf16"):
        explicit, is_noted = planned(precision=precision)
        assert explicit.settings.precision == precision and not is_noted
        is_same = explicit.conditions(data) == automatic.conditions(data)
        assert is_same == (precision == automatic.settings.precision)
    preset, is_noted = planned(protocol="probe3d")
    assert preset.settings.precision == "fp32" and not is_noted


def test_a_cpu_computes_in_fp32_whatever_its_flags_promise(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(f"torch.cpu.{name}", lambda: True)
    plan = make_plan(RunOptions(suite="paper", tasks=["voc/linear"], device="cpu"))
    assert plan.tasks[0].settings.precision == "fp32"


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({"device": "cpu", "executor": "slurm"}, "fp32"),
        ({"executor": "slurm"}, "auto"),
        ({"executor": "ray", "executor_arg": {"address": "auto"}}, "auto"),
        ({"executor": "ray"}, "fp32"),
        ({"device": "cuda:1"}, "auto"),
    ],
)
def test_precision_is_decided_where_the_device_is(options, precision, monkeypatch):
    """On a machine without a GPU: of a CPU here, of an accelerator of others there."""
    monkeypatch.setattr("cliptex_common.device.current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("cliptex_common.device.is_available", lambda name: str(name) == "cpu")
    plan = make_plan(RunOptions(suite="paper", tasks=["voc/linear"], **options))
    assert plan.tasks[0].settings.precision == precision


@pytest.mark.parametrize(
    ("suite", "tasks", "changes", "message"),
    [
        ("paper", ["voc/lineer"], {}, "did you mean voc/linear"),
        ("paper", ["camvid/linear"], {}, "no task 'camvid/linear', suite 'own' has"),
        ("paper", ["voc/linear"], {"voc/dpt.lr": "0.1"}, "no such task is chosen"),
        ("paper", ["voc/linear"], {"voc/linear.shots": "5"}, "voc/linear does not have.*few-shot"),
        ("paper", ["voc/dpt"], {"dpt.lr": "0.1"}, "a whole task, as in --set voc/dpt.lr=0.1"),
        ("paper", ["voc/linear"], {"max_itres": "3"}, "did you mean max_iters"),
        ("paper", ["voc/linear"], {"protocol": "dinov3"}, "does not apply to voc/linear"),
        (
            "paper",
            ["nyu-depth/dpt-probe3d"],
            {"protocol": "probe3d", "max_iters": "9"},
            "whose length is epochs=10",
        ),
        ("own", ["imagefolder/linear:0"], {}, "train_share=0"),
        ("own", ["imagefolder/zero-shot:0.5"], {}, "trains on nothing"),
        (
            "own",
            ["imagefolder/knn"],
            {"k": "many"},
            "knn does not take it; neighbours=many",
        ),
        (
            "own",
            ["imagefolder/knn"],
            {"k": "5,many"},
            "knn does not take many; name the tasks that do, --set TASK.k=5,many",
        ),
        (
            "mini",
            ["mini-seg/linear", "mini-class/linear"],
            {"layers": "last,50%"},
            "linear does not take last; name the tasks that do, --set TASK.layers=last,50%",
        ),
        (
            "own",
            ["imagefolder/linear:0.1"],
            {"train_share": "0.5"},
            "TASK:VALUE fixes it",
        ),
        (
            "own",
            ["camvid/linear"],
            {"learning_rate": "1"},
            "lr: learning rate of the optimizer",
        ),
    ],
)
def test_wrong_tasks_and_settings(suite, tasks, changes, message):
    with pytest.raises(UserError, match=message):
        plan_tasks(SUITES.find(suite), tasks, changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["camvid/linear", "voc/linear"]}, "own.paper has no default backbones"),
        ({"suite": "companion"}, "companion has no default backbones; give --backbone NAME"),
        ({"seeds": 0}, "seeds=0"),
        ({"seed": 2**31 - 1, "seeds": 2}, "the last seed must be at most 2147483647"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message), one_line_errors():
        make_plan(RunOptions(**options))


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """In the working folder: weights that say their architecture, of a training with other λ, and a
    plain state dict."""
    monkeypatch.chdir(tmp_path)
    data = DataConfig((32, 32), (0.5,) * 3, (0.5,) * 3)
    recipe = find_recipe("cliptex").changed({"lambda_seg": 0.3, "epochs": 2, "seed": 1})
    for name, extra in (("own", {}), ("trained", {"recipe": recipe.settings()})):
        path = Path(f"{name}.safetensors")
        state = {"a": torch.zeros(1)}
        save_checkpoint(Checkpoint(path, state, "open_clip/toy", {}, data, extra=extra))
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "plain.pt")
    return tmp_path


def test_a_label_names_a_column(checkpoints):
    """Of weights, by what the file says, or of a name; changed λ name one themselves."""
    names = ["a=own.safetensors", "b=plain.pt", "c=random", "d=trained.safetensors"]
    options = RunOptions(tasks=["imagefolder/knn"], backbones=names, architecture="timm/resnet18")
    plan = make_plan(options)
    created = {name: source.create_arguments for name, source in plan.backbones.items()}
    assert {name: each["name"] for name, each in created.items()} == {
        "a": "open_clip/toy",
        "b": "timm/resnet18",
        "c": "random",
        "d": "cliptex",
    }
    assert created["b"]["weights"] == str(checkpoints / "plain.pt")
    assert [name for name, each in created.items() if "any_architecture" in each] == ["a", "d"]
    requests = plan.as_config_file()["backbone"]
    assert requests[1:3] == [f"b={checkpoints}/plain.pt", "c=random"]
    assert make_plan(replace(options, backbones=requests)).backbones == plan.backbones
    trained = {"tasks": options.tasks, "weights": "trained.safetensors"}
    (column,) = make_plan(RunOptions(backbones=["cliptex"], **trained)).backbones
    assert column == "cliptex λ_seg=0.3"
    (column,) = make_plan(RunOptions(backbones=["cliptex"], name="mine", **trained)).backbones
    assert column == "mine"


def test_a_folder_is_a_column_for_each_checkpoint(checkpoints):
    for step in (20, 3):
        folder = checkpoints / f"run/checkpoint-{step}"
        folder.mkdir(parents=True)
        os.link("own.safetensors", folder / "model.safetensors")
    options = RunOptions(tasks=["imagefolder/knn"], backbones=["mine=run", "random"])
    plan = make_plan(options)
    assert [*plan.backbones] == ["mine step 3", "mine step 20", "random"]
    path = plan.backbones["mine step 3"].create_arguments["weights"]
    assert path == str(checkpoints / "run/checkpoint-3/model.safetensors")
    again = replace(options, backbones=plan.as_config_file()["backbone"])
    assert make_plan(again).backbones == plan.backbones
    with pytest.raises(UserError, match="--weights applies to one backbone"):
        make_plan(replace(options, backbones=["mine=run"], weights=Path("plain.pt")))


@pytest.mark.parametrize(
    ("backbones", "options", "message"),
    [
        ("a=random,a=clip", {}, "--backbone a=clip: two are called 'a'"),
        ("a=.", {}, "a=.: no checkpoint in the folder has a step in its name"),
        ("a=absent.pt", {}, "no weights file .*absent.pt"),
        ("a=plain.pt", {}, r"--architecture NAME, .*: timm/resnet18 "),
        ("plain.pt", {}, "--backbone plain.pt: label files of weights, as in LABEL=plain.pt"),
        ("=plain.pt", {}, "the label before = is empty; name the column, as in my-net=plain.pt"),
        ("a=clap", {}, "a=clap: no such file or folder, and no backbone 'clap'"),
        ("a=hub:me/net:entry,a=hub/me/net:entry", {}, "two are called 'a'"),
        ("clip,random", {"name": "a"}, "--name a: it labels one backbone"),
    ],
)
def test_wrong_labels(checkpoints, backbones, options, message):
    with pytest.raises(UserError, match=message):
        make_plan(RunOptions(tasks=["imagefolder/knn"], backbones=backbones, **options))


def test_protocol_changes_with_everything_a_number_depends_on(tmp_path):
    paper = SUITES.find("paper")
    (task,) = plan_tasks(paper, ["voc/linear"], {})
    data = PreparedDataset("voc", tmp_path, {"train": [], "val": []}, fingerprint="a")
    protocols = [
        task.conditions(data),
        plan_tasks(paper, ["voc/linear"], {"lr": "0.5"})[0].conditions(data),
        plan_tasks(paper, ["voc/pspnet"], {})[0].conditions(data),
        task.conditions(replace(data, fingerprint="b")),
        task.conditions(replace(data, partial=True)),
    ]
    assert all(protocols.count(protocol) == 1 for protocol in protocols)


@pytest.mark.parametrize(
    ("tasks", "suite"),
    [
        ([], "mini"),
        (["mini-seg/linear"], "mini"),
        (["mini-seg/pspnet:0.1"], "smoke"),
        (["camvid/linear"], "own"),
        (["nyu-depth/dpt", "voc/linear"], "paper"),
        (["mini-depth/dpt"], "mini"),
    ],
)
def test_tasks_choose_the_suite(tasks, suite):
    assert make_plan(RunOptions(backbones=["random"], tasks=tasks)).suite.name == suite


def test_an_unlisted_task_has_the_settings_that_its_suite_declares_as_far_as_its_probe_has_them():
    paper, tasks = SUITES.find("paper"), ["nyu-depth/dpt-probe3d"]
    (own,), (preset,) = (
        plan_tasks(paper, tasks, {}),
        plan_tasks(paper, tasks, {"protocol": "probe3d"}),
    )
    assert (own.settings.precision, own.settings.bins) == ("auto", 0)
    assert (preset.settings.precision, preset.settings.bins) == ("fp32", 256)
    mini = SUITES.find("mini")
    (ssd,) = plan_tasks(mini, ["mini-det/ssd"], {"augment": "false"})
    assert ssd.settings.out_channels == 32  # and nothing that only mask-rcnn has
    tasks = ["mini-seg/linear", "mini-seg/dpt", "mini-seg/patch-knn"]
    linear, dpt, knn = plan_tasks(mini, tasks, {})
    assert dpt.settings == linear.settings
    assert (knn.settings.size, knn.settings.feature_stride) == (64, 8)  # trains nothing
    (untuned,) = plan_tasks(mini, ["mini-class/few-shot"], {})
    assert untuned.settings.size is None, "whatever the others on its dataset have"
    unlisted = {"": {"size": 64}, "voc": {"size": 96, "lr": 0.5}, "voc/pspnet": {"lr": 0.1}}
    suite = replace(paper, unlisted=unlisted)
    names = ["voc/dpt", "ade20k/dpt", "voc/patch-knn"]
    settings = [settings_in(suite, name) for name in names]
    assert settings == [{"size": 96, "lr": 0.5}, {"size": 64}, {"size": 96}]
    listed = replace(suite, tasks={"voc/linear": {}})
    assert settings_in(listed, "voc/pspnet") == {"lr": 0.1}


def test_a_suite_does_not_misspell_a_setting():
    suite = replace(SUITES.find("paper"), tasks={"voc/linear": {"max_itres": 3}})
    with pytest.raises(UserError, match="no setting 'max_itres'; did you mean max_iters"):
        plan_tasks(suite, [], {})


def test_tasks_of_several_suites_have_the_settings_of_their_own():
    names = ["camvid/linear", "nyu-depth/dpt", "mini-seg/linear"]
    options = {"backbones": ["cliptex"], "overrides": {"batch_size": "4"}}
    plan = make_plan(RunOptions(tasks=names, **options))
    apart = [make_plan(RunOptions(tasks=[name], **options)).tasks[0] for name in names]
    assert sorted(plan.tasks, key=lambda task: names.index(task.name)) == apart
    assert plan.experiment == "own+paper+mini" and plan.suite.pipeline
    assert list(plan.backbones) == ["random", "clip", "clip-ft", "cliptex"]
    again = plan.as_config_file()
    assert "suite" not in again and again["experiment"] == plan.experiment


def test_a_setting_of_one_task():
    tasks = ["voc/linear", "voc/head", "imagenet/linear"]
    overrides = {
        "batch_size": "4",
        "voc/head.batch_size": "8",
        "head.type": "FCNHead",
        "head.channels": "8",
        "voc/head.head.channels": "16",
        "imagenet/linear.size": "96,128",
    }
    plan = make_plan(RunOptions(backbones=["random"], tasks=tasks, overrides=overrides))
    planned = {task.name: task.settings for task in plan.tasks}
    assert (planned["voc/linear"].batch_size, planned["voc/head"].batch_size) == (4, 8)
    assert planned["voc/head"].head == {"type": "FCNHead", "channels": 16}
    assert {"imagenet/linear:size=96", "imagenet/linear:size=128"} <= planned.keys()
    assert planned["voc/linear"].size not in (96, 128)


def test_a_dataset_that_no_suite_has_belongs_to_own(monkeypatch):
    streets = replace(DATASETS["camvid"], name="streets")
    DATASETS.register("streets", streets)
    try:
        plan = make_plan(
            RunOptions(backbones=["random"], tasks=["streets/linear", "camvid/linear"])
        )
        assert plan.suite.name == "own"
        assert {task.name for task in plan.tasks} == {"camvid/linear", "streets/linear"}
        with pytest.raises(UserError, match="suite 'paper' has no task"):
            plan_tasks(SUITES.find("paper"), ["streets/linear"], {})
    finally:
        DATASETS.pop("streets", None)


@pytest.mark.parametrize(
    ("suite", "options", "names"),
    [
        ("mini", {}, ["random", "clip", "clip-ft", "cliptex"]),
        ("mini", {"backbones": ["cliptex"]}, ["random", "clip", "clip-ft", "cliptex"]),
        ("mini", {"backbones": ["cliptex"], "only": True}, ["cliptex"]),
        ("mini", {"backbones": ["cliptex", "clip-ft"]}, ["cliptex", "clip-ft"]),
        ("paper", {"backbones": ["cliptex"]}, ["cliptex"]),
        ("mini", {"backbones": ["ablation"], "only": True}, ["clip-ft", "cliptex"]),
    ],
)
def test_a_backbone_brings_its_baselines_and_a_group_its_members(suite, options, names):
    planned = list(make_plan(RunOptions(suite=suite, **options)).backbones)
    if options.get("backbones") == ["ablation"]:
        assert len(planned) == 8 and [planned[0], planned[-1]] == names
    else:
        assert planned == names


def test_a_task_whose_images_have_no_size_is_named():
    tasks = ["coco/mask-rcnn", "coco/ssd"]
    plan = make_plan(RunOptions(suite="paper", tasks=tasks, overrides={"size": "64"}))
    (note,) = (note for note in plan.notes if "`size`" in note)
    assert note.startswith("coco/mask-rcnn: no setting `size`;")


def test_what_a_user_changes_is_said_in_words(tmp_path):
    make_camvid(tmp_path / "camvid", n_train=4, n_val=3)
    changes = {"size": "64", "epochs": "0", "max_iters": "2"}
    (task,) = plan_tasks(SUITES["own"], ["camvid/linear"], changes)
    data = prepare(task.spec, tmp_path / "camvid", partial=True, splits={"train": 2, "val": None})
    text = task.shortened(data)
    assert "size=64 instead of " in text and "max_iters=2 instead of " in text
    assert "2 images of train" in text
    (usual,) = plan_tasks(SUITES["own"], ["camvid/linear"], {})
    assert not usual.changed


def test_data_that_no_task_is_on_are_named(tmp_path):
    plan = make_plan(RunOptions(backbones=["random"], suite="smoke", data={"camvid": tmp_path}))
    assert any("--data camvid: suite smoke has no task on it" in note for note in plan.notes)


def test_variants_of_a_task():
    """A share of train or a number of shots is a task of its own."""
    own = SUITES.find("own")
    names = ["imagefolder/linear", "imagefolder/few-shot", "imagefolder/knn:0.5"]
    changes = {"train_share": "0.01,0.1,1", "shots": "1, 10"}
    tasks = {task.name: task for task in plan_tasks(own, names, changes)}
    assert list(tasks) == [
        "imagefolder/linear:0.01",
        "imagefolder/linear:0.1",
        "imagefolder/linear",
        "imagefolder/few-shot:1",
        "imagefolder/few-shot",
        "imagefolder/knn:0.5",
    ]
    assert tasks["imagefolder/few-shot:1"].settings.shots == 1
    data = PreparedDataset("imagefolder", Path("/"), {}, fingerprint="a")
    (plain,) = plan_tasks(own, ["imagefolder/linear"], {})
    assert tasks["imagefolder/linear"].conditions(data) == plain.conditions(data)
    assert tasks["imagefolder/linear:0.1"].conditions(data)["train_share"] == 0.1


def test_a_dataset_that_the_copy_cannot_be_is_left_out_of_a_suite_and_named(workdir):
    root = make_imagenet(workdir / "imagenet")
    for number, image in enumerate(root.rglob("val/*/*.JPEG")):
        image.rename(image.with_stem(f"{number}"))
    options = RunOptions(suite="robustness", data_root=workdir, partial=True)
    plan = make_plan(options)
    assert "imagenet/linear" in {task.name for task in plan.tasks}
    assert not any("real" in task.name for task in plan.tasks)
    (note,) = (note for note in plan.notes if "official names" in note)
    assert note.startswith("imagenet-real is left out")
    with pytest.raises(UserError, match="official names"):
        named = make_plan(replace(options, tasks=["imagenet-real/linear"]))
        folders = find_folders(named.tasks, named.options)
        prepare_data(named.tasks, folders, named.options, 0)


def test_where_a_head_comes_from_is_resolved_when_tasks_are_planned():
    tasks = {
        task.name: task
        for task in plan_tasks(SUITES.find("paper"), ["imagenet-a/linear"], {"epochs": "2"})
    }
    trains, uses = tasks["imagenet/linear"], tasks["imagenet-a/linear"]
    assert trains.scored_with is None and not trains.uses_head
    assert uses.scored_with.name == trains.name and uses.uses_head
    assert uses.scored_with.settings == uses.settings == trains.settings
