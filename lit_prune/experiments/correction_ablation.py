"""Does a teacher that is fine-tuned on the distillation text teach better? In Practice, Figures 4 and 5."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile
from lit_prune.config.table import UNPRUNED, Changes, Claim, Grid, Table

ROWS: dict[str, Changes] = {
    "before": {"distill.teacher_optim": None},
    "none": {"teacher.correction": None, "distill.teacher_optim": None},
    "alongside": {"teacher.correction": None},
}


def label(point: Changes) -> str:
    """When the teacher is corrected."""
    if "teacher.correction" not in point:
        return "before"
    return "none" if "distill.teacher_optim" in point else "alongside"


def at_scale(table: Table, profile: Profile, store: Path) -> Table:
    """The table with a correction as long as the distillation, at a fifth of its peak learning rate."""
    distill = profile.cell.distill
    optim = dataclasses.replace(distill.optim, lr=distill.optim.lr / 5)
    sizes = {name: getattr(distill, name) for name in ("steps", "block", "batch", "precision")}
    correction = {f"teacher.correction.{name}": value for name, value in sizes.items()}
    rates = {"teacher.correction.optim": optim, "distill.teacher_optim": optim}
    text = dict(profile.new_text)
    about = (
        f"The distillation text is {text['corpus.source']} unless --set names another. A teacher trained here has not "
        "seen it; what a downloaded teacher has seen is not checked."
    )
    base = table.base | text | correction | rates
    return dataclasses.replace(table, base=base, caveats=(about, *table.caveats))


TABLE = Table(
    name="correction_ablation",
    question="Does a teacher that is first, or alongside, fine-tuned on the distillation text teach better?",
    source="LLM Pruning and Distillation in Practice (arXiv 2408.11796v4), Figures 4 and 5",
    grid=Grid(tuple(ROWS.values())),
    label=label,
    baseline="before",
    paper={},
    claims=(
        Claim("before", "none", "Figure 4"),
        Claim("alongside", "none", "Figure 5: on par with a teacher corrected before", family="Figure 5"),
        Claim("before", "alongside", "Figure 5: on par", within=0.02, family="Figure 5"),
    ),
    references={
        "teacher": {"teacher.correction": None, **UNPRUNED},
        "corrected teacher": UNPRUNED,
    },
    base={"evaluation.checks": 5},
    seeded=("seed", "teacher.correction.seed"),
    for_profile=at_scale,
    different_texts=(("corpus", "teacher.pretraining.corpus"),),
    caveats=(
        "The correction is as long as the profile's distillation, at a fifth of its peak rate; in the paper it is "
        "about 100B tokens at a fifth of the peak of the teacher's own training, and the student's validation loss is "
        "over 6 % lower: compare before with none.",
        "A seed is another order of the data, of the correction as of the distillation.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
