"""Labelling as a stage: killed and started again, on any number of processes, with one MLflow run
beside."""

from __future__ import annotations

import asyncio
import shutil
import signal
from contextlib import chdir
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from backbones.cliptex.experts.base import find_expert
from backbones.cliptex.labels import LabelStore, check_labels
from benchmark.stages import LabelRequest, label_pairs
from cliptex_common.errors import UserError
from tests.backbones.cliptex.experts import toy_experts
from tests.benchmark.run_command import listing, run_command, runs_of, store
from tests.executors import run_on
from tests.forks import Fork, command
from tests.probes.datasets.make import encoded, write_tar
from tests.servers import FileServer

pytestmark = pytest.mark.integration

NAMES = ("unet-seg", "unet-depth", "unet-normals")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with 48 pairs in four shards, three experts with random weights, and their
    labels."""
    folder = tmp_path_factory.mktemp("labels")
    toy_experts.write_shards(folder / "pairs", 4, 12)
    for expert in toy_experts.all_experts():
        expert.save(folder / "experts" / expert.name)
    with chdir(folder):
        assert run_command(label_command("labels", "whole")) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)


EXPERTS = [f"{name}=experts/{name}" for name in NAMES]


def label_command(out: str, experiment: str) -> str:
    command = f"labels predict --pairs pairs --experts {','.join(EXPERTS)} --out {out}"
    return f"{command} --experiment {experiment} --device cpu --batch-size 8 --jobs 1"


def test_without_network_an_expert_of_the_hub_is_refused_at_once(monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits for another try"))
    words = "labels predict --pairs pairs --experts dpt=Intel/dpt-large --out none --device cpu"
    assert run_command(words) == 2
    error = capsys.readouterr().err
    assert "no depth model at 'Intel/dpt-large'" in error and error.count("\n") == 1


def request(out: str | None, **options) -> LabelRequest:
    defaults = {
        "pairs": "pairs",
        "experts": tuple(EXPERTS),
        "out": Path(out) if out else None,
        "batch_size": 8,
        "device": "cpu",
    }
    return LabelRequest(**{**defaults, **options})


def stage(request: LabelRequest) -> dict:
    return run_on(partial(label_pairs, request)).manifest


@pytest.mark.slow
def test_labelling_killed_and_started_again(here, tmp_path, capsys):
    words = label_command("cut-labels", "cut-labels")
    victim = Fork(command, *words.split(), output=tmp_path / "said")
    victim.wait_for(here / "cut-labels", "*.tar.json")
    victim.signal(signal.SIGKILL)
    assert victim.end() == -signal.SIGKILL
    assert not Path("cut-labels/manifest.json").exists()
    done = {path.name: path.stat().st_mtime_ns for path in Path("cut-labels").glob("*.tar.json")}
    assert run_command(words) == 0
    printed = capsys.readouterr().out
    assert "48 of 48 pairs labelled" in printed and "0 failed" in printed
    assert done == {name: (Path("cut-labels") / name).stat().st_mtime_ns for name in done}, (
        "finished shards are kept"
    )
    assert (
        check_labels("cut-labels") == []
        and LabelStore("cut-labels").identity == LabelStore("labels").identity
    )
    assert sorted(run.info.status for run in runs_of("cut-labels")) == ["FINISHED", "KILLED"]
    (run,) = [run.data for run in runs_of("cut-labels") if run.info.status == "FINISHED"]
    assert run.metrics["cost/label_flops"] == LabelStore("labels").manifest["cost"]["flops"] > 0
    assert run.metrics["cost/label_seconds"] > run.metrics["cost/label_seconds/unet-depth"] > 0


def test_dry_run_says_what_is_done_and_creates_nothing(here, workdir, capsys):
    for name in ("pairs", "experts"):
        Path(name).symlink_to(here / name)

    def dry_run() -> list[str]:
        before = listing(workdir)
        assert run_command(label_command("labels", "whole"), "--dry-run") == 0
        assert listing(workdir) == before
        return capsys.readouterr().out.splitlines()

    line, jobs = dry_run()
    assert line == "48 pairs in 4 shards: 0 labelled, 4 to do (48 pairs)"
    assert jobs.startswith("  4 jobs of 0 GPUs and ")
    unfinished = shutil.ignore_patterns("manifest.json", "00002*")
    shutil.copytree(here / "labels", "labels", ignore=unfinished)
    assert dry_run()[0] == "48 pairs in 4 shards: 3 labelled, 1 to do (12 pairs)"
    shutil.copytree(here / "labels", "labels", dirs_exist_ok=True)
    assert dry_run() == ["48 pairs in 4 shards: 4 labelled, 0 to do (0 pairs)"]


@pytest.mark.cluster
def test_two_processes_write_the_labels_of_one(here):
    """One run in MLflow, with a picture; two stages for the same folder at once make it once."""
    labels = request("two-labels", experiment="two")

    async def both(executor):
        return await asyncio.gather(label_pairs(labels, executor), label_pairs(labels, executor))

    first, second = (each.manifest for each in run_on(both, jobs=2))
    assert first == second
    assert (first["pairs_in"], first["pairs_out"], first["failed"]) == (48, 48, [])
    assert LabelStore("two-labels").identity == LabelStore("labels").identity
    (run,) = runs_of("two")
    assert run.info.status == "FINISHED" and run.data.metrics["label/images_per_second"] > 0
    artifacts = {each.path for each in store().list_artifacts(run.info.run_id)}
    assert artifacts == {"manifest.json", "pictures"}


def test_a_finished_store_is_left_alone_and_a_damaged_shard_is_made_again():
    folder = Path("repaired-labels")
    stage(request(folder.name, experiment="repaired"))
    before = listing(folder)
    stage(request(folder.name, experiment="repaired"))
    assert listing(folder) == before and len(runs_of("repaired")) == 1
    damaged = folder / "00002.tar"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    stage(request(folder.name, experiment="repaired"))
    assert check_labels(folder) == []
    assert LabelStore(folder).identity == LabelStore("labels").identity
    after = listing(folder)
    changed = {path.name for path in before if after[path] != before[path]}
    assert changed == {"00002.tar", "00002.tar.json", "manifest.json"}


def test_labels_of_shards_on_a_disk_are_those_of_shards_on_a_server(here):
    pytest.importorskip("aiohttp", reason="no aiohttp: pip install -e '.[remote]'")
    with FileServer(here) as server:
        options = {"pairs": f"{server.address}/pairs/{{00000..00003}}.tar", "experiment": "server"}
        expected = LabelStore("labels").manifest
        assert stage(request("labels", **options)) == expected
        assert runs_of("server") == [], "nothing was labelled again"
        manifest = stage(request("server-labels", **options))
    assert manifest["shards"] == expected["shards"], "byte for byte"


def test_many_unreadable_images_end_it_early(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "bad", 12, 2, corrupt=("000000001", "000010001"))
    with pytest.raises(UserError, match="2 of 24 pairs cannot be read"):
        stage(request(str(tmp_path / "none"), pairs=pattern, experiment="bad"))
    assert len(list((tmp_path / "none").glob("*.tar.json"))) <= 4, "no more shards are begun"
    with pytest.raises(UserError, match="not finished"):
        LabelStore(tmp_path / "none")
    (run,) = runs_of("bad")
    assert run.info.status == "FAILED"
    pattern = toy_experts.write_shards(tmp_path / "one", 2, 2, corrupt=("000010001",))
    manifest = stage(request(str(tmp_path / "some"), pairs=pattern, experiment="bad"))
    assert manifest["pairs_in"] == manifest["pairs_out"] + len(manifest["failed"]) == 4
    assert [key for key, _ in manifest["failed"]] == ["00001/000010001"]


@pytest.mark.parametrize(
    ("count", "silent", "message"),
    [(12, "5", "2 of 12 pairs"), (1, "", "1 of 1 pairs")],
    ids=["a caption is missing, too", "the only one"],
)
def test_pairs_that_a_training_refuses_are_refused(
    count, silent, message, here, tmp_path, monkeypatch, capsys
):
    """In each command, and in a dry run after the first; here number 0 is no picture."""
    monkeypatch.chdir(tmp_path)
    Path("experts").symlink_to(here / "experts")
    members = {}
    for number in range(count):
        picture = encoded(toy_experts.picture(number, 40, 40)) if number else b"no picture"
        caption = "" if str(number) == silent else f"picture {number}"
        members |= {f"{number:04d}.png": picture, f"{number:04d}.txt": caption.encode()}
    write_tar(tmp_path / "pairs/00000.tar", members)
    for options in ("", "--dry-run", ""):
        assert run_command(label_command("refused", "refused"), *options.split()) == 2
        error = capsys.readouterr().err
        assert f"{message} cannot be read" in error and error.count("\n") == 1
    train = "train --recipe clip --init random --pairs pairs --set model=tiny --set batch_size=2"
    if count > 1:  # fewer than two make no batch
        train += " --set val_pairs=0 --set epochs=2 --device cpu --out weights.safetensors"
        assert run_command(train) == 2
        assert "2 of 12 pairs of pairs cannot be read" in capsys.readouterr().err


def test_other_experts_have_another_folder_and_are_refused_in_a_given_one(
    here, tmp_path, monkeypatch
):
    """Those that were trained anew, in the same place with the same settings, make new labels."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path))
    label_request = request(None, name="toy", experiment="home")
    first = stage(label_request)
    assert label_request.folder(first["key"]) == tmp_path / "labels" / f"toy-{first['key'][:8]}"
    folder = here / "experts/unet-seg"
    files = {path: path.read_bytes() for path in folder.iterdir()}
    expert = find_expert("unet-seg").load(str(folder))
    with torch.no_grad():
        for values in expert.parameters():
            values.add_(
                0.05 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
            )
    expert.save(folder)
    try:
        second = stage(label_request)
        with pytest.raises(UserError, match="other experts or pairs"):
            stage(replace(label_request, out=Path("labels")))
    finally:
        for path, content in files.items():
            path.write_bytes(content)
    assert second["key"] != first["key"] and len(list((tmp_path / "labels").iterdir())) == 2
    assert stage(label_request) == first
    assert len(runs_of("home")) == 2, "made once"


def test_torchrun_is_refused_with_the_options_to_use(monkeypatch, refused):
    monkeypatch.setenv("RANK", "0")
    refused(label_command("none", "none"), "see --executor and --jobs")
