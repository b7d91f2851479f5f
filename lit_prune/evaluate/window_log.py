"""Store the losses of windows in a file, so that an interrupted evaluation resumes.

No torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

NAME = "windows.csv"
"""Name of the file in the folder of a result; removed when the result is complete."""

Place = tuple[int, int]
"""Index of the document in the source, and first scored token of the window."""


class WindowLog:
    """Nats by window; each scored batch is appended to the file.

    Reading truncates an incomplete last line, which a killed process can leave.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nats: dict[Place, float] = {}
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                document, scored, nats = line.decode().split(",")
                self.nats[int(document), int(scored)] = float(nats)
                whole += len(line)
            with path.open("rb+") as file:
                file.truncate(whole)

    def add(self, places: Iterable[Place], nats: Iterable[float]) -> None:
        """Append the nats of a batch of windows."""
        lines = [(place, value) for place, value in zip(places, nats, strict=True)]
        self.nats.update(lines)
        with self.path.open("a") as file:
            file.writelines(f"{document},{scored},{value!r}\n" for (document, scored), value in lines)
