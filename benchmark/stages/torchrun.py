"""A training of several processes, on the nodes and GPUs of one SLURM job: torchrun, started on
each node by the job itself."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from backbones.cliptex.training.distributed import first_process
from benchmark.execution import interrupts
from benchmark.execution.progress import UnitProgress, console, reporter, reporting
from benchmark.execution.unit import THREADS, Outcome
from benchmark.stages.weights import TrainedWeights, TrainingInputs, train_unit
from common.files import home
from reports.mlflow.heartbeat import Heartbeat, read

NEWS = 5.0  # seconds that a signal to the job may take from node to node
# SLURM sends its signals to torchrun and its processes too, and torchrun kills these where they
# should save: only this process decides, and speaks to them by SIGINT.
DEAF = ["sh", "-c", """trap '' TERM USR2; exec "$@" """, "torchrun"]


def torchrun_unit(inputs: TrainingInputs, patience: int = 90) -> TrainedWeights | None:
    """Train with a process for each GPU of each node of this SLURM job (one a node on CPUs); called
    once on each node. The processes of a node share the unit's threads.

    An interruption is passed on: the first process saves what it has, and the job, queued again,
    goes on from there.

    Args:
        patience: seconds that the processes have for saving, once they are asked to.

    Returns:
        on the first node, what ``train_unit`` returns; its errors are raised there too.

    Raises:
        RuntimeError: torchrun failed; what it said is above.
    """
    job, node = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_NODEID", "0")
    gpus = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    count = len(gpus) or 1
    shape = {
        "nnodes": os.environ.get("SLURM_JOB_NUM_NODES", "1"),
        "nproc-per-node": count,
        "node-rank": node,
        "master-addr": os.environ[
            "SLURM_LAUNCH_NODE_IPADDR"
        ],  # a job's steps are launched on its first node
        "master-port": 20000 + int(job) % 12000,  # below the ports that systems give to anybody
    }
    share = str(
        max(1, int(os.environ["OMP_NUM_THREADS"]) // count)
    )  # ``execute`` has set the unit's
    env = {
        **os.environ,
        **dict.fromkeys(THREADS, share),
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGINT",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(patience),
    }
    words = [f"--{key}={value}" for key, value in shape.items()]
    with tempfile.TemporaryDirectory(prefix=f"train-{job}-{node}-", dir=home() / "tasks") as name:
        folder = Path(name).absolute()
        (folder / "inputs").write_bytes(pickle.dumps(inputs))
        process = subprocess.Popen(
            [
                *DEAF,
                sys.executable,
                "-m",
                "torch.distributed.run",
                *words,
                "-m",
                __name__,
                str(folder),
            ],
            stdout=console.file,
            stderr=subprocess.STDOUT,
            env=env,
        )
        try:
            while process.poll() is None:
                reporter().follow(read(folder / "status.json"))
                time.sleep(0.5)
            if process.returncode:
                time.sleep(
                    NEWS
                )  # the processes of other nodes may have been interrupted, and this one not yet
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()  # torchrun gives its processes ``patience`` seconds
            raise
        if (folder / "outcome").is_file():
            return pickle.loads((folder / "outcome").read_bytes()).result()
    if process.returncode:
        raise RuntimeError(
            f"torchrun ended with code {process.returncode} on node {node} of job {job}"
        )
    return None


def main(folder: Path) -> int:
    """One of torchrun's processes; the first leaves its outcome in ``folder``. Returns the exit
    code."""
    inputs: TrainingInputs = pickle.loads((folder / "inputs").read_bytes())
    if not first_process():
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # it helps the first to end its step, which then saves
        train_unit(inputs)
        return 0
    interrupts.install(once=True, numbers=[signal.SIGINT])
    with Heartbeat(folder / "status.json") as beat, reporting(UnitProgress(beat)):
        outcome = Outcome.of(lambda: train_unit(inputs))
    (folder / "outcome").write_bytes(pickle.dumps(outcome))
    return int(outcome.kind != "done")


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
