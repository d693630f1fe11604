"""Every number belongs to one network, whatever was run, labelled, shared and deleted before it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from reports.comparison import analyse
from reports.records import (
    PARENT,
    PER_IMAGE,
    PROTOCOL,
    Cell,
    ParentRun,
    cell_key,
    network_key,
    read_arrays,
)
from reports.selection import Selection, column_runs, select, shown_runs
from reports.sharing import export_results, load_files, read_shared
from reports.store import Store
from reports.tables import sections
from tests.reports.synthetic import METRICS, conditions_of, metrics_of, scores

TASK, LABELS = "imagenet/linear", ("a", "b", "net")
CONDITIONS = conditions_of(TASK, "p", None)


class RecordStore(Store):
    """Records in memory, and their files in a folder."""

    def __init__(self, records: dict[str, Cell | ParentRun]) -> None:
        self.records = records

    def runs(self, experiments, filter_string=""):
        return list(self.records.values())


class Histories(RuleBasedStateMachine):
    """Networks of few names: files of weights, some the same file in two configurations, and
    recipes, whose seeds have weights of their own."""

    networks: Bundle = Bundle("networks")

    def __init__(self):
        super().__init__()
        self.scratch = TemporaryDirectory()
        self.folder = Path(self.scratch.name)
        self.records: dict[str, Cell | ParentRun] = {}
        self.store = RecordStore(self.records)
        self.groups: dict[str, int] = {}  # network → number of its file or recipe
        self.brought = 0
        self.shared: list[str] = []
        self.selection: Selection | None = None

    def teardown(self):
        """The table of the last step."""
        if selection := self.selection:
            for table in sections(analyse(self.store, selection)):
                for number in table.numbers:
                    shown = selection.cells[number.backbone, selection.columns[0]]
                    mean = np.mean([cell.metrics[number.metric] for cell in shown])
                    assert (number.value, number.seeds) == (pytest.approx(mean), len(shown))
        self.scratch.cleanup()

    @rule(target=networks, name=st.sampled_from(("net", "clip")), is_recipe=st.booleans())
    def bring(self, name, is_recipe):
        self.brought += 1
        return self.brought, name, is_recipe

    def identity(self, network, seed):
        number, _, is_recipe = network
        weights = f"{number} {seed}" if is_recipe else f"file {number // 2}"
        sha = content_key(weights, 64)
        data = {"size": [224, 224 + number]}
        return {"architecture": "toy", "model_config": {}, "sha256": sha, "data": data}

    def write(self, record, **files):
        """Add a record, newer than all, with its files."""
        run_id = f"run{len(list(self.folder.iterdir()))}"
        folder = self.folder / run_id
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        started = len(list(self.folder.iterdir()))
        where = {"run_id": run_id, "artifacts": str(folder), "started": started, "experiment": "x"}
        self.records[run_id] = record.model_copy(update=where)
        return self.records[run_id]

    @rule(
        network=networks,
        label=st.sampled_from(("", *LABELS)),
        seed=st.integers(0, 2),
        force=st.booleans(),
    )
    def run(self, network, label, seed, force):
        number, name, is_recipe = network
        identity = self.identity(network, seed)
        shared = {"backbone": name, "seed": seed, "weights": identity["sha256"]}
        shared["network"] = network_key(identity)
        self.groups[shared["network"]] = number
        key, run_key = cell_key(identity, CONDITIONS, seed), content_key([number, seed, label])
        cells = [run for run in self.records.values() if getattr(run, "key", "") == key]
        parents = [run for run in self.records.values() if getattr(run, "run_key", "") == run_key]
        if parents and not force:
            parent = parents[-1].model_copy(update={"label": label})
            self.records[parent.run_id] = parent
        else:
            made = {"settings": f"epochs={number}", "train_run": "t"} if is_recipe else {}
            record = ParentRun(**shared, run_key=run_key, label=label, metrics={"x": 1.0}, **made)
            costs = {"train_seconds": 1.0} if is_recipe else {}
            record = record.model_copy(update={"costs": costs})
            parent = self.write(record, **{PARENT: {"backbone": identity}})
        if cells and not force:
            update = {"reused": {"imagenet.linear": cells[-1].run_id}}
            self.records[parent.run_id] = parent.model_copy(update=update)
            return
        quality = 0.3 + 0.4 * np.random.default_rng(len(self.records)).random()
        arrays, _ = scores("classification", quality, len(self.records), 12)
        cell = Cell(
            **shared,
            task=TASK,
            dataset="imagenet",
            probe="linear",
            kind="classification",
            protocol=content_key(CONDITIONS),
            key=key,
            fingerprint=CONDITIONS["dataset"]["fingerprint"],
            declared=METRICS["classification"],
            metrics=metrics_of("classification", arrays, None),
            parent=parent.run_id,
        )
        cell = self.write(cell, **{PROTOCOL: CONDITIONS})
        np.savez(Path(cell.artifacts) / PER_IMAGE, **arrays)

    @precondition(lambda self: self.records)
    @rule(data=st.data(), label=st.sampled_from(("c", *LABELS)))
    def rename(self, data, label):
        _, parents, _ = column_runs(self.store.runs([]))
        columns = {run.run_id: run.backbone for run in parents}
        if not columns:
            return
        old = data.draw(st.sampled_from(sorted({*columns.values()})))
        for run_id in (run_id for run_id in columns if columns[run_id] == old):
            self.records[run_id] = self.records[run_id].model_copy(update={"label": label})

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def delete(self, data):
        del self.records[data.draw(st.sampled_from(sorted(self.records)))]

    @precondition(lambda self: not self.shared)
    @rule(move=st.booleans())
    def share(self, move):
        """Export all; with ``move`` to another home, which has nothing yet."""
        path = self.folder.with_name(f"{self.folder.name}.zip")
        try:
            export_results(self.store, ["x"], path)
        except UserError:  # there is nothing to share
            return
        self.shared.append(str(path))
        if move:
            self.records.clear()

    def runs(self):
        own = self.store.runs([])
        if not self.shared:
            return own
        return [*own, *read_shared(load_files(self.shared), shown_runs(own), self.store)[0]]

    @invariant()
    def numbers_belong_to_one_network(self):
        runs = self.runs()
        cells = sorted((run for run in runs if isinstance(run, Cell)), key=lambda c: c.started)
        if not cells:
            return
        newest = {(self.groups[cell.network], cell.seed): cell for cell in cells}
        selection = select(runs, ["x"])
        columns = defaultdict(set)
        for (name, _), shown in selection.cells.items():
            (number,) = {self.groups[cell.network] for cell in shown}
            files = [Path(newest[number, cell.seed].artifacts) / PER_IMAGE for cell in shown]
            arrays = [read_arrays(file.read_bytes()) for file in files]
            stored = [metrics_of("classification", each, None)["top1"] for each in arrays]
            mean = np.mean([cell.metrics["top1"] for cell in shown])
            assert mean == pytest.approx(np.mean(stored))
            for cell in shown:
                columns[cell.network].add(name)
        assert {cell.network for cell in cells} == columns.keys()
        assert all(len(names) == 1 for names in columns.values()), "a network has one column"
        claims = defaultdict(dict)
        for run in sorted(self.records.values(), key=lambda run: run.started):
            if isinstance(run, ParentRun) and run.label:
                claims[run.network] = run.label
        for network in claims.keys() & columns.keys():
            (name,) = columns[network]
            assert name.replace("@", " ").split()[0] == claims[network]
        self.selection = selection


Histories.TestCase.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
test_histories = Histories.TestCase
