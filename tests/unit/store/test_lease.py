"""Leases between processes and hosts: clocks that differ, processes that die, and one result for each address."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections import Counter

import pytest
from process import python

from lit_prune.store import Locked, Node, Store, lease

KILLS = 100
WORKERS = 8

HOLD = """
import socket, sys
host, seconds, silent = sys.argv[2], float(sys.argv[3]), sys.argv[4] == "silent"
socket.gethostname = lambda: host
from pathlib import Path
from lit_prune.store import lease
lease.SECONDS, lease.HEARTBEAT = seconds, 3600 if silent else seconds / 8
with lease.hold(Path(sys.argv[1]), "it", wait=False) as held:
    print("held", flush=True)
    sys.stdin.readline()
    held.check()
"""

COMPUTE = """
import os, random, sys, time
from lit_prune.store import Locked, Store
store, draw = Store(sys.argv[1]), random.Random(int(sys.argv[2]))
todo = list(range(int(sys.argv[3])))
while todo:
    number = draw.choice(todo)
    try:
        with store.hold("cell", {"number": number}) as node:
            if node.result is None:
                (node.folder / "starts").open("a").write(f"{os.getpid()}\\n")
                time.sleep(draw.uniform(0, 0.02))
                node.finish({"number": number, "by": os.getpid()})
                with open(sys.argv[4], "a") as log:
                    log.write(f"{number}\\n")
        todo.remove(number)
    except Locked:
        time.sleep(0.01)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.lease"


@contextlib.contextmanager
def holder(path, host: str, seconds: float, how: str = "alive"):
    """A process that holds a lease as if on another host, with or without heartbeats."""
    with python(HOLD, path, host, seconds, how) as process:
        assert process.stdout.readline() == "held\n", process.stderr.read()
        yield process
        process.kill()


@pytest.fixture
def quick(monkeypatch) -> float:
    monkeypatch.setattr(lease, "SECONDS", 1.6)
    monkeypatch.setattr(lease, "HEARTBEAT", 0.2)
    return 1.6


@pytest.mark.parametrize("skew", [-600, 0, 600])
def test_the_lease_of_a_living_process_of_another_host_is_kept_whatever_its_clock(path, quick, skew):
    """A heartbeat sets the time of the file server; here it is set to that of another clock all the while."""
    with holder(path, "other", quick):
        since = time.monotonic()
        while time.monotonic() - since < 2 * quick:
            os.utime(path, (time.time() + skew, time.time() + skew))
            with pytest.raises(Locked), lease.hold(path, "it", wait=False):
                pass
            time.sleep(0.1)


@pytest.mark.parametrize("skew", [-600, 0, 600])
def test_the_lease_of_a_silent_process_of_another_host_is_taken_over_after_the_stated_time(path, quick, skew):
    with holder(path, "other", quick, "silent") as process:
        os.utime(path, (time.time() + skew, time.time() + skew))
        since = time.monotonic()
        with lease.hold(path, "it", wait=True):
            assert quick <= time.monotonic() - since < quick + 5
            _, errors = process.communicate("leave\n")
            assert process.returncode == 1
            assert "Locked: it: this process was out of reach for 2 s, and another one took over" in errors
            assert lease.owner(path).pid == os.getpid()


def test_the_lease_of_a_process_that_died_here_is_free_at_once(path):
    with holder(path, os.uname().nodename, lease.SECONDS) as process:
        assert lease.is_held(path)
        process.kill()
        process.wait()
        since = time.monotonic()
        with lease.hold(path, "it", wait=False):
            assert time.monotonic() - since < 1


def test_the_lease_of_another_process_with_the_same_number_is_free_at_once(path):
    """Process numbers are used again; the start time in the lease tells two processes apart."""
    with lease.hold(path, "it", wait=False):
        content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"start": str(int(content["start"]) - 1)}))
    with lease.hold(path, "it", wait=False) as held:
        held.check()


def test_an_unreadable_lease_is_taken_over_after_the_stated_time(path, quick):
    path.write_text("")
    since = time.monotonic()
    with lease.hold(path, "it", wait=True) as held:
        assert time.monotonic() - since >= quick
        held.check()
    assert not path.exists()


def test_the_successor_of_a_process_that_died_while_it_took_over_takes_over(path):
    """It had decided that it is next, but not yet put its lease in place."""
    dead = {"host": os.uname().nodename, "pid": 2**22, "start": "1", "since": ""}
    with lease.hold(path, "it", wait=False):
        dead["machine"] = json.loads(path.read_text())["machine"]
    path.write_text(json.dumps(dead | {"token": "first"}))
    path.with_name(f".{path.name}.after-first").write_text(json.dumps(dead | {"token": "second"}))
    with lease.hold(path, "it", wait=False) as held:
        held.check()
        assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert list(path.parent.iterdir()) == []


def test_a_contender_that_read_a_lease_before_another_took_it_over_does_not_take_it_too(path, monkeypatch):
    with lease.hold(path, "it", wait=False):
        content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"pid": 2**22, "start": "1", "token": "first"}))
    first, late, is_gone = lease.Lease(path, "it"), lease.Lease(path, "it"), lease._is_gone

    def overtaken(place, seen):
        monkeypatch.setattr(lease, "_is_gone", is_gone)
        assert first.take()
        return is_gone(place, seen)

    monkeypatch.setattr(lease, "_is_gone", overtaken)
    assert not late.take()
    first.check()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    first.release()
    assert list(path.parent.iterdir()) == []


def test_a_refused_process_learns_who_holds_the_lease(path):
    with holder(path, "node-7", lease.SECONDS) as process:
        with pytest.raises(Locked) as refused, lease.hold(path, "cell 0123", wait=False):
            pass
        assert lease.owner(path).host == "node-7"
    assert str(refused.value) == f"cell 0123 is being computed by process {process.pid} on node-7"


def test_a_process_whose_lease_was_taken_over_writes_no_result(tmp_path):
    store = Store(tmp_path)
    with store.hold("cell", {"a": 1}) as node:
        store.lease_of("cell", node.key).unlink()
        for write in (lambda: node.spend(1.0), lambda: node.finish({"loss": 1.0})):
            with pytest.raises(Locked, match="another one took over"):
                write()
    assert node.result is None
    assert not node.env["attempts"][-1]["seconds"]


def test_a_lease_leaves_no_file_behind(tmp_path):
    store = Store(tmp_path)
    for number in range(3):
        with store.hold("cell", {"number": number}) as node:
            node.finish({})
    assert list((tmp_path / "leases").iterdir()) == []


@pytest.mark.slow
def test_eight_processes_killed_a_hundred_times_compute_each_cell_once(tmp_path):
    """Every kill hits a process at a random moment; a new one takes its place."""
    draw, log, count = random.Random(0), tmp_path / "log", 400
    store, seeds = tmp_path / "store", iter(range(10**6))

    def start():
        return python(COMPUTE, store, next(seeds), count, log)

    workers = [start() for _ in range(WORKERS)]
    for _ in range(KILLS):
        time.sleep(draw.uniform(0, 0.3))
        place = draw.randrange(WORKERS)
        workers[place].kill()
        workers[place].communicate()
        workers[place] = start()
    for worker in workers:
        _, errors = worker.communicate(timeout=100)
        assert worker.returncode == 0, errors
    nodes = [Node(folder) for folder in store.glob("cell/*")]
    assert sorted(node.verified["number"] for node in nodes) == list(range(count))
    assert max(Counter(log.read_text().splitlines()).values()) == 1
    assert list(store.glob("leases/*")) == []
