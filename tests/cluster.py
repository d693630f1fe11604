"""A real SLURM of two nodes and a real Ray cluster of three, on this machine, for tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kit.waiting import is_soon
from tests.servers import free_port

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={ports[0]}
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
KillWait=10
KillOnBadExit=1
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000 Gres=gpu:4
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000 Gres=gpu:4
PartitionName=debug Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


@pytest.fixture(scope="session")
def slurm_config():
    """``SLURM_CONF`` of a SLURM that runs until the session ends."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if not all(shutil.which(name, path=path) for name in DAEMONS):
        pytest.skip("no SLURM here: apt-get install slurm-wlm munge")
    if os.getuid() != 0:
        pytest.skip("only root can start a SLURM for tests")
    pytest.importorskip("submitit", reason="no submitit: pip install submitit")
    with ExitStack() as stack:
        # short, since a socket's path has at most 107 characters, and owned by root for munged
        folder = tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)
        yield stack.enter_context(_slurm(Path(stack.enter_context(folder))))


@contextmanager
def _slurm(folder: Path):
    for name in ("state", "spooln0", "spooln1"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            folder=folder,
            ports=[free_port() for _ in range(3)],
        )
    )
    # fake GPUs: SLURM accepts any four devices and numbers them
    (folder / "gres.conf").write_text(
        "".join(f"Name=gpu File=/dev/{name}\n" for name in ("full", "null", "random", "zero"))
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munge += [f"--key-file={key}", "--num-threads=2"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("log", "pid", "seed")]
    # jobs inherit the daemons' environment: none of a test's own must be in it
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "SLURM_CONF": str(config)}
    daemons = [munge, ["slurmctld", "-D", "-f", str(config)]]
    daemons += [["slurmd", "-D", "-N", node, "-f", str(config)] for node in ("n0", "n1")]
    running: list[subprocess.Popen] = []
    with (folder / "daemons.log").open("w") as log:
        try:
            for command in daemons:
                running.append(
                    subprocess.Popen(
                        command, stdout=log, stderr=log, env=env, start_new_session=True
                    )
                )
                is_soon(lambda: (folder / "munge.socket").exists())
            sinfo = ["sinfo", "-h", "-t", "idle", "-o", "%D"]

            def idle_nodes():
                done = subprocess.run(sinfo, env=env, capture_output=True, text=True)
                return done.stdout.strip()

            if not is_soon(lambda: idle_nodes() == "2"):
                logs = "\n".join(path.read_text()[-1000:] for path in sorted(folder.glob("*.log")))
                pytest.fail(f"SLURM did not start:\n{logs}")
            yield str(config)
        finally:
            subprocess.run(
                ["scancel", "--user=root", "--full", "--signal=KILL"], env=env, capture_output=True
            )
            subprocess.run(["scancel", "--user=root"], env=env, capture_output=True)
            for daemon in reversed(running):
                daemon.send_signal(signal.SIGTERM)
            for daemon in reversed(running):
                try:
                    daemon.wait(3)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait(10)


@pytest.fixture
def slurm(slurm_config, monkeypatch) -> str:
    """Let SLURM's commands use the test SLURM."""
    monkeypatch.setenv("SLURM_CONF", slurm_config)
    return slurm_config


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray with a one-core node, which the drivers connect to, and two two-core nodes."""
    pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        yield cluster
    finally:
        cluster.shutdown()
