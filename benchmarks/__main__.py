"""All benchmarks, or those that are named: ratios of costs, measured side by side on the machine at hand.

    python -m benchmarks [NAME ...] [--record] [options of the benchmark, where one is named]

With --record, benchmarks/results/<name>.md and .json are written, with machine, versions, commit and date.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {
    "limits": "limits",
    "step": "step",
    "losses": "losses",
    "grid": "grid",
    "importance": "importance",
    "cpu": "cpu",
    "logging": "logging_cost",
    "startup": "startup",
}
"""Name -> module, whose `main(arguments)` prints Markdown and takes `--json FILE`."""


class Tee(io.TextIOBase):
    """Writes to a stream, and keeps what was written."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.kept = stream, io.StringIO()

    def write(self, text: str) -> int:
        self.stream.flush()
        self.kept.write(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def main(arguments: list[str] | None = None) -> int:
    """Run benchmarks; returns the exit code, 2 for a bad request."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    first_option = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    names, options = words[:first_option] or list(BENCHMARKS), words[first_option:]
    record = "--record" in options
    options = [word for word in options if word != "--record"]
    if words[:1] in (["-h"], ["--help"]):
        print(f"{__doc__}\nThere are: {', '.join(BENCHMARKS)}. `python -m benchmarks NAME --help` lists its options.")
        return 0
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"error: unknown benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    if options and len(names) != 1:
        print(f"error: {options[0]} is an option of one benchmark; name one", file=sys.stderr)
        return 2
    for name in names:
        run(name, options, record)
    return 0


def run(name: str, options: list[str], record: bool, results: Path = RESULTS) -> None:
    """Run one benchmark, and keep what it prints and finds where it is to be recorded."""
    module = importlib.import_module(f"benchmarks.{BENCHMARKS[name]}")
    if not record:
        module.main(options)
        return
    results.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=results) as scratch, contextlib.redirect_stdout(Tee(sys.stdout)) as printed:
        found = Path(scratch) / "found.json"
        module.main([*options, "--json", str(found)])
        found.replace(results / f"{name}.json")
    (results / f"{name}.md").write_text(f"{heading(name, options)}\n{printed.kept.getvalue().strip()}\n")


def heading(name: str, options: list[str]) -> str:
    """Return what was asked, when, and of how large a machine."""
    words = " ".join(["python -m benchmarks", name, *options])
    today = datetime.now(UTC).date()
    return f"# {name}\n\n`{words}`, {today}, {os.cpu_count()} cores, {memory():.0f} GiB of memory\n"


def memory() -> float:
    """GiB of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    raise SystemExit(main())
