"""Summarise an exception: a one-line message, the file concerned, the last frame in this package. No torch."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Failure:
    """An exception as plain data."""

    error: str
    """Type and first line of the message."""
    type: str
    message: str
    file: str | None
    """File that could not be read or written."""
    frame: str | None
    """Last frame inside this package, as file:line in function."""

    @property
    def plain(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)


def failure_of(error: BaseException) -> Failure:
    """Return the summary of an exception; its file is from the exception or the first of its causes with one."""
    message = str(error).strip() or "no message"
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    frame = None
    if ours:
        frame = f"{Path(ours[-1].filename).relative_to(_PACKAGE.parent)}:{ours[-1].lineno} in {ours[-1].name}"
    return Failure(
        f"{type(error).__name__}: {message.splitlines()[0]}", type(error).__name__, message, _file_of(error), frame
    )


def release_frames(error: BaseException | None) -> None:
    """Clear the local variables in the tracebacks of an exception and its causes, to free models that they hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _file_of(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, OSError) and error.filename is not None:
            return str(error.filename)
        error = error.__cause__ or error.__context__
    return None
