"""Tables on several workers: the results of one process bit for bit, whoever is killed and however many drivers run."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time

import psutil
import pytest
from grid_runs import finish, outcome, start

pytestmark = pytest.mark.slow

KILLS = 4


def test_two_drivers_with_a_worker_each_compute_each_cell_once(grid_words, alone, tmp_path):
    drivers = [start(grid_words, tmp_path / "store", "--jobs", "1") for _ in range(2)]
    for driver in drivers:
        finish(driver)
    assert outcome(tmp_path / "store") == alone
    for path in tmp_path.glob("store/*/*/env.json"):
        assert len(json.loads(path.read_text())["attempts"]) == 1, path


def test_workers_and_driver_killed_at_random_moments_leave_the_same_results(grid_words, alone, tmp_path):
    draw, store = random.Random(0), tmp_path / "store"
    driver = start(grid_words, store, "--jobs", "2")
    for _ in range(KILLS):
        workers = _workers(driver)
        if driver.poll() is not None:
            break
        time.sleep(draw.uniform(0, 6))
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has ended meanwhile
            draw.choice(workers).kill()
    workers = _workers(driver)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=100)
    assert driver.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM, 0), output
    psutil.wait_procs(workers, 60)
    assert not [worker for worker in workers if worker.is_running()]
    driver = start(grid_words, store, "--jobs", "2")
    workers = _workers(driver)
    time.sleep(draw.uniform(0, 10))
    driver.kill()
    driver.communicate()
    psutil.wait_procs(workers, 60)
    assert not [worker for worker in workers if worker.is_running()]
    finish(start(grid_words, store, "--jobs", "2"))
    assert outcome(store) == alone


def _workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the workers of a driver as soon as one computes."""
    while driver.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # the driver has ended
            if found := list(filter(_is_worker, psutil.Process(driver.pid).children())):
                return found
        time.sleep(0.05)
    return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # dead, or a zombie
        return False
