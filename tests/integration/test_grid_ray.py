"""Tables on a real Ray cluster of two nodes on this machine, whose workers are killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil
import pytest
from grid_runs import finish, outcome, start

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lit-prune[ray]'")

KILLS = 2
ONE_CORE = ("--on", "ray", "--cpus", "1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, list[psutil.Process]]]:
    """Address and nodes of a cluster of a head and another node, of one core each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray")  # a short path: sockets are in it
    patient = {"RAY_raylet_start_wait_time_s": "180"}  # on a busy machine
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **patient}
    os.environ |= settings
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    head = ["--head", "--port", str(port), "--temp-dir", folder, "--include-dashboard", "false"]
    nodes = []
    try:
        for words in (head, ["--address", f"127.0.0.1:{port}"]):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            nodes.append(psutil.Popen([*command, *words], **quiet))
            _wait_for(f"127.0.0.1:{port}", len(nodes))
        yield f"127.0.0.1:{port}", nodes
    finally:
        ended = [child for node in nodes for child in node.children(recursive=True)]
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
        psutil.wait_procs(nodes, 30)
        for process in ended:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for name in settings:
            del os.environ[name]
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str, count: int) -> None:
    """Wait until a cluster has so many nodes."""
    code = "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR', log_to_driver=False); print(len(ray.nodes()))"
    until = time.monotonic() + 240
    while time.monotonic() < until:
        found = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True)
        if found.stdout.strip() == str(count):
            return
        time.sleep(1)
    raise AssertionError(f"the cluster does not come up: {found.stderr}")


def test_killed_tasks_of_a_cluster_are_done_by_others_with_the_same_results(grid_words, alone, cluster, tmp_path):
    address, nodes = cluster
    draw, kills = random.Random(0), 0
    driver = start(grid_words, tmp_path / "store", *ONE_CORE, "--address", address)
    while kills < KILLS and driver.poll() is None:
        time.sleep(draw.uniform(0, 4))
        tasks = [
            process for node in nodes for process in node.children(recursive=True)
            if "ray::_compute" in " ".join(_words(process))
        ]  # fmt: skip
        if tasks:
            with contextlib.suppress(psutil.NoSuchProcess):
                draw.choice(tasks).kill()
                kills += 1
    output = finish(driver)
    assert kills
    assert "its worker died" in output
    assert outcome(tmp_path / "store") == alone


def test_more_than_a_node_has_is_refused(grid_words, cluster, tmp_path):
    process = start(grid_words, tmp_path / "store", "--on", "ray", "--cpus", "2", "--address", cluster[0])
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "error: --cpus: must be at most 1, as on the largest node, got 2" in output


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
