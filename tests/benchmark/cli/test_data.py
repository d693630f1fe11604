"""``data check`` says what is there, what is missing, and where it is looked for."""

from __future__ import annotations

import json

from benchmark.__main__ import main
from tests.probes.datasets.make import make_camvid, truncate


def test_data_check(tmp_path, monkeypatch, capsys):
    root = make_camvid(tmp_path / "camvid", n_train=4, n_val=3)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "--data-root", "."]) == 0
    told = capsys.readouterr().out
    assert (
        "camvid" in told
        and "train 4" in told
        and "no folder VOCdevkit/VOC2012" in told
        and "mini-" not in told
    )
    assert main(["data", "check", "--data-root", ".", "--json"]) == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["name"] == "camvid")
    assert row["state"] == "available" and row["found"] == {"train": 4, "val": 3}
    truncate(root / "images/val/frame_val_00000.jpg")
    assert main(["data", "check", "--data-root", ".", "--full"]) == 0
    assert "frame_val_00000.jpg: image cannot be decoded" in capsys.readouterr().out
    assert main(["data", "check"]) == 2
    assert "--data-root DIR and/or --data NAME=DIR" in capsys.readouterr().err
