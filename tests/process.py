"""Another process of the checkout, spoken to by pipes, and the files it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lit_prune import store as module


def python(code: str, *args: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    root = Path(module.__file__).parents[2]
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=root)


def whole_files(folder: Path) -> set[str]:
    """The names in a folder, having seen that every JSON among them is whole."""
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    return {path.name for path in folder.iterdir()}
