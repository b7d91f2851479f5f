"""Random faults: killed commands, damaged stores and full disks lead to the result of an undisturbed run.

The command runs in forked processes, which spares each the seconds of importing torch. Draws are seeded; where a kill
falls depends on the speed of the machine.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from forked import finish, start
from grid_runs import outcome

pytestmark = pytest.mark.slow

KILLS, DAMAGED_ROUNDS = 6, 3


@pytest.fixture(scope="module")
def undisturbed(grid_words: list[str], tmp_path_factory) -> tuple[Path, dict[str, Any], float]:
    """A finished store, what it says, and the seconds it took."""
    folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    assert finish(start(grid_words, folder / "store", folder / "log")) == 0, (folder / "log").read_text()
    took = time.monotonic() - began
    return folder / "store", outcome(folder / "store"), took


def test_killed_anywhere_and_run_again_the_answer_is_the_same(grid_words, undisturbed, tmp_path):
    _, expected, took = undisturbed
    draw, kills, log = random.Random(0), 0, tmp_path / "log"
    for number in range(KILLS):
        store = tmp_path / f"killed-{number}"
        while kills < KILLS:
            process = start(grid_words, store, log)
            time.sleep(draw.uniform(0.0, took))
            process.kill()
            killed = finish(process) == -9
            kills += killed
            if not killed:
                break
        assert finish(start(grid_words, store, log)) == 0, log.read_text()
        assert outcome(store) == expected
        if kills == KILLS:
            break


def spoil(path: Path, draw: random.Random) -> str:
    """Delete a file, cut it, or flip one of its bits."""
    content = bytearray(path.read_bytes())
    kind = draw.choice(["delete", "cut", "flip"]) if content else "delete"
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    return f"{kind} {path}"


def test_damaged_anywhere_and_run_again_the_answer_is_the_same(grid_words, undisturbed, tmp_path):
    finished, expected, _ = undisturbed
    draw, log = random.Random(0), tmp_path / "log"
    for number in range(DAMAGED_ROUNDS):
        store = tmp_path / f"damaged-{number}"
        shutil.copytree(finished, store)
        files = sorted(path for path in store.glob("*/*/**/*") if path.is_file())
        files = [path for path in files if path.relative_to(store).parts[0] != "reports"]
        done = [spoil(path, draw) for path in draw.sample(files, 3)]
        # Of half the cells, so that what lies upstream of them is read again.
        for result in draw.sample(sorted(store.glob("cell/*/result.json")), 2):
            result.unlink()
        listing = "report" if number == 0 else "status"
        assert finish(start([*grid_words, listing], store, log)) == 0, (done, log.read_text())
        assert finish(start(grid_words, store, log)) == 0, (done, log.read_text())
        assert outcome(store) == expected, done


@pytest.mark.parametrize("limit", [0, 3_000, 60_000])
def test_on_a_full_disk_the_command_ends_in_words_and_resumes_when_there_is_room(
    grid_words, undisturbed, tmp_path, limit
):
    """A limit on the size of files makes the kernel refuse real writes, at another place for each."""
    _, expected, _ = undisturbed
    store, log = tmp_path / "full", tmp_path / "log.full"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    # The limit is on the log as well: it goes to a pipe.
    reading, writing = os.pipe()
    code = finish(start(grid_words, store, Path(f"/dev/fd/{writing}"), fill))
    os.close(writing)
    with os.fdopen(reading) as output:
        said = output.read()
    assert code in (1, 2), said
    assert "Traceback" not in said
    assert said.strip()
    assert finish(start(grid_words, store, log)) == 0, log.read_text()
    assert outcome(store) == expected
