"""Every block of code in README and the documentation is run, planned or loaded by what reads
it."""

from __future__ import annotations

import asyncio
import configparser
import json
import re
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.cli
import numpy as np
import open_clip
import pytest
from torch import nn

import backbones
from backbones.cliptex.experts.base import EXPERTS
from backbones.cliptex.labelling import LabelSettings
from backbones.cliptex.recipes import find_recipe
from backbones.cliptex.tasks import find_task
from benchmark import evaluate
from benchmark.commands.data import CheckDatasets, GetDatasets, ListCache, RemoveFromCache
from benchmark.commands.doctor import Doctor
from benchmark.commands.looking import WriteReport
from benchmark.commands.making import MakeLabels, PredictLabels, TrainBackbone, TrainExpert
from benchmark.commands.runs import Reproduce, RunTasks, Watch
from benchmark.commands.sweep import Launch
from benchmark.executor import EXECUTORS
from benchmark.options import RunOptions, run_options
from benchmark.parser import main, parse
from benchmark.plan import make_plan
from benchmark.reproduce import FEW, TEXT_BACKBONE, find_targets
from benchmark.result import RunResult, as_json
from benchmark.run import dry_run
from benchmark.run import run as run_tasks
from benchmark.suites import SUITES
from benchmark.sweep import plan_sweep
from benchmark.tasks import BackboneInfo, describe_backbone, plan_tasks
from cliptex_common import registry
from cliptex_common.files import write_json
from cliptex_common.settings import with_changes
from probes.datasets.base import Sample
from probes.datasets.download import ENTRIES
from probes.datasets.ground_truth import Boxes
from probes.datasets.webdataset import list_candidates
from probes.registry import DATASETS
from reports.pages import FORMATS
from reports.records import Cell
from tests.docs.blocks import FOR_OTHER_SUITES, ROOT, Block, blocks, commands
from tests.kit.networks import Patches
from tests.probes import tiny_coco
from tests.probes.datasets import make, make_shifts
from tests.probes.datasets.make_sun_rgbd import make_sun_rgbd

pytestmark = pytest.mark.integration

LANGUAGES = {"sh", "python", "json", "toml", "yaml", "text", "bibtex"}
SYSTEM_PROGRAMS = (
    "git",
    "apt-get",
    "ray",
    "optuna-dashboard",
    "torchgeo-bench",
)  # programs that are not ours to check


def test_every_block_says_its_language():
    wrong = [str(block) for block in blocks() if block.language not in LANGUAGES]
    assert not wrong and len(blocks()) > 40


# --- shell


def run(command: RunOptions) -> None:
    """A dry run, on small copies of the datasets and with random weights."""
    here = {"executor": "local", "executor_arg": {}}
    command = replace(command, data_root=Path("DIR"), partial=True, seeds=1, **here)
    plan = make_plan(command)
    names = [source.create_arguments["name"] for source in plan.backbones.values()]
    for name in names:
        initial(name)
    if not plan.suite.pipeline:
        names = [name if name.startswith("random") else f"random/{name}" for name in names]
        command = replace(command, backbones=names, weights=None)
        asyncio.run(make_plan(command).with_pipeline(None).with_data(num_workers=0))
    dry_run(command)


def watch(command: Watch) -> None:
    run(run_options(command, only=True))


def reproduce(command: Reproduce) -> None:
    assert command.list or command.quick or find_targets(command.protocols, [command.backbone])
    if command.list:
        command.main()


def as_typed(command: Any) -> None:
    assert command.main() in (0, 1)


def initial(name: str) -> None:
    """``ARCH/TAG`` of open_clip must be there; other names are the registry's."""
    backbones.find(name.removeprefix("random/"))
    if name.startswith("open_clip/"):
        architecture, tag = name.split("/")[1:]
        assert tag in open_clip.list_pretrained_tags_by_model(architecture)


def train(command: TrainBackbone) -> None:
    initial(command.init)
    experts = {"experts": ",".join(command.experts)} if command.experts else {}
    find_recipe(command.recipe).changed({**command.overrides, **experts})


def label(command: PredictLabels) -> None:
    for pair in command.experts:
        EXPERTS.find(pair.partition("=")[0])
    with_changes(LabelSettings(), command.overrides)


def make_labels(command: MakeLabels) -> None:
    for name in command.folders:
        find_task(name)


def expert(command: TrainExpert) -> None:
    with_changes(EXPERTS.find(command.name).settings_type(), command.overrides)


def sweep(command: Launch) -> None:
    plan_sweep(command)
    assert not command.init or not initial(command.init)


def data(command: GetDatasets) -> None:
    if not command.names:
        as_typed(command)
    for name in command.names:
        assert name == "zeroshot38" or name.startswith("wds_") or name in ENTRIES


def report(command: WriteReport) -> None:
    assert set(command.format) <= set(FORMATS)


PLANNERS: dict[type, Callable[[Any], None]] = {
    RunTasks: run,
    Watch: watch,
    TrainBackbone: train,
    PredictLabels: label,
    MakeLabels: make_labels,
    TrainExpert: expert,
    Launch: sweep,
    GetDatasets: data,
    WriteReport: report,
    Reproduce: reproduce,
    **dict.fromkeys((CheckDatasets, Doctor, ListCache, RemoveFromCache), as_typed),
}


def ours(words: list[str]) -> None:
    """A command of this suite: parsed by its parser, and what it names is looked up, as far as that
    needs no work."""
    if words[0] == "list":
        assert main(words) == 0
        return
    command = parse(words)
    if hasattr(command, "executor"):
        assert command.executor in EXECUTORS.descriptions()
    PLANNERS.get(type(command), lambda command: None)(command)


def python(words: list[str]) -> None:
    if words[0] == "-m":
        assert words[1] == "benchmark"
        ours(words[2:])
    else:
        compile(words[1], "-c", "exec")


def target(words: list[str]) -> None:
    assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)


def pip(words: list[str]) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert words[0] == "install"
    for extra in re.findall(r"^-e \.\[(\w+)]", " ".join(words[1:])):
        assert extra in config["options.extras_require"]


def of_mlflow(words: list[str]) -> None:
    command: Any = mlflow.cli.cli
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)


def wrapped(words: list[str]) -> None:
    python(words[-1].split(" -- ")[1].split()[1:])


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "python": python,
    "make": target,
    "pip": pip,
    "mlflow": of_mlflow,
    "sbatch": wrapped,
    ".ci/wheel": lambda words: None,
    **dict.fromkeys(SYSTEM_PROGRAMS, lambda words: None),
}


@pytest.fixture(scope="session")
def datasets(tmp_path_factory) -> Path:
    """A small copy of each dataset that the pages name."""
    folder = tmp_path_factory.mktemp("datasets")
    make.make_voc(folder / "VOCdevkit/VOC2012")
    make.make_ade(folder / "ade/ADEChallengeData2016")
    make.make_nyu(folder / "nyu")
    make.make_flickr(folder / "flickr30k")
    make.make_camvid(folder / "edges")
    names = "{part}_{index}.jpg", "{part}_{index}.png"
    leaves = make.make_pairs(folder / "leaves", {"train": 4, "val": 3}, [0, 1, 255], *names)
    (leaves / "annotations").rename(leaves / "masks")
    tiny_coco.write(folder / "coco")
    make_shifts.make_imagenet(folder / "imagenet")
    make_sun_rgbd(folder / "sunrgbd")
    make.make_imagefolder(folder / "places365")
    shift = make_shifts.make_shift(folder, "imagenetv2")
    shift.rename(folder / "imagenetv2-matched-frequency-format-val")
    for name in ("cifar10", "vtab-dtd"):
        make.make_wds(folder / f"wds_{name}")
    return folder


@pytest.fixture(scope="module")  # its patch must not outlive these tests
def described():
    """Each backbone is built and hashed once, with random weights."""

    @cache
    def describe(name: str) -> BackboneInfo:
        return describe_backbone({"name": name, "weights": None, "seed": 0})

    with pytest.MonkeyPatch.context() as patch:
        for module in ("plan", "run"):
            patch.setattr(
                f"benchmark.{module}.describe_backbone",
                lambda arguments: describe(arguments["name"]),
            )
        yield


@pytest.fixture
def user_folder(folder, datasets, described, plugin_files) -> Path:
    """The folder that commands are typed in."""
    (folder / "DIR").symlink_to(datasets)
    return folder


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in blocks("sh")))
def test_commands_are_right(page, user_folder):
    for where, (program, *words) in commands(page, user_folder):
        try:
            PROGRAMS[program](words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{where}: {program} {' '.join(words)}: {type(error).__name__}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["dataset", "head", "probe"])
def test_runs_of_what_one_adds_end(page, user_folder):
    """Each run of the pages with a small random backbone for a few iterations."""
    for where, (_, *words) in commands(f"docs/add/{page}.md", user_folder):
        if words[:3] != ["-m", "benchmark", "run"]:
            continue
        command = replace(parse(words[2:]), data_root=Path("DIR"), partial=True)
        plan = make_plan(command)
        settings = [task.settings for task in plan.tasks]
        few = {key: FEW[key] for key in FEW if any(getattr(each, key, None) for each in settings)}
        if "epoch_length" in few:
            few["epochs"] = "1"
        options = run_options(
            command,
            backbones=[TEXT_BACKBONE],
            weights=None,
            overrides={**command.overrides, **few},
            limit=2,
            seeds=1,
            executor="local",
            executor_arg={},
            jobs=1,
            num_workers=0,
            device="cpu",
        )
        cells = run_tasks(options).cells
        assert (
            cells
            and [f"{each.task}: {each.reason}" for each in cells if each.status == "failed"] == []
        ), where


# --- the rest


@pytest.mark.parametrize("block", [b for b in blocks("python") if b.file], ids=str)
def test_files_that_are_shown_are_modules(block: Block):
    """``test_examples`` and the conformance tests run them."""
    inside = block.file.relative_to(ROOT).with_suffix("").parts
    if not {"templates", "examples"} & set(inside):  # these are plugins
        import_module(".".join(inside))
        return
    registry.load(block.file, registers="register" in block.text)


def test_python_blocks_run(folder, store, plugin_files):
    """Page by page, with one seed; README's first, whose runs the others load."""
    make.make_imagefolder(folder / "datasets" / "imagefolder", n_train=2, n_val=5)
    shutil.copy(folder / "datasets/imagefolder/val/red/0000.JPEG", folder / "street.jpg")
    model = nn.Module()
    model.encoder = Patches()
    names: dict[str, Any] = {"my_module": Patches(), "my_model": model, "loader": range(3)}
    names["__name__"] = "example"
    names["my_step"] = lambda model, batch: None
    mlflow.set_tracking_uri(store)
    ran, run_id = set(), ""
    for block in blocks("python"):
        if not block.file and block.page != FOR_OTHER_SUITES:
            with mlflow.start_run():
                exec(
                    compile(
                        block.text.replace("RUN_ID", run_id)
                        .replace("seeds=3", "seeds=1")
                        .replace("every=1000", "every=2"),
                        str(block),
                        "exec",
                    ),
                    names,
                )
            ran.add(block.page)
        if block.page == "README.md":
            assert (
                set(names["results"].frame.status) == {"done"}
                and (folder / "comparison/index.html").is_file()
            )
            random = evaluate(
                "random", "imagefolder/linear", suite="own", data_root="datasets", jobs=1
            )
            assert set(random.frame.status) == {"cached"}
            run_id = random.frame.run.iloc[0]
    assert ran == {"README.md"} | {
        f"docs/{page}.md" for page in ("add/dataset", "add/expert", "guide/in-loop", "guide/mlflow")
    }
    beans = DATASETS.find("beans")
    del DATASETS["beans"]
    content = {"images": [{"file_name": "a.jpg", "id": 7}], "categories": [], "annotations": []}
    write_json(folder / "train.json", content)
    assert beans.list_samples(folder, "train") == [Sample("images/a.jpg", Boxes(7))]
    assert (folder / "probes/probes.csv").is_file()
    assert names["labels"].shape == (4,) and len(names["predict"].classes) == 4
    assert (folder / "ground-plane/expert.json").is_file()


def test_recipes_are_read(tmp_path):
    for block in blocks("toml"):
        (tmp_path / "mine.toml").write_text(block.text)
        recipe = find_recipe(str(tmp_path / "mine.toml"))
        assert recipe.tasks == ("seg", "depth") and recipe.loss_weights["seg"] == 0.1


def test_options_files_are_read(user_folder):
    for block in blocks("yaml"):
        if block.page != FOR_OTHER_SUITES:
            (user_folder / "run.yaml").write_text(textwrap.dedent(block.text))
            ours(["run", "--config", "run.yaml"])


def test_json_is_what_is_written_and_read(tmp_path):
    questions, result = blocks("json")
    (tmp_path / "instances.json").write_text(questions.text)
    black, (question,) = make.encoded(np.zeros((8, 8, 3), np.uint8)), json.loads(questions.text)
    make.write_tar(
        tmp_path / "test/0.tar", {f"{name}.png": black for name in question["candidates"]}
    )
    targets = [sample.target for sample in list_candidates(tmp_path, "val")]
    associated = [target.questions[0].is_associated for target in targets]
    assert associated == [False, False, True, True, False]
    shown = json.loads(result.text)
    tasks = plan_tasks(SUITES.find("paper"), ["voc/linear", "voc/pspnet"], {})
    metrics, (failure,) = shown["backbones"]["clip"]["voc/linear"], shown["holes"]
    cells = [
        Cell(backbone="clip", task="voc/linear", seed=0, metrics=metrics),
        Cell(
            backbone="clip",
            task="voc/pspnet",
            seed=0,
            status="failed",
            reason=failure["reason"],
        ),
    ]
    tracker: Any = SimpleNamespace(experiment="paper", uri="sqlite:///mlflow.db")
    run_ids = {("clip", 0): shown["mlflow"]["run_ids"]["clip"]}
    written = as_json(RunResult(SUITES.find("paper"), tasks, cells, run_ids, tracker))
    written["holes"][0]["metrics"] = failure["metrics"]
    assert written["backbones"].pop("clip") | {"voc/pspnet": {}} == shown["backbones"].pop(
        "clip"
    ) | {"voc/pspnet": {}}
    assert written == shown
