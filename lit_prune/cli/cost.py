"""`lit-prune cost`: the costs that Minitron prints beside those that follow from its shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lit_prune.cli.process import Output, Verb
from lit_prune.config import ConfigError
from lit_prune.config.profiles import RECORDS
from lit_prune.escape import terminal_text


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """Compute what Minitron says about costs from the published shapes: FLOPs of a step, the saving of a family, and
    equal compute with and without a teacher. A verdict says whether the printed number is within half a unit of its
    last digit. Nothing is trained."""

    record: bool = False
    """Also write the record experiments/cost/costs.csv, which `lit-prune report` reads."""


def run(flags: CliArgs) -> int:
    """Print the costs, and record them on request."""
    from lit_prune.render.terminal import print_published_costs
    from lit_prune.report import costs
    from lit_prune.store.atomic import atomic_path

    path = RECORDS / costs.RECORD
    if flags.record and not path.parent.is_dir():
        raise ConfigError("--record: there is no folder experiments/cost here; records belong into a checkout")
    found = costs.costs()
    print_published_costs(found, Output())
    if flags.record:
        with atomic_path(path) as scratch:
            scratch.write_text(costs.text(found))
        Output().print(terminal_text(f"recorded: {path}"), soft_wrap=True)
    return 0


VERB = Verb("cost", CliArgs, run, begins="counting FLOPs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return VERB.main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
