"""Which checkpoint of a teacher that was trained in two phases should be pruned? Minitron, Table 20."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import ConfigError, Profile
from lit_prune.config.table import UNPRUNED, WHOLE, Claim, Table

LATE, EARLY, BOTH = "late, phase 2", "early, phase 2", "early, phases 1 and 2"
FIRST = 19 / 94
"""Tokens of phase 1 for each of phase 2 (Table 20: 113B and 94B in all)."""


def at_scale(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with a second phase as long as the distillation, on another text than the first."""
    cell, second, first = profile.cell, dict(profile.new_text), round(FIRST * profile.cell.distill.max_steps)
    if not first:
        raise ConfigError(f"distill.max_steps: must be at least 3 for {table.name}, got {cell.distill.max_steps}")
    sizes = {name: getattr(cell.distill, name) for name in ("max_steps", "seq_len", "batch_size", "precision")}
    late = {f"teacher.finetune.{name}": value for name, value in sizes.items()}
    late["teacher.finetune.optimizer"] = dataclasses.replace(cell.distill.optimizer, lr=cell.distill.optimizer.lr / 5)
    # In the base, so that --set parent.corpus.path=... names the text of the first phase.
    early = {"parent.corpus": cell.corpus, "parent.evaluation.num_validations": 0}
    rows = (
        {"parent.teacher.finetune": None, "parent.prune": cell.prune, **WHOLE, "parent.distill.max_steps": steps}
        for steps in (0, first)
    )
    about = (
        f"The second phase of the teacher is fine-tuning on {second['corpus.path']} after {cell.corpus.path}, "
        "unless --set names other texts, for as many steps as the distillation and at a fifth of its peak rate. What "
        "a downloaded teacher has seen before is not checked."
    )
    return dataclasses.replace(
        table,
        base_overrides=table.base_overrides | second | late | early,
        rows={LATE: {"parent": None}} | dict(zip((EARLY, BOTH), rows, strict=True)),
        caveats=(about, *table.caveats),
    )


TABLE = Table(
    name="phase_ablation",
    question="Of a teacher trained in two phases, should the early or the late checkpoint be pruned?",
    source="Minitron (arXiv 2407.14679v2), Table 20",
    rows={},
    baseline=LATE,
    claims=(
        Claim(LATE, BOTH, "Table 20: MMLU 61.9, 54.7; HumanEval 30.5, 25.6; HellaSwag 80.1, 80.3; PIQA 76.7, 77.2"),
    ),
    reference_rows={
        "teacher": UNPRUNED,
        "early teacher": {**UNPRUNED, "teacher.finetune": None},
    },
    base_overrides={"evaluation.num_validations": 5},
    seed_fields=("seed", "calibration.seed", "teacher.finetune.seed"),
    build_for_profile=at_scale,
    profile_fields=tuple(WHOLE),
    different_texts=(("corpus", "parent.corpus"),),
    caveats=(
        f"{BOTH}: the early checkpoint is pruned and imitated on the text of phase 1, then the late one on that of "
        f"phase 2, for 19/94 as many steps more; {EARLY} leaves the first part out. The paper does not say which "
        "teacher is imitated on which text.",
        "The paper compares accuracies; here it is the LM loss on the text of phase 2.",
        "A seed draws other calibration sequences and another order of the data, of the teacher's second phase as of "
        "the distillation.",
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
