"""Store the losses of windows in a file, so that an interrupted evaluation resumes.

No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

Place = tuple[int, int]
"""Index of the document in the source, and first scored token of the window."""


class WindowLog:
    """Nats by window; each scored batch is appended to windows.csv in `folder`, or by rank r > 0 to windows.r.csv.

    Reading takes the files of all ranks, whose number may have been another one, and skips an incomplete last line,
    which a killed process can leave; the rank removes its own. The files are removed when the result is complete.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / (f"windows.{rank}.csv" if rank else "windows.csv")
        self.nats: dict[Place, float] = {}
        for path in folder.glob("windows.*csv"):
            lines = path.read_bytes().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            for line in whole:
                document, scored, nats = line.decode().split(",")
                self.nats[int(document), int(scored)] = float(nats)
            if path == self.path and len(whole) < len(lines):
                os.truncate(path, sum(map(len, whole)))

    def add(self, places: Iterable[Place], nats: Iterable[float]) -> None:
        """Append the nats of a batch of windows."""
        lines = [(place, value) for place, value in zip(places, nats, strict=True)]
        self.nats.update(lines)
        with self.path.open("a") as file:
            file.writelines(f"{document},{scored},{value!r}\n" for (document, scored), value in lines)
