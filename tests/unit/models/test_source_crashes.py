"""A conversion that is killed, shared or out of disk leaves a whole model or none."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
from gguf_files import cached

from lit_prune.config import ConfigError
from lit_prune.models.sources import home, source_of
from lit_prune.progress import Silent

pytestmark = pytest.mark.usefixtures("cache")


def convert_and_die(path: str) -> None:
    """Convert a file in a process that is killed amid it."""

    class Killed(Silent):
        def count(self, what: str, done: int, total: int | None, unit: str) -> None:
            if done == 5:
                os.kill(os.getpid(), signal.SIGKILL)

    source_of(path).prepare(Killed())


def test_a_killed_conversion_leaves_no_model_and_the_next_removes_what_is_left(gguf: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=convert_and_die, args=(str(gguf),))
    process.start()
    process.join()
    source = source_of(str(gguf))
    assert process.exitcode == -signal.SIGKILL
    assert len(cached(home())) == 1
    assert not source.ready
    source.prepare()
    assert cached(home()) == [source.fingerprint]


def test_processes_that_need_it_at_once_convert_it_once(gguf: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=source_of(str(gguf)).prepare) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert cached(home()) == [source_of(str(gguf)).fingerprint]


def convert_on_a_full_disk(path: str) -> None:
    """Convert a file where no file may have more than 40,000 bytes; leave with 3 if that is refused in one line."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    try:
        source_of(path).prepare()
    except (ConfigError, OSError) as error:
        raise SystemExit(3 if "\n" not in str(error) else 4) from None


def test_a_full_disk_leaves_no_model(gguf: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=convert_on_a_full_disk, args=(str(gguf),))
    process.start()
    process.join()
    assert process.exitcode == 3
    assert cached(home()) == []
