"""The text `docstrings` is the same wherever the same packages are installed, and is split by module."""

import hashlib
import importlib.metadata
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import docstring, install, use
from paths import ROOT

from lit_prune.config import ConfigError, Corpus
from lit_prune.data import docstrings
from lit_prune.data.corpus import SPLITS, Reader, documents, fingerprint, pin, split_of

DOCSTRINGS = Corpus(path="docstrings")

# Docstrings in the order in which they must be found; `no` is one character too short.
MODULE = f'''"""{docstring("module")}"""
import os
if os.name == "posix":
    def first():
        """{docstring("first")}

        flush
            indented
        """
else:
    async def second():
        "{docstring("second")}"
try:
    class Third:
        r"""
        {docstring("third")}
        """
        def no(self):
            """{docstring("no", 199)}"""
        def fourth(self):
            """{docstring("fourth")}"""
            def fifth(): """{docstring("fifth")}"""
except ImportError:
    def sixth(): """{docstring("sixth")}"""
finally:
    x = """{docstring("no docstring")}"""
for x in ():
    match x:
        case 1:
            with x:
                def seventh(): """{docstring("seventh")}"""
'''
FOUND = [
    docstring("module"), docstring("first") + "\n\nflush\n    indented",
    *map(docstring, ("second", "third", "fourth", "fifth", "sixth", "seventh")),
]  # fmt: skip
CAFE = docstring("caf\u00e9")
ALPHA = {
    "alpha/b.py": MODULE,
    "alpha/a.py": f"\ufeff'''{CAFE}'''\r\ndef copy():\r\n    '''{docstring('first of two')}'''\r\n",
    "alpha/none.py": "x = 1\n",
    "alpha/tests/test_a.py": f'"""{docstring("a test")}"""',
    "alpha/distutils/x.py": f'"""{docstring("of older Pythons")}"""',
    "alpha/conftest.py": f'"""{docstring("a fixture")}"""',
    "alpha/_vendor/x.py": f'"""{docstring("another package")}"""',
    "alpha/data.txt": docstring("no module"),
    "../../bin/alpha.py": f'"""{docstring("a script")}"""',
}
BETA = {
    "beta.py": f'"""{docstring("first of two")}"""\ndef own():\n    """{docstring("own")}"""\n',
    "beta_latin.py": b"# coding: latin-1\n'''caf\xe9'''\n",
    "beta_broken.py": f'"""{docstring("broken")}"""\ndef (:\n',
    "beta_null.py": f'"""{docstring("null")}"""\0\n',
    "beta_half.py": f'"""{docstring("half", 199)}\\ud83d"""',
}
TEXTS = {
    "alpha/a.py": "\n\n".join([CAFE, docstring("first of two")]),
    "alpha/b.py": "\n\n".join(FOUND),
    "beta.py": docstring("own"),
    "beta_half.py": docstring("half", 199) + "?",
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which `alpha` and `beta` are installed."""
    site = tmp_path / "lib" / "site"
    install(site, "alpha", ALPHA)
    install(site, "beta", BETA, version="2.1+cpu")
    use(monkeypatch, site, "alpha", "beta", cache=tmp_path / "cache")
    return site


def of_modules() -> dict[str, str]:
    return dict(docstrings.documents())


def test_the_text_is_what_modules_say_in_order(packages: Path) -> None:
    assert list(docstrings.documents()) == list(TEXTS.items())
    found = docstrings.contents()
    lines = "".join(json.dumps([name, text], ensure_ascii=False) + "\n" for name, text in TEXTS.items())
    assert found.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert found.sha256 == "3fe758d8360b1f53cbb6323d6c1e20a13a4cedeeb7cb4991707b8658d9661e6b"
    assert found.packages == ["alpha==1.0", "beta==2.1"]
    assert (found.num_modules, found.num_docstrings, found.num_duplicates) == (4, 12, 1)
    assert (found.num_not_utf8, found.num_not_parsed) == (1, 2)
    assert found.num_bytes == sum(len(text.encode()) for text in TEXTS.values()) - 2 * (12 - 4)


@pytest.mark.parametrize("shuffle", range(1, 4))
def test_neither_place_nor_order_nor_other_files_matter(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch, shuffle: int
) -> None:
    here, text = docstrings.contents(), of_modules()
    there = tmp_path / "elsewhere"
    for name, files, version in (("beta", BETA, "2.1+cu130"), ("alpha", ALPHA, "1.0")):
        install(there, name, dict(reversed(files.items())), version, shuffle)
    (there / "alpha" / "stray.py").write_text(f'"""{docstring("of no package")}"""')
    use(monkeypatch, there, "alpha", "beta", cache=tmp_path / "another cache")
    assert (docstrings.contents(), of_modules()) == (here, text)


def test_modules_are_split_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        f"many/m{i}.py": "\n".join(f'def f{j}():\n    """{docstring(f"{i} {j}")}"""' for j in range(3))
        for i in range(100)
    }
    install(tmp_path, "many", modules)
    use(monkeypatch, tmp_path, "many", cache=tmp_path / "cache")
    where: dict[str, set[str]] = {}
    for split, text in documents(pin(DOCSTRINGS)):
        numbers = {piece.split()[0] for piece in text.split("\n\n")}
        assert len(numbers) == 1
        assert len(text.split("\n\n")) == 3
        where.setdefault(numbers.pop(), set()).add(split)
    assert where == {str(i): {split_of(f"many/m{i}.py", 0.1)} for i in range(100)}
    assert set.union(*where.values()) == set(SPLITS)


def test_the_fingerprint_is_of_versions_and_reads_nothing(tmp_path: Path, packages: Path) -> None:
    first = fingerprint(DOCSTRINGS)
    assert first == hashlib.sha256(b"docstrings 1\nalpha==1.0\nbeta==2.1").hexdigest()
    assert not (tmp_path / "cache").exists()
    (packages / "beta-2.1+cpu.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: beta\nVersion: 2.2\n")
    importlib.invalidate_caches()
    assert fingerprint(DOCSTRINGS) != first
    corpus = replace(DOCSTRINGS, fingerprint=first)
    with pytest.raises(ConfigError, match=r"^corpus.path: docstrings must not change"):
        list(documents(corpus))


def test_packages_are_read_once(packages: Path) -> None:
    reported: list[tuple[int, int]] = []
    folder = docstrings.prepare(lambda *counts: reported.append(counts))
    assert reported == [(number, 8) for number in range(9)]
    assert docstrings.prepare(lambda *counts: reported.append(counts)) == folder
    assert len(reported) == 9


def test_of_two_that_need_it_at_once_one_reads(packages: Path) -> None:
    reading, second_waits = threading.Event(), threading.Event()
    by_second: list[int] = []

    def on_progress(done: int, total: int) -> None:
        reading.set()
        assert second_waits.wait(10)

    first = threading.Thread(target=docstrings.prepare, args=(on_progress,))
    second = threading.Thread(target=docstrings.prepare, args=(lambda done, total: by_second.append(done),))
    first.start()
    assert reading.wait(10)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    second_waits.set()
    for thread in (first, second):
        thread.join(10)
        assert not thread.is_alive()
    assert by_second == []
    assert of_modules() == TEXTS


@pytest.mark.parametrize("name", ["text.jsonl", "about.json"])
def test_a_damaged_copy_is_written_again(packages: Path, name: str) -> None:
    path = docstrings.prepare() / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert of_modules() == TEXTS
    assert path.read_bytes() == whole


def test_a_reading_that_is_interrupted_leaves_nothing_to_be_taken_for_the_text(packages: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        docstrings.prepare(interrupt)
    assert of_modules() == TEXTS


def test_packages_that_are_not_what_their_versions_say_are_refused(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = docstrings.contents().sha256
    monkeypatch.setattr(docstrings, "KNOWN_TEXTS", {fingerprint(DOCSTRINGS): known})
    (docstrings.prepare() / "about.json").unlink()
    (packages / "beta.py").write_text(f'"""{docstring("changed")}"""')
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"must have sha256 {known}, got ") as caught:
            list(documents(DOCSTRINGS))
        assert "\n" not in str(caught.value)
    (packages / "beta.py").write_text(BETA["beta.py"])
    assert of_modules() == TEXTS


def absent(site: Path) -> None:
    (site / "beta-2.1+cpu.dist-info" / "METADATA").unlink()
    (site / "beta-2.1+cpu.dist-info" / "RECORD").unlink()
    (site / "beta-2.1+cpu.dist-info").rmdir()


def in_place(site: Path) -> None:
    (site / "beta-2.1+cpu.dist-info" / "RECORD").write_text("beta.pth,,\n")


def incomplete(site: Path) -> None:
    (site / "beta.py").unlink()


def no_cache(site: Path) -> None:
    (site.parents[1] / "cache").touch()


@pytest.mark.parametrize(
    ("damage", "field"), [(absent, "corpus.path"), (in_place, "corpus.path"), (incomplete, "corpus.path"),
                          (no_cache, "LIT_PRUNE_HOME")],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(packages: Path, damage, field: str) -> None:
    damage(packages)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=f"^{field}: ") as caught:
        list(documents(DOCSTRINGS))
    assert "\n" not in str(caught.value)


def test_the_reader_counts_modules(packages: Path) -> None:
    reader = Reader(pin(DOCSTRINGS))
    assert len(list(reader)) == reader.num_documents == 4
    assert reader.num_duplicates == 0


def _required(names: list[str]) -> Iterator[str]:
    """The packages that these and lit_prune always need, without extras and whatever the machine."""
    from packaging.requirements import Requirement

    seen: set[str] = set()
    while names:
        requirement = Requirement(names.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if requirement.marker is None and name not in seen:
            seen.add(name)
            names += importlib.metadata.requires(name) or []
            yield name


def test_every_installation_has_the_packages() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(docstrings.PACKAGES) <= set(_required(list(project["dependencies"])))
    assert list(docstrings.PACKAGES) == sorted(docstrings.PACKAGES)


def _pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    return {name: pins[name] for name in docstrings.PACKAGES}


def test_the_text_of_the_pinned_versions_is_known() -> None:
    assert hashlib.sha256(docstrings.identity(_pinned())).hexdigest() in docstrings.KNOWN_TEXTS


@pytest.mark.slow
def test_the_text_of_the_installed_packages_is_the_known_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if docstrings.versions() != _pinned():
        pytest.skip("other versions than those of constraints.txt are installed")
    monkeypatch.setenv("LIT_PRUNE_HOME", str(tmp_path))
    found = docstrings.contents()  # refused if it is another
    assert found.num_not_parsed == found.num_not_utf8 == 0
    assert 30e6 < found.num_bytes < 33e6
