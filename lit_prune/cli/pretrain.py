"""Train a teacher from random weights: tokenizer, tokens, model, and the card that says what it is worth.

python -m lit_prune.cli.pretrain                                # the teacher that ships with the package
python -m lit_prune.cli.pretrain --set layers=8 --export here   # another one, into a folder
python -m lit_prune.cli.pretrain --check                        # what the shipped teacher is worth today
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import tyro

from lit_prune import cpu
from lit_prune.cli.process import begin, stop_on_signals
from lit_prune.cli.progress import ProgressBar
from lit_prune.cli.request import check_words
from lit_prune.config import Cell, ConfigError, Execution, Pretraining, Teacher
from lit_prune.config.overrides import override, parse_setting, plain_of
from lit_prune.escape import printable
from lit_prune.models import loading
from lit_prune.models.files import CARD
from lit_prune.store import DEFAULT_ROOT, Locked, Store
from lit_prune.store.atomic import write_json

WORTH = 0.5
"""Nats per token by which a teacher must beat a trigram model of its own training text."""


def check(folder: Path) -> int:
    """Print what a teacher is worth; returns 0 where that is at least `WORTH`, else 1."""
    from lit_prune.pipeline.stages.pretrain import worth

    found = worth(folder, lambda what: print(what, file=sys.stderr))
    text = f"{found['corpus']} ({'as' if found['same_text'] else 'not as'} on its card)"
    verdict, code = ("at least", 0) if found["gap"] >= WORTH else ("LESS THAN", 1)
    unit = "nats/token"
    print(f"teacher  {found['teacher']:.3f} {unit} on {found['scored']:,} tokens of {text}")
    print(f"trigram  {found['trigram']:.3f} {unit} on the same, fitted to {found['fitted']:,} tokens")
    print(f"gap      {found['gap']:.3f} {unit}, {verdict} the {WORTH} asked for")
    return code


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """Train a teacher from random weights, or find it again."""

    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """field=value of the recipe (hidden, corpus.source, optim.lr, ...); may be given several times."""
    export: Path | None = None
    """Folder to copy the finished teacher to, with its card."""
    check: Annotated[tuple[Path] | tuple[()] | None, tyro.conf.arg(metavar="[FOLDER]")] = None
    """Train nothing: print what the teacher in this folder, or else the shipped one, is worth beside a
    trigram model; the exit code is 1 where that is less than half a nat per token."""
    store: str = DEFAULT_ROOT
    """Folder where everything computed is kept."""
    execution: Execution = Execution()
    """How the run is carried out; does not change its address."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        check_words(argv)
    except ConfigError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    flags = tyro.cli(CliArgs, args=argv, prog="python -m lit_prune.cli.pretrain")
    begin("pretrain: reading the request", argv)
    stop_on_signals()
    try:
        recipe = override(Pretraining(), dict(parse_setting(text) for text in flags.set))
        from lit_prune.distill.train import quiet
        from lit_prune.pipeline.stages.pretrain import pretrain

        quiet()
        cpu.choose(flags.execution)
        cpu.prepare()
        if flags.check is not None:
            (name,) = flags.check or (Teacher().model,)
            return check(Path(loading.locate(str(name))))
        cell = Cell(teacher=loading.pin(Teacher(model=None, pretraining=recipe)))
        assert cell.teacher.pretraining is not None
        with ProgressBar(recipe.steps) as bar, Store(flags.store).claim(cell, "teacher") as node:
            if node.result is None:
                bar.say("tokenising")
                result = pretrain(
                    cell.teacher.pretraining, node.folder, flags.execution,
                    lambda step, row: bar.at(step, f"pretraining, loss {row.get('loss', float('nan')):.3f}"),
                )  # fmt: skip
                node.finish(result)
        print(json.dumps(node.result, indent=1))
        if flags.export:
            shutil.copytree(node.folder / "model", flags.export, dirs_exist_ok=True)
            recipe_and_text = plain_of(cell.teacher.pretraining)
            card = {"address": node.key, "recipe": recipe_and_text, "result": node.result, "env": node.env}
            write_json(flags.export / CARD, card)
    except (ConfigError, Locked, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
