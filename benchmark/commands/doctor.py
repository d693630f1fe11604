"""``doctor``: check that this machine is ready, and say what to do if it is not."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from benchmark.commands.looking import print_state
from benchmark.options import TrackingOptions
from benchmark.parser import JsonOptions
from cliptex_common.errors import UserError, first_line, user_error_message
from cliptex_common.process import cores
from cliptex_common.settings import options_dataclass

GB = 1e9
STYLES = {"ok": "green", "warn": "yellow", "bad": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the output.

    Attributes:
        name: what was checked.
        state: ``ok``, ``warn`` (works, with limits) or ``bad`` (something will fail).
        value: the result.
        remedy: what to do; '' for nothing.
    """

    name: str
    state: str
    value: str
    remedy: str = ""


@options_dataclass
class Doctor(JsonOptions, TrackingOptions):
    """Check that this machine is ready.

    examples:
      python -m benchmark doctor
      python -m benchmark doctor --repair
      python -m benchmark doctor --tracking-uri http://HOST:5000 --json
    """

    repair: bool = False
    """let a SQLite store that was moved find its artifacts, which lie beside it"""

    def main(self) -> int:
        """Print the findings; exit code 1 if one is bad."""
        findings = [
            finding for name, check in CHECKS.items() for finding in _run(name, check, self)
        ]
        ready = all(finding.state != "bad" for finding in findings)
        if not self.output_json({"ok": ready, "findings": [asdict(each) for each in findings]}):
            for each in findings:
                remedy = each.remedy and f"→ {each.remedy}"
                text = f"{each.name:<14} {each.value}"
                print_state(f"{each.state:<4}", STYLES[each.state], text, remedy)
        return 0 if ready else 1


DOCTOR_COMMAND = Doctor
Check = Callable[[Doctor], Iterator[Finding]]


def _run(name: str, check: Check, options: Doctor) -> list[Finding]:
    """The findings of a check; an error is one, too: broken libraries are what is looked for."""
    try:
        return list(check(options))
    except Exception as error:
        if message := user_error_message(error):  # it says what to do
            return [Finding(name, "bad", message)]
        remedy = "fix that, or reinstall the suite in a new virtual environment"
        return [Finding(name, "bad", f"{type(error).__name__}: {first_line(error)}", remedy)]


def _python(options: Doctor) -> Iterator[Finding]:
    """The suite and the interpreter."""
    suite = f"suite {metadata.version('cliptex-benchmark')} in {Path(__file__).parents[2]}"
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable}), {suite}")
    yield Finding("processor", "ok", f"{cores()} cores")


def _torch(options: Doctor) -> Iterator[Finding]:
    """torch and its accelerators."""
    import torch

    from cliptex_common import device
    from cliptex_common.process import DRIVER_TOOLS, VARIABLES

    value, count = str(torch.__version__), device.device_count()
    state, remedy = "ok", ""
    if not count:
        value += "; it sees no GPU"
        if any(map(shutil.which, DRIVER_TOOLS)):
            state = "warn"
            remedy = "install a torch for your driver: https://pytorch.org/get-started/locally"
    yield Finding("torch", state, value, remedy)
    for number in range(count):
        accelerator = torch.device(device.current_device().type, number)
        value, state, remedy = device.device_name(accelerator), "ok", ""
        if memory := device.memory(accelerator):
            free, total = memory
            value += f", {free / GB:.0f} of {total / GB:.0f} GB free"
            if free <= 0.5 * total:
                variables = " or ".join(VARIABLES.get(accelerator.type, ()))
                state = "warn"
                remedy = f"another process uses it; hide it by {variables}"
        yield Finding(str(accelerator), state, value, remedy)


def _mmlab(options: Doctor) -> Iterator[Finding]:
    """The distributions of OpenMMLab: two of one library write the same files."""
    for name in ("mmengine", "mmcv", "mmdetection", "mmsegmentation"):
        distributions = (name, f"onedl-{name}")
        installed = [each for each in distributions if any(metadata.distributions(name=each))]
        versions = ", ".join(f"{each} {metadata.version(each)}" for each in installed)
        if len(installed) == 1:
            yield Finding(name, "ok", versions)
        elif installed:
            remedy = f"pip uninstall {name}, then reinstall onedl-{name}"
            yield Finding(name, "bad", versions, remedy)
        else:
            yield Finding(name, "bad", "not installed", f"pip install onedl-{name}")


def _mlflow(options: Doctor) -> Iterator[Finding]:
    """The MLflow store; none is created."""
    import requests

    from cliptex_common.errors import hide_secrets
    from reports.store import check_database, tracking_uri

    uri = tracking_uri(options.tracking_uri)
    value = f"{hide_secrets(uri)}, MLflow {metadata.version('mlflow')}"
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        yield Finding("mlflow", "ok", f"{value}; the first run creates it")
        return
    try:
        if uri.startswith("http"):
            requests.get(f"{uri.rstrip('/')}/version", timeout=5).raise_for_status()
        else:
            check_database(uri)
        yield Finding("mlflow", "ok", value)
    except Exception as error:  # each database driver has its own
        remedy = "start the server, or give another --tracking-uri"
        yield Finding("mlflow", "bad", f"{value}: {first_line(error)}", remedy)


def _artifacts(options: Doctor) -> Iterator[Finding]:
    """Where the files of runs are, and whether those of finished tasks are there."""
    from reports.records import TAGS
    from reports.store import (
        SERVED,
        START_SERVER,
        Store,
        artifact_folder,
        missing_artifacts,
        repair_artifacts,
        served_artifacts,
        sqlite_file,
        tag_key,
        tracking_uri,
    )

    uri = tracking_uri(options.tracking_uri)
    database = sqlite_file(uri)
    value, repaired = artifact_folder(uri, "") or "where the server keeps them", ""
    if database is not None and database.exists():
        if options.repair:
            repaired = f"; {repair_artifacts(database)} entries repaired"
        store = Store(uri)
        cells = f"attributes.status = 'FINISHED' and tags.`{tag_key(TAGS['key'])}` != ''"
        runs = store.runs(list(store.experiments()), cells)
        value = ", ".join(sorted({run.artifacts.rsplit("/", 3)[0] for run in runs})) or value
        if any(run.artifacts.startswith(SERVED) for run in runs):
            yield Finding("artifacts", "bad", served_artifacts(uri), START_SERVER)
            return
        if missing := missing_artifacts([run.artifacts for run in runs]):
            yield Finding("artifacts", "bad", f"{value}{repaired}; {missing}")
            return
    yield Finding("artifacts", "ok", f"{value}{repaired}")


def _home(options: Doctor) -> Iterator[Finding]:
    """Space and locks in ``$CLIPTEX_HOME``."""
    from cliptex_common.files import home, lock_path, locked

    folder, remedy = home(), "set CLIPTEX_HOME to another folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(lock_path("doctor", "")):
            free = shutil.disk_usage(folder).free
    except (OSError, UserError) as error:
        yield Finding("home", "bad", user_error_message(error) or f"{folder}: {error}", remedy)
        return
    state = "ok" if free > 20 * GB else "bad" if free < GB else "warn"
    remedy = "" if state == "ok" else f"see `cache ls`, or {remedy}"
    yield Finding("home", state, f"{folder}, {free / GB:.0f} GB free", remedy)


CHECKS: dict[str, Check] = {
    "python": _python,
    "torch": _torch,
    "mmlab": _mmlab,
    "mlflow": _mlflow,
    "artifacts": _artifacts,
    "home": _home,
}
