"""`lit-prune pretrain`: train a teacher from random weights, with its tokenizer and its card."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lit_prune import cpu
from lit_prune.cli.process import Verb
from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Cell, Execution, Pretraining, Teacher
from lit_prune.config.overrides import override, parse_setting, plain_of
from lit_prune.models import loading
from lit_prune.models.files import CARD
from lit_prune.store import DEFAULT_ROOT, Store
from lit_prune.store.atomic import write_json

WORTH = 0.5
"""Nats per token by which a teacher must beat a trigram model of its own training text."""


def check(folder: Path) -> int:
    """Print by how much a teacher beats a trigram model; return 0 if by at least `WORTH`, else 1."""
    from lit_prune.evaluate.teacher_quality import worth

    found = worth(folder, lambda what: print(what, file=sys.stderr))
    text = f"{found['corpus']} ({'as' if found['same_text'] else 'not as'} on its card)"
    verdict, code = ("at least", 0) if found["gap"] >= WORTH else ("LESS THAN", 1)
    unit = "nats/token"
    print(f"teacher  {found['teacher']:.3f} {unit} on {found['scored']:,} tokens of {text}")
    print(f"trigram  {found['trigram']:.3f} {unit} on the same, fitted to {found['fitted']:,} tokens")
    print(f"gap      {found['gap']:.3f} {unit}, {verdict} {WORTH}")
    return code


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """Train a Llama with its tokenizer from scratch, and write a card with its validation loss."""

    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """FIELD=VALUE of the recipe, e.g. vocab_size=4096. `lit-prune fields teacher.pretraining` lists the fields."""
    export: Path | None = None
    """Folder to copy the finished teacher to, with its card."""
    check: Annotated[tuple[Path] | tuple[()] | None, tyro.conf.arg(metavar="[FOLDER]")] = None
    """Do not train. Print by how many nats/token the teacher in this folder (default: the shipped one) beats a trigram
    model; the exit code is 1 if by less than 0.5."""
    store: str = DEFAULT_ROOT
    """Folder of all results; a teacher in it is reused."""
    execution: Execution = Execution()
    """How the run is carried out; does not change its result."""


def run(flags: CliArgs) -> int:
    """Train or find the teacher and print its result, or check one."""
    recipe = override(Pretraining(), dict(parse_setting(text) for text in flags.set))
    from lit_prune.models.silence import quiet
    from lit_prune.pipeline.runner import Runner

    quiet()
    cpu.choose(flags.execution)
    cpu.prepare()
    if flags.check is not None:
        (name,) = flags.check or (Teacher().model,)
        return check(Path(loading.locate(str(name))))
    cell = Cell(teacher=loading.pin(Teacher(model=None, pretraining=recipe)))
    assert cell.teacher.pretraining is not None
    with ProgressBar(recipe.max_steps, unit="step") as bar:
        node = Runner(Store(flags.store), flags.execution, bar).ctx.get("teacher", cell)
    print(json.dumps(node.result, indent=1))
    if flags.export:
        shutil.copytree(node.folder / "model", flags.export, dirs_exist_ok=True)
        recipe_and_text = plain_of(cell.teacher.pretraining)
        card = {"address": node.key, "recipe": recipe_and_text, "result": node.result, "env": node.env}
        write_json(flags.export / CARD, card)
    return 0


VERB = Verb("pretrain", CliArgs, run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return VERB.main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
