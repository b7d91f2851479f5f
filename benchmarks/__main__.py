"""Run all benchmarks, or the named ones: ratios of costs, measured side by side on this machine.

    python -m benchmarks [NAME ...] [--record] [options of the benchmark, if one is named]

--record writes benchmarks/results/<name>.md and .json, with machine, versions, commit and date.
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
    "tables": "tables",
}
"""Name -> module, whose `main(arguments)` prints Markdown and takes `--json FILE`."""


class Tee(io.TextIOBase):
    """Writes to a stream and keeps a copy."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.kept = stream, io.StringIO()

    def write(self, text: str) -> int:
        self.stream.flush()
        self.kept.write(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def main(arguments: list[str] | None = None) -> int:
    """Run benchmarks; return the exit code, 2 for a bad request."""
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
    """Run one benchmark; with `record`, write its output and results to `results`."""
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
    """Return the heading of a record: command, date, and cores and memory of the machine."""
    words = " ".join(["python -m benchmarks", name, *options])
    today = datetime.now(UTC).date()
    return f"# {name}\n\n`{words}`, {today}, {os.cpu_count()} cores, {memory():.0f} GiB of memory\n"


def memory() -> float:
    """Return the memory of this machine in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    raise SystemExit(main())
