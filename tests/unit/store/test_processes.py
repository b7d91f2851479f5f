"""One process at a time writes; all others see whole files."""

from __future__ import annotations

import json
import signal
import socket
import threading

import pytest
from process import python, whole_files

from lit_prune.config import Cell, Corpus, Teacher
from lit_prune.config.overrides import override
from lit_prune.store import Locked, Store
from lit_prune.store.address import key
from lit_prune.store.atomic import write_json

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))

HOLD = """
import sys
from lit_prune.config import Cell, Corpus, Teacher
from lit_prune.store import Store
cell = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))
with Store(sys.argv[1]).claim(cell, sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""

CUT = """
import resource, signal, sys
from pathlib import Path
from lit_prune.store.atomic import write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
write_json(Path(sys.argv[1]), {"text": "x" * 1000})
"""


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def holder(store):
    """Another process that holds CELL's student until it is told to leave."""
    with python(HOLD, store.root, "student") as process:
        assert process.stdout.readline() == "held\n", process.stderr.read()
        yield process
        process.kill()


def test_a_node_held_by_another_process_is_busy(store, holder):
    with pytest.raises(Locked) as busy, store.claim(CELL, "student"):
        pass
    by = f"process {holder.pid} on {socket.gethostname()}"
    assert str(busy.value) == f"student {key(CELL, 'student')} is being computed by {by}"


@pytest.mark.parametrize(("seq", "stage"), [("mean", "cell"), ("l2", "student")])
def test_other_nodes_are_free_meanwhile(store, holder, seq, stage):
    with store.claim(override(CELL, {"prune.seq_aggregation": seq}), stage) as node:
        assert node.result is None


def test_a_busy_node_keeps_what_its_holder_wrote(store, holder):
    node = store.node(CELL, "student")
    (node.folder / "env.json").write_text('{"mine": true}')
    with pytest.raises(Locked), store.claim(CELL, "student"):
        pass
    assert node.env == {"mine": True}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_node_is_free_again_when_its_holder_is_killed(store, holder, number):
    holder.send_signal(number)
    assert holder.wait(30) == -number
    with store.claim(CELL, "student") as node:
        assert node.result is None


def test_a_node_is_free_again_when_its_holder_is_done(store, holder):
    holder.stdin.close()
    assert holder.wait(30) == 0
    with store.claim(CELL, "student"):
        pass


def test_one_who_waits_gets_the_node_when_its_holder_dies(store, holder):
    killer = threading.Timer(0.5, holder.kill)
    killer.start()
    with store.claim(CELL, "student", wait=True):
        assert holder.wait(30) == -signal.SIGKILL
    killer.join()


def test_a_process_that_waits_for_no_one_cannot_take_what_is_held_here(store):
    with store.claim(CELL, "student"):
        process = python(HOLD, store.root, "student")
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "lit_prune.store.lease.Locked" in errors


# Whole files


def test_what_is_written_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, None, 0.1], "y": "ä"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, None, 0.1], "y": "ä"}
    assert whole_files(tmp_path) == {"a.json"}


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": True})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": True}


@pytest.mark.parametrize("there_before", [True, False])
def test_a_write_cut_by_a_full_disk_leaves_the_old_file_or_none(tmp_path, there_before):
    path = tmp_path / "a.json"
    if there_before:
        write_json(path, {"old": True})
    process = python(CUT, path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "File too large" in errors
    assert path.exists() == there_before
    assert not there_before or json.loads(path.read_text()) == {"old": True}


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"text": ""})
    code = "import sys; from pathlib import Path; from lit_prune.store.atomic import write_json\n"
    code += "while True: [write_json(Path(sys.argv[1]), {'text': c * 300_000}) for c in 'ab']"
    writer = python(code, path)
    seen = set()
    try:
        while len(seen) < 3:
            text = json.loads(path.read_text())["text"]
            assert len(set(text)) <= 1
            seen.add(text[:1])
    finally:
        writer.kill()
        writer.communicate()
