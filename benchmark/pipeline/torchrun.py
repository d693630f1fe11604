"""A training of several processes, on the nodes and GPUs of one SLURM job: torchrun, started on each node by the job itself."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

from backbones.files import home, replacing
from benchmark.execution import interrupts
from benchmark.execution.progress import Bar, console, reporting
from benchmark.pipeline.weights import TrainedWeights, TrainingInputs, find_weights, train_unit
from reports.tracking import Tracker

PATIENCE = 60.0  # seconds that the processes have for saving what they have


def torchrun_unit(inputs: TrainingInputs) -> TrainedWeights:
    """Train with a process for each GPU of each node of this SLURM job (one a node on CPUs); called once on each node.

    An interruption is passed on: the processes save what they have, and the job, queued again, goes on from there.

    Raises:
        RuntimeError: torchrun failed; what it said is above.
    """
    job, node = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_NODEID", "0")
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    gpus = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    file = home() / "tasks" / f"train-{job}-{node}.pkl"
    with replacing(file) as temporary:
        temporary.write_bytes(pickle.dumps(inputs))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        str(nodes),
        "--nproc-per-node",
        str(len(gpus) or 1),
    ]
    command += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-id",
        job,
        "--rdzv-endpoint",
        f"{_first_node()}:{20000 + int(job) % 20000}",
    ]
    process = subprocess.Popen(
        [*command, "-m", "benchmark.pipeline.torchrun", str(file)], stdout=console.file, stderr=subprocess.STDOUT
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(PATIENCE)
        raise
    finally:
        file.unlink(missing_ok=True)
    if code:
        raise RuntimeError(f"torchrun ended with code {code} on node {node} of job {job}")
    found = find_weights(inputs, Tracker(inputs.experiment))
    if found is None:
        raise RuntimeError(f"torchrun ended well, and there are no weights at {inputs.out}")
    return found


torchrun_unit.several_nodes = True  # type: ignore[attr-defined]


def _first_node() -> str:
    """The address of the job's first node."""
    names = _told("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
    address = re.search(r"NodeAddr=(\S+)", _told("scontrol", "-o", "show", "node", names[0]))
    return address[1] if address else names[0]


def _told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(file: Path) -> None:
    """One of torchrun's processes."""
    interrupts.install()
    inputs: TrainingInputs = pickle.loads(file.read_bytes())
    first = os.environ.get("RANK", "0") == "0"
    with Bar(every=15.0 if first else float("inf")) as bar, reporting(bar):
        train_unit(inputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
