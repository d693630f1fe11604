"""``doctor``: what this machine has of what the suite needs, and what to do about the rest."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from benchmark.cli.options import add, add_data, add_tracking, gave_json, placed
from benchmark.cli.parser import with_examples
from common.errors import UserError, first_line, user_error_message

GB = 1e9
REINSTALL = "install the suite again in a new virtual environment"
SCALE = "pip install 'cliptex-benchmark[scale]'"
STYLES = {"ok": "green", "warn": "yellow", "bad": "red"}
MMLAB = ("mmengine", "mmcv", "mmdetection", "mmsegmentation")
WRITE_SECONDS = 1.0  # that the measurement of the disk takes at most
QUESTION_SECONDS = 5.0  # that an answer of a server or of SLURM may take


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        name: what was looked at.
        state: ``ok``, ``warn`` (works, but not as it could) or ``bad`` (something will fail).
        found: what it is.
        todo: what to do; empty where there is nothing to do.
    """

    name: str
    state: Literal["ok", "warn", "bad"]
    found: str
    todo: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``doctor``."""
    with_examples(parser, "--data-root DIR", "--tracking-uri http://HOST:5000 --json")
    add(parser, "--json")
    add_data(parser)
    add_tracking(parser, "")


def main(options: argparse.Namespace) -> int:
    """Exit code 1 when something is bad."""
    from rich.text import Text

    from benchmark.execution.progress import console

    findings = []
    for name, check in CHECKS.items():
        try:
            new = list(check(options))
        except UserError:  # an option is wrong
            raise
        except Exception as error:  # a broken library is what is looked for
            told = user_error_message(error)
            new = [
                Finding(
                    name,
                    "bad",
                    told or f"{type(error).__name__}: {first_line(error)}",
                    "" if told else REINSTALL,
                )
            ]
        findings += new
        for each in () if options.json == "-" else new:
            state = Text(f"{each.state:<4}", style=STYLES[each.state])
            console.print(state.append(f" {each.name:<14} {each.found}", "default"))
            if each.todo:
                console.print(f"{'':<19} → {each.todo}", markup=False)
    good = all(each.state != "bad" for each in findings)
    gave_json(options, {"ok": good, "findings": [asdict(each) for each in findings]})
    return 0 if good else 1


def software(options: argparse.Namespace) -> Iterator[Finding]:
    """Python and the suite itself."""
    with suppress(metadata.PackageNotFoundError):
        yield Finding(
            "cliptex",
            "ok",
            f"{metadata.version('cliptex-benchmark')} in {Path(__file__).parents[2]}",
        )
    newer = sys.version_info >= (3, 11)
    yield Finding(
        "python",
        "ok" if newer else "bad",
        f"{platform.python_version()} ({sys.executable})",
        "" if newer else "make the virtual environment with Python 3.11 or later",
    )


def machine(options: argparse.Namespace) -> Iterator[Finding]:
    """Cores, and the memories that trainings run out of."""
    from benchmark.execution.task import cores

    size = memory()
    yield Finding(
        "memory",
        "ok" if size >= 8 * GB else "warn",
        f"{size / GB:.1f} GB for {cores()} cores",
        "" if size >= 8 * GB else "run one task at a time: --jobs 1",
    )
    if (shared := Path("/dev/shm")).is_dir():
        free = shutil.disk_usage(shared).free
        yield Finding(
            "shared memory",
            "ok" if free >= GB else "warn",
            f"{free / GB:.1f} GB free in {shared}",
            "" if free >= GB else "loading processes need it: docker run --shm-size=8g",
        )


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or what its control group
    admits."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max": as much as there is
            sizes.append(int(Path(file).read_text()))
    return min(sizes)


def devices(options: argparse.Namespace) -> Iterator[Finding]:
    """torch, and the GPUs that it sees."""
    import torch

    driver = shutil.which("nvidia-smi")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    if not torch.cuda.is_available():
        todo = (
            "this torch has no CUDA: install one that has, see"
            " https://pytorch.org/get-started/locally"
        )
        if torch.version.cuda:
            todo = f"torch wants a driver for {build}; see nvidia-smi, and CUDA_VISIBLE_DEVICES"
        yield Finding(
            "torch",
            "warn" if driver else "ok",
            f"{torch.__version__}, {build}; computes on the CPU",
            todo if driver else "",
        )
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {build}")
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        busy = free < 0.5 * total
        yield Finding(
            f"cuda:{number}",
            "warn" if busy else "ok",
            f"{torch.cuda.get_device_name(number)}, {free / GB:.1f} of {total / GB:.1f} GB free",
            "another process uses it; see nvidia-smi, or choose others with --executor-arg gpus=…"
            * busy,
        )


def mmlab(options: argparse.Namespace) -> Iterator[Finding]:
    """Which distributions of OpenMMLab, and whose operators."""
    there = {
        name: metadata.version(name)
        for name in [*MMLAB, *(f"onedl-{each}" for each in MMLAB), "mmdet"]
        if any(metadata.distributions(name=name))
    }
    doubled = [
        name
        for name in there
        if f"onedl-{name}" in there or (name == "mmdet" and "onedl-mmdetection" in there)
    ]
    missing = [f"onedl-{name}" for name in MMLAB if not {name, f"onedl-{name}"} & there.keys()]
    todo = (
        f"both write the same files: pip uninstall {' '.join(doubled)}, then install the suite"
        " again"
        if doubled
        else ""
    )
    if missing:
        todo = f"pip install {' '.join(missing)}"
    found = ", ".join(f"{name} {version}" for name, version in there.items())
    yield Finding("mmlab", "bad" if todo else "ok", found or "not there", todo)
    package = find_spec("mmcv")
    compiled = [
        path
        for place in (package and package.submodule_search_locations) or ()
        for path in Path(place).glob("_ext*")
    ]
    yield Finding(
        "mmcv's ops",
        "ok",
        "compiled" if compiled else "nms and roi_align from torchvision (all that is needed)",
    )


def tracking(options: argparse.Namespace) -> Iterator[Finding]:
    """The MLflow store; nothing is made there."""
    from common.secrets import hide_secrets
    from reports.mlflow.client import database_schema, known_schemas, tracking_uri

    uri = tracking_uri(options.tracking_uri)
    shown = f"{hide_secrets(uri)}, MLflow {metadata.version('mlflow')}"
    if uri.startswith("sqlite:///") and not (file := Path(uri.removeprefix("sqlite:///"))).exists():
        able = os.access(file.parent, os.W_OK)
        yield Finding(
            "mlflow",
            "ok" if able else "bad",
            f"{shown}; not there yet",
            "the first run makes it" if able else f"make {file.parent} a folder that you can write",
        )
        return
    try:
        if uri.startswith("http"):
            with urllib.request.urlopen(
                f"{uri.rstrip('/')}/version", timeout=QUESTION_SECONDS
            ) as answer:
                yield Finding("mlflow", "ok", f"{shown}; the server has {answer.read(20).decode()}")
            return
        schema, known = database_schema(uri), known_schemas()
    except Exception as error:  # each database's driver has its own
        yield Finding(
            "mlflow",
            "bad",
            f"{shown}: {first_line(error)}",
            "start the server, or give another --tracking-uri",
        )
        return
    shown += f", schema {schema or '(none yet)'}"
    if schema in ("", known[-1]):
        yield Finding("mlflow", "ok", shown)
    elif schema in known:
        todo = "the next run migrates it; older versions of MLflow cannot read it then"
        yield Finding("mlflow", "warn", f"{shown}, not the newest", todo)
    else:
        todo = "a newer MLflow wrote it: pip install --upgrade mlflow, or use another store"
        yield Finding("mlflow", "bad", shown, todo)


def artifacts(options: argparse.Namespace) -> Iterator[Finding]:
    """``$CLIPTEX_HOME``: room, speed, and locks."""
    from common.files import home
    from common.locks import lock_path, locked

    folder, file = home(), home() / f".doctor-{os.getpid()}"
    another = "set CLIPTEX_HOME to another folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        speed = write_speed(file)
    except OSError as error:
        yield Finding("home", "bad", f"{folder}: {error.strerror or error}", another)
        return
    free = shutil.disk_usage(folder).free
    problems = [
        f"less than {least} GB are free: `cache ls`, or {another}"
        for least in (1, 20)
        if free < least * GB
    ][:1]
    problems += [f"this is slow: {another} (a local disk)"] * (speed < 50e6)
    state: Literal["ok", "warn", "bad"] = "bad" if free < GB else "warn" if problems else "ok"
    yield Finding(
        "home",
        state,
        f"{folder}, {free / GB:.0f} GB free, writes {speed / 1e6:.0f} MB/s",
        "; ".join(problems),
    )
    try:
        with locked(lock_path("doctor", "")):
            yield Finding("locks", "ok", "work there")
    except UserError as error:
        yield Finding("locks", "bad", str(error))


def write_speed(file: Path) -> float:
    """Bytes a second that reach the disk, of up to 256 MB that no file system can compress."""
    data, written = os.urandom(1 << 22), 0
    start = time.perf_counter()
    try:
        with file.open("wb", buffering=0) as stream:
            while written < 1 << 28 and time.perf_counter() - start < WRITE_SECONDS:
                written += stream.write(data)
                os.fsync(stream.fileno())
        return written / (time.perf_counter() - start)
    finally:
        file.unlink(missing_ok=True)


def executors(options: argparse.Namespace) -> Iterator[Finding]:
    """Who could run units of work."""
    from benchmark.execution import EXECUTORS

    known = {"local": local, "slurm": slurm, "ray": ray}
    for name, about in EXECUTORS.descriptions().items():
        yield known[name]() if name in known else Finding(name, "ok", about)


def local() -> Finding:
    """This machine's processes."""
    from benchmark.execution.task import cores, threads_per_task

    return Finding(
        "local",
        "ok",
        f"{cores()} cores, a task computes with {threads_per_task()} of them, or on a GPU",
    )


def slurm() -> Finding:
    """submitit here, and a controller that answers."""
    has = bool(find_spec("submitit"))
    if not shutil.which("sbatch"):
        return Finding(
            "slurm", "ok", "not on this machine (no sbatch)", "only --executor slurm needs it"
        )
    if not has:
        return Finding("slurm", "warn", "sbatch, but no submitit", f"for --executor slurm: {SCALE}")
    try:
        asked = ["sinfo", "-h", "-o", "%P %D nodes"]
        told = subprocess.run(
            asked, capture_output=True, text=True, timeout=QUESTION_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = first_line(RuntimeError(getattr(error, "stderr", "") or error))
        return Finding(
            "slurm",
            "warn",
            f"sbatch, but sinfo fails: {said}",
            "see that the controller is up and answers",
        )
    return Finding(
        "slurm",
        "ok",
        f"submitit {metadata.version('submitit')};"
        f" {', '.join(told.splitlines()) or 'no partitions'}",
    )


def ray() -> Finding:
    """Ray's wheel, and a cluster that this shell names."""
    if not find_spec("ray"):
        return Finding("ray", "ok", "not installed", f"only --executor ray needs it: {SCALE}")
    where = os.environ.get("RAY_ADDRESS")
    return Finding(
        "ray", "ok", f"{metadata.version('ray')}" + (f", RAY_ADDRESS={where}" if where else "")
    )


def datasets(options: argparse.Namespace) -> Iterator[Finding]:
    """Those in their places, by names and counts of the validation split: ``data check`` looks at
    all."""
    import benchmark.catalog  # noqa: F401 – registers every dataset
    from probes.datasets.specs.webdataset import register_folders
    from probes.datasets.survey import survey
    from probes.registry import DATASETS

    if options.data_root is None and not options.data:
        yield Finding(
            "datasets", "ok", "not looked for (the suite mini needs none)", "--data-root DIR looks"
        )
        return
    if options.data_root and not options.data_root.is_dir():
        yield Finding(
            "datasets", "bad", f"{options.data_root} is no folder", "give another --data-root"
        )
        return
    register_folders(options.data_root)
    rows = survey(options.data_root, placed(options.data), splits=("val",))
    for row in rows:
        if row.state != "absent":
            wanted = f" of {row.expected['val']}" if "val" in row.expected else ""
            state: Literal["ok", "warn", "bad"] = "bad" if row.state == "broken" else "ok"
            todo = row.message if state == "bad" else ""
            if row.state == "partial" and row.found["val"] != row.expected.get("val"):
                state, todo = "warn", "get the rest, or run with --partial"
            yield Finding(row.name, state, f"val {row.found.get('val', 0)}{wanted}", todo)
    absent = [row.name for row in rows if row.state == "absent"]
    named = [name for name in absent if not DATASETS[name].folder.startswith("wds_")]
    yield Finding(
        "datasets",
        "ok",
        f"{len(rows) - len(absent)} found; not there: {', '.join(named)},"
        f" {len(absent) - len(named)} webdataset folders",
        "`data get` brings those that you want",
    )


CHECKS: dict[str, Callable[[argparse.Namespace], Iterator[Finding]]] = {
    "software": software,
    "memory": machine,
    "torch": devices,
    "mmlab": mmlab,
    "mlflow": tracking,
    "home": artifacts,
    "executors": executors,
    "datasets": datasets,
}
