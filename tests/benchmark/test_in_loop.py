"""Probes inside a training: the training stays what it is, and the numbers reach its loggers."""

from __future__ import annotations

import csv
import gc
import random
import shlex
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from backbones.backbone import DataConfig
from backbones.weights import checkpoints
from benchmark import InLoop, LightningProbe, TransformersProbe
from benchmark.commands.runs import Watch
from benchmark.in_loop import untouched
from benchmark.parser import Parser, add_command, read_options
from cliptex_common.errors import UserError
from tests.forks import ranks
from tests.probes.datasets.make import (
    make_bsds,
    make_camvid,
    make_imagefolder,
    make_voc2007,
)

pytestmark = pytest.mark.integration

IMAGES = DataConfig((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Encoder(nn.Module):
    """One map at stride 8; dropout and batch statistics, which an evaluation must not touch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 8, 8), nn.BatchNorm2d(6), nn.Dropout(0.2)

    def forward(self, images):
        return self.drop(self.norm(self.conv(images)).relu())


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(6, 2)

    def forward(self, pixel_values=None, labels=None):
        logits = self.head(self.encoder(pixel_values).mean((2, 3)))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.fixture
def options(workdir, tmp_path, monkeypatch):
    """Tiny data, a store, and what every probe here shares."""
    make_camvid(tmp_path / "camvid", n_train=4, n_val=4)
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=12)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield {
        "tasks": ["imagefolder/knn", "camvid/linear"],
        "encoder": lambda model: model.encoder,
        "images": IMAGES,
        "name": "mine",
        "data": {name: tmp_path / name for name in ("camvid", "imagefolder")},
        "settings": {"size": 32, "max_iters": 2, "batch_size": 2, "k": 3},
        "num_workers": 0,
        "device": "cpu",
        "on_error": "raise",
    }
    mlflow.set_tracking_uri(None)


def train(steps: int, probe=None, wrap=lambda model: model) -> dict[str, torch.Tensor]:
    """The weights after a training whose random numbers come from every generator."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    model = wrap(Model())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(1, steps + 1):
        images = torch.randn(4, 3, 32, 32) * random.random() * np.random.rand()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(images, torch.randint(2, (4,)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if probe is not None:
            probe(model, step)
        assert model.training
    return model.state_dict()


def read(path: Path = Path("probes/probes.csv")) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_training_is_the_same_with_it_and_its_numbers_are_logged(options):
    plain = train(20)
    probe = InLoop(**options, every=10)
    with mlflow.start_run() as run:
        probed = train(20, probe)
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert plain.keys() == probed.keys()
    assert all(torch.equal(plain[name], probed[name]) for name in plain)

    rows = read()
    assert {row["step"] for row in rows} == {"10", "20"}
    assert {row["task"] for row in rows} == set(options["tasks"])
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "probe/imagefolder/knn/top1")
    logged = {str(metric.step): metric.value for metric in history}
    written = {
        row["step"]: float(row["value"])
        for row in rows
        if (row["task"], row["metric"]) == ("imagefolder/knn", "top1")
    }
    assert logged == written
    assert 0 < probe.share < 1
    # the run that a row names has the number too
    first = rows[0]
    stored = client.get_run(first["run"]).data
    assert stored.metrics[first["metric"]] == pytest.approx(float(first["value"]))
    parent = client.get_run(stored.tags["mlflow.parentRunId"])
    assert parent.data.tags["cliptex.step"] == first["step"]


def test_edges_and_label_sets_are_evaluated_inside(options):
    root = make_voc2007(Path("voc2007"), n_train=6, n_test=6)
    data = {"bsds500": make_bsds(Path("bsds500")), "voc2007-labels": root}
    tasks = {"bsds500/linear": "ODS", "voc2007-labels/knn": "mAP"}
    train(1, InLoop(**options | {"tasks": list(tasks), "data": data}, every=1, partial=True))
    values = {(row["task"], row["metric"]): float(row["value"]) for row in read()}
    assert all(0 < values[key] <= 100 for key in tasks.items())


def test_an_evaluation_leaves_no_copy_of_the_encoder(options):
    train(1, InLoop(**options, every=1))
    assert read()
    gc.collect()
    assert not any(type(each) is Encoder for each in gc.get_objects())


def test_state_of_a_training_is_restored_and_default_inside():
    before = torch.get_rng_state()
    flags = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with untouched():
            assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
            torch.manual_seed(9), random.seed(9), np.random.seed(9)
            torch.backends.cudnn.benchmark = not flags[0]
            torch.set_float32_matmul_precision("medium")
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == flags


def test_mistakes_show_before_the_training(options):
    with pytest.raises(UserError, match="imagefolder/k-nn"):
        InLoop(**{**options, "tasks": "imagefolder/k-nn"}, every=10)
    with pytest.raises(UserError):
        InLoop(**{**options, "data": {"camvid": Path("absent")}}, every=10)
    with pytest.raises(UserError, match="no option"):
        InLoop(**options, every=10, batches=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"where": "there"},
        {"on_error": "fail"},
        {"log": ["a list"]},
        {"name": "clip"},
        {"weights": "a.pth"},
        {"every": float("nan")},
        {"every": "10"},
        {"every": [1]},
        {"every": 0},
        {"tasks": 5},
        {"tasks": []},
        {"tasks": [5], "where": "watch"},
        {"folder": 5},
        {"folder": "file/probes"},
        {"folder": "file", "where": "watch"},
    ],
    ids=str,
)
def test_options_that_fit_no_training_show_before_it(options, wrong):
    Path("file").touch()
    with pytest.raises(UserError) as error:
        InLoop(**{"every": 10, **options, **wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("step", [-4, 2.5, "3"])
def test_a_step_is_a_whole_number(options, step):
    probe = InLoop(**{**options, **KNN}, every=2)
    with pytest.raises(UserError, match=f"step={step!r}"):
        probe(Model(), step)


def test_no_logger_loses_its_numbers_by_another(options):
    """Each gets them, the file last."""

    class Broken(Recorder):
        def add_scalar(self, *_):
            raise ConnectionError("the logger is gone")

    probe = InLoop(**{**options, **KNN}, every=5, log=Broken())
    Path("probes/probes.csv").unlink()
    Path("probes/probes.csv").mkdir()
    with mlflow.start_run() as run, pytest.raises(OSError):
        probe(Model(), 5)
    assert "probe/imagefolder/knn/top1" in mlflow.get_run(run.info.run_id).data.metrics
    Path("probes/probes.csv").rmdir()
    with pytest.raises(ConnectionError):
        probe(Model(), 10)
    assert {row["step"] for row in read()} == {"10"}


def test_trainings_that_share_a_folder_are_told_apart(options):
    first, second = (InLoop(**{**options, **KNN}, every=5) for _ in range(2))
    for probe in (first, second):
        probe(Model(), 5)
    rows = [row for row in read() if row["metric"] == "top1"]
    assert len({row["training"] for row in rows}) == 2 and {row["step"] for row in rows} == {"5"}


def test_a_class_may_be_called_like_a_backbone(options):
    class Clip(Encoder):
        pass

    options |= {**KNN, "name": None, "encoder": None}
    results = InLoop(**options, every=5)(Clip(), 5)
    assert {*results.frame.backbone} == {"clip step 5"}


def test_an_error_of_a_probe_does_not_end_the_training(options):
    probe = InLoop(**{**options, "encoder": lambda model: model.head, "on_error": "warn"}, every=1)
    with pytest.warns(UserWarning, match="the training goes on"):
        assert probe(Model(), 1) is None
    with pytest.raises(Exception):  # noqa: B017 – whatever a linear layer says to images
        InLoop(**{**options, "encoder": lambda model: model.head}, every=1)(Model(), 1)


@pytest.mark.parametrize(
    ("steps", "due"),
    [
        (range(11), [5, 10]),
        ([5, *range(11)], [5, 5, 10]),  # tried before the loop
        ([3, 6, 9, 12], [6, 12]),
        ([1001, 1002, 1005, 1005], [1005]),  # resumed; batches that are accumulated
    ],
)
def test_evaluations_are_due_at_multiples_of_every(options, tmp_path, steps, due):
    probe = InLoop(**{**options, **KNN}, every=5, where="watch")
    written = []
    for step in steps:
        probe(Model(), step)
        for path in Path("probes/steps").glob("*.safetensors"):
            path.unlink()
            written.append(step)
    assert written == due


def test_weights_have_the_names_of_the_plain_module(options):
    model = Model()
    compiled = nn.DataParallel(torch.compile(model))
    encoder = lambda inner: torch.compile(inner.encoder)
    InLoop(**{**options, "encoder": encoder}, every=5, where="watch")(compiled, 5)
    (path,) = checkpoints(Path("probes/steps")).values()
    assert load_file(path).keys() == model.encoder.state_dict().keys()


KNN = {"tasks": "imagefolder/knn", "settings": {"k": 3}}


class Recorder:
    """As far as InLoop uses it, a SummaryWriter of TensorBoard."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value


def test_it_logs_to_what_is_named(options):
    writer = Recorder()
    results = InLoop(**{**options, **KNN}, every=5, log=writer)(Model(), 5)
    value = results.frame.query("metric == 'top1'").value.item()
    assert writer.scalars["probe/imagefolder/knn/top1", 5] == value


@pytest.mark.slow
def test_numbers_reach_a_run_of_wandb_once(options, monkeypatch):
    """Offline, also where a WandbLogger of that run is named."""
    wandb = pytest.importorskip("wandb", reason="no W&B: pip install wandb")
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with wandb.init(mode="offline", dir=".") as run:
        logger = loggers.WandbLogger(experiment=run)
        for _ in range(2):
            run.log({"loss": 1.0})
        results = InLoop(**{**options, **KNN}, every=5, log=logger)(Model(), 10)
        value = results.frame.query("metric == 'top1'").value.item()
        assert run.step == 3, "steps of the training, and one of the probe"
        assert run.summary["probe/imagefolder/knn/top1"] == value
        assert run.summary["probe/step"] == 10


@pytest.mark.parametrize("attribute", ["full_tensor", "ds_tensor"])
def test_weights_in_pieces_need_their_state(options, attribute):
    """Of FSDP2 and of DeepSpeed."""
    model = Model()
    setattr(model.encoder.conv.weight, attribute, torch.empty(0))
    with pytest.raises(UserError, match="give InLoop"):
        InLoop(**{**options, **KNN}, every=5)(model, 5)


def test_weights_for_watch_are_those_of_the_step(options):
    probe = InLoop(**options, every=5, where="watch")
    model = Model()
    assert probe(model, 4) is None and probe(model, 5) is None
    (path,) = checkpoints(Path("probes/steps")).values()
    stored = load_file(path)
    assert all(torch.equal(stored[name], each) for name, each in model.encoder.state_dict().items())
    assert not Path("probes/probes.csv").exists()


def test_the_command_of_watch_has_the_same_options(options, capsys):
    scored = {"tasks": "imagefolder/linear", "settings": {"learning_rates": ()}}
    scored |= {"suite": "own", "partial": True}
    InLoop(**{**options, **scored}, every=5, where="watch")(Model(), 5)
    words = shlex.split(capsys.readouterr().out.partition("score it with ")[2])
    parser = Parser()
    add_command(parser, {"watch": Watch})
    read = read_options(vars(parser.parse_args(words[3:])))
    assert (read.suite, read.partial, read.tasks) == ("own", True, ["imagefolder/linear"])
    assert read.overrides == {"learning_rates": ""}


def probe_in_two_processes(rank: int, options: dict) -> None:
    store = f"file://{Path('store').absolute()}"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    probe = InLoop(**options, encoder=lambda model: model.encoder, every=1, where="here")
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Model())
    results = probe(model, 1)
    assert (results is None) == (rank > 0)
    model(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))["loss"].backward()
    torch.distributed.destroy_process_group()


def test_libraries_do_not_wait_for_other_processes():
    from torch import distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with untouched():
            assert not dist.is_initialized()
        assert dist.get_world_size() == 2
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_of_several_processes_the_first_evaluates(options):
    del options["encoder"]
    torch.multiprocessing.spawn(probe_in_two_processes, (options,), nprocs=2)
    assert {row["task"] for row in read()} == set(options["tasks"])


def train_in_pieces(options: dict) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    probe = InLoop(
        **options,
        encoder=lambda model: model.encoder,
        every=2,
        state=lambda model: get_model_state_dict(model.encoder, options=full),
    )
    train(3, probe, lambda model: fully_shard(model, mesh=mesh))
    torch.distributed.destroy_process_group()


@pytest.mark.cluster
def test_a_training_in_pieces_writes_complete_weights(options, tmp_path):
    """Of FSDP2: those that a training in one process has at this step."""
    encoder = options.pop("encoder")
    ranks(train_in_pieces, options, output=tmp_path / "output")
    weights = {}
    train(2, lambda model, step: weights.update(encoder(model).state_dict()))
    (path,) = checkpoints(Path("probes/steps")).values()
    assert load_file(path).keys() == weights.keys()
    for name, each in load_file(path).items():
        torch.testing.assert_close(each, weights[name])


def data(count: int = 16) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return TensorDataset(images, (images.mean((1, 2, 3)) > 0).long())


def test_a_callback_of_lightning(options):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def training_step(self, batch, index):
            return self.model(*batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    from lightning.pytorch.loggers import CSVLogger

    options |= {**KNN, "encoder": lambda module: module.model.encoder}

    def fit(callbacks: list) -> tuple[dict, str]:
        lightning.seed_everything(0, verbose=False)
        logger = CSVLogger("logs")
        trainer = lightning.Trainer(
            max_steps=8,
            logger=logger,
            callbacks=callbacks,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=1,
        )
        module = Module()
        trainer.fit(module, DataLoader(data(), 4, shuffle=True))
        return module.state_dict(), logger.log_dir

    plain, _ = fit([])
    probed, folder = fit([LightningProbe(**options, every=4)])
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    assert [row["step"] for row in read() if row["metric"] == "top1"] == ["4", "8"]
    with Path(folder, "metrics.csv").open(encoding="utf-8") as file:
        assert "probe/imagefolder/knn/top1" in file.readline()


def test_a_callback_of_transformers(options, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    options |= KNN
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=8,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )

    def collate(rows):
        images, labels = zip(*rows, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}

    def fit(callbacks: list) -> dict:
        torch.manual_seed(0)
        model = Model()
        Trainer(
            model, arguments, data_collator=collate, train_dataset=data(), callbacks=callbacks
        ).train()
        return model.state_dict()

    plain = fit([])
    probed = fit([TransformersProbe(**options, every=4)])
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    assert [row["step"] for row in read() if row["metric"] == "top1"] == ["4", "8"]
