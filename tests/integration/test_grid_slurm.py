"""Tables on a real Slurm: munge, a controller and two nodes of one core on this machine."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grid_runs import finish, outcome, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))) or os.geteuid() != 0,
        reason="the daemons of Slurm are not installed (apt install slurmctld slurmd slurm-client munge), or not root",
    ),
]
pytest.importorskip("submitit", reason="submitit is not installed: pip install 'lit-prune[slurm]'")

CANCELLED = 2


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """A cluster with a configuration of its own, to which SLURM_CONF points meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # a short path: sockets are in it
    host, daemons = socket.gethostname(), []
    (folder / "state").mkdir()
    (folder / "key").write_bytes(secrets.token_bytes(1024))
    (folder / "key").chmod(0o400)
    nodes = [f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={_port()} CPUs=1" for number in (1, 2)]
    (folder / "slurm.conf").write_text("\n".join([
        "ClusterName=test", f"SlurmctldHost={host}(127.0.0.1)", f"SlurmctldPort={_port()}",
        "SlurmUser=root", "SlurmdUser=root", "AuthType=auth/munge", f"AuthInfo=socket={folder}/munge,cred_expire=10",
        "CredType=cred/munge", f"StateSaveLocation={folder}/state", f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/ctld.pid", f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/ctld.log", f"SlurmdLogFile={folder}/slurmd-%n.log",
        "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "MpiDefault=none",
        "SelectType=select/cons_tres", "SelectTypeParameters=CR_CPU", "KillWait=5", "ReturnToService=2",
        *nodes, "PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP",
    ]) + "\n")  # fmt: skip
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = [f"--{name}={folder}/{file}" for name, file in (
        ("key-file", "key"), ("socket", "munge"), ("pid-file", "munge.pid"), ("log-file", "munge.log"),
        ("seed-file", "munge.seed"),
    )]  # fmt: skip
    try:
        for words in (
            ["munged", "-F", "--force", *munge],
            ["slurmctld", "-D"],
            *(["slurmd", "-D", "-N", f"n{n}"] for n in (1, 2)),
        ):
            daemons.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        subprocess.run(["srun", "-n1", "-t1", "true"], check=True, timeout=120, capture_output=True)
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(30)
            daemon.kill()
        os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)
        shutil.rmtree(folder, ignore_errors=True)


def _running() -> list[str]:
    asked = subprocess.run(["squeue", "-h", "-r", "-t", "R", "-o", "%i"], capture_output=True, text=True, check=True)
    return asked.stdout.split()


def test_cancelled_and_requeued_jobs_and_a_drained_node_change_no_result(grid_words, alone, slurm, tmp_path):
    draw, store = random.Random(0), tmp_path / "store"
    driver = start(grid_words, store, "--on", "slurm", "--cpus", "1")
    cancelled = 0
    while cancelled < CANCELLED and driver.poll() is None:
        time.sleep(draw.uniform(1, 8))
        if jobs := _running():
            command = ["scancel"] if cancelled else ["scontrol", "requeue"]
            subprocess.run([*command, draw.choice(jobs)], check=False, capture_output=True)
            cancelled += 1
    subprocess.run(["scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test"], check=True)
    output = finish(driver)
    assert cancelled == CANCELLED
    assert outcome(store) == alone, output


def test_options_that_sbatch_refuses_are_one_line(grid_words, slurm, tmp_path):
    process = start(grid_words, tmp_path / "store", "--on", "slurm", "--cpus", "1", "--slurm", "partition=nowhere")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 2
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --slurm: sbatch refused the jobs")
