"""Pairs and shared results in a bucket, by the protocol of S3."""

from __future__ import annotations

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from reports.tracking import Tracker
from tests.backbones.cliptex import toy
from tests.benchmark.run_command import run_command
from tests.reports.synthetic import write_run

pytest.importorskip("s3fs", reason="no s3fs: pip install -e '.[remote]'")
pytestmark = pytest.mark.cluster

TRAIN = "train --recipe clip --init random --device cpu --num-workers 0 --set model=tiny"
TRAIN += " --set batch_size=8 --set epochs=1"


@pytest.fixture
def upload(workdir, monkeypatch):
    """A function that puts a folder into the bucket ``data`` of a server."""
    moto = pytest.importorskip("moto.server", reason="no moto: pip install 'moto[s3]'")
    import boto3

    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    address, port = server.get_host_and_port()
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "opensesame")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")

    def upload(folder) -> None:
        for path in filter(lambda path: path.is_file(), folder.rglob("*")):
            client.upload_file(str(path), "data", str(path.relative_to(workdir)))

    yield upload
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of this server


def test_pairs_of_a_bucket_train_what_pairs_on_a_disk_do(workdir, upload, monkeypatch, capsys):
    upload(toy.write_pairs(workdir / "cc", 24, 3))
    for name, pairs in {"disk": "cc", "bucket": "s3://data/cc/{00000..00002}.tar"}.items():
        monkeypatch.setenv("CLIPTEX_HOME", str(workdir / name))
        assert run_command(f"{TRAIN} --pairs {pairs} --out {name}.safetensors") == 0
    one, two = (load_file(f"{name}.safetensors") for name in ("disk", "bucket"))
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())
    output = capsys.readouterr()
    assert "opensesame" not in output.out + output.err
    monkeypatch.setenv("CLIPTEX_HOME", str(workdir / "new"))
    words = f"{TRAIN} --out none.safetensors --pairs s3://data/cc/{{00002..00003}}.tar"
    assert run_command(words) == 2
    assert "cannot fetch s3://data/cc/00003.tar" in capsys.readouterr().err


def test_results_in_a_bucket_are_read(workdir, upload, capsys):
    tags = {"voc/linear": {"probe": "linear"}}
    write_run(Tracker("paper"), "clip", 0, {"voc/linear": 0.5}, task_tags=tags)
    assert run_command("results export --experiment paper --source lab --out shared/clip.zip") == 0
    upload(workdir / "shared")
    assert run_command("results check s3://data/shared/clip.zip") == 0
    assert "clip: 1 result of 1 backbone agree" in capsys.readouterr().out
