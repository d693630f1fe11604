"""The files that the documentation shows, and its notebook, run. (The task and the expert:
test_fourth_task.)"""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import mlflow
import numpy as np
import pandas as pd
import pytest

from benchmark import evaluate
from benchmark.mini.world import SIZES, WorldConfig
from cliptex_common.errors import UserError
from tests.docs.shown_files import ROOT
from tests.probes.datasets import make

pytestmark = pytest.mark.integration

TINY = WorldConfig(
    pairs=1,
    expert_train=1,
    expert_val=1,
    probe_train=12,
    val=24,
    class_train=40,
    class_val=30,
    retrieval_train=1,
    retrieval=1,
)


def test_a_backbone_a_dataset_and_a_probe_of_files(plugin_files, folder):
    """The network of `new backbone` with random weights, on leaves and by the nearest mean."""
    rng = np.random.default_rng(0)
    for part, number in {"train": 3, "val": 2}.items():
        for index in range(number):
            mask = make.labels(rng, (48, 40), [0, 1, 255])
            make.save(folder / f"data/leaves/masks/{part}/{index}.png", mask)
            make.save(
                folder / f"data/leaves/images/{part}/{index}.jpg", make.picture(rng, (48, 40))
            )
    make.make_imagefolder(folder / "data/imagefolder", n_train=3, n_val=5)
    settings = {"max_iters": 2, "size": 32, "batch_size": 2}
    results = evaluate(
        "my-net.py:MyNet",
        ["leaves/linear", "imagefolder/nearest-mean"],
        suite="own",
        plugins=["leaves.py", "nearest-mean.py"],
        data_root="data",
        settings=settings,
        device="cpu",
        jobs=1,
        num_workers=0,
    )
    assert set(results.frame.status) == {"done"}
    table = results.table()["my-net.py:MyNet"]
    assert 0 <= table["leaves/linear", "mIoU"] <= 100
    assert table["imagefolder/nearest-mean", "top1"] > 90, "the colour is the class"
    assert len(results.per_image("imagefolder/nearest-mean")) == 20
    classes = results.per_class("leaves/linear")
    assert list(classes.index) == ["leaf", "spot"] and list(classes.images) == [2, 2]
    assert classes.IoU.mean() == pytest.approx(table["leaves/linear", "mIoU"])
    with pytest.raises(UserError, match="no scores of classes"):
        results.per_class("imagefolder/nearest-mean")


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, folder):
    """With one seed on a smaller world than that of its outputs; these are of the same cells, and
    none is an error."""
    monkeypatch.setitem(SIZES, "smoke", replace(SIZES["smoke"], world=TINY))
    notebook = json.loads((ROOT / "docs/guide/python.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {"__name__": "notebook"}
    for cell in cells:
        assert {output["output_type"] for output in cell["outputs"]} <= {
            "execute_result",
            "display_data",
        }
        *steps, last = ast.parse("".join(cell["source"]).replace("seeds=3", "seeds=1")).body
        value = None
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(steps, []), "notebook", "exec"), names)
            value = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
        else:
            exec(compile(ast.Module([*steps, last], []), "notebook", "exec"), names)
        assert (value is not None) == any(
            output["output_type"] == "execute_result" for output in cell["outputs"]
        )
        if isinstance(value, pd.DataFrame):
            shown = "".join(cell["outputs"][-1]["data"]["text/plain"])
            assert all(str(name) in shown for name in value.columns)
    frame = names["comparison"].frame
    assert set(frame.status) == {"done"} and set(frame.backbone) == {
        "colours",
        "efficientnet-lite0",
    }
    logged = mlflow.get_run(names["run"].info.run_id).data.metrics
    assert set(logged) == {f"{task}/{metric}" for task, metric in names["colours"].table().index}
