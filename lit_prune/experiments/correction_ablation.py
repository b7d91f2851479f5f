"""Does a teacher that is fine-tuned on the distillation text teach better? In Practice, Figures 4 and 5."""

import dataclasses
from pathlib import Path

from lit_prune.cli import main
from lit_prune.config import Profile
from lit_prune.grid import Changes, Claim, Grid, Table

ROWS: dict[str, Changes] = {
    "before": {"distill.teacher_optim": None},
    "none": {"teacher.correction": None, "distill.teacher_optim": None},
    "alongside": {"teacher.correction": None},
}
UNPRUNED: Changes = {
    "distill.steps": 0,
    "student.layers": None,
    "student.hidden": None,
    "student.neurons": None,
    "student.heads": None,
}
README_FILES: Changes = {"corpus.source": "readmes", "corpus.heldout": 0.2}
WIKITEXT: Changes = {
    "corpus.source": "Salesforce/wikitext",
    "corpus.subset": "wikitext-103-raw-v1",
    "corpus.heldout": 0.05,
}
UNSEEN: dict[str | None, Changes] = {
    "python-3.1M": README_FILES,
    None: README_FILES | {"importance.samples": 128, "evaluation.blocks": 64},  # all that the text holds
    "HuggingFaceTB/SmolLM2-360M": WIKITEXT,
}
"""Teacher -> another text than that it was trained on; of a teacher that is not here the profile's text is taken."""


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
    text = UNSEEN.get(profile.cell.teacher.model, {})
    return dataclasses.replace(table, base=table.base | text | correction | rates)


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
        Claim("alongside", "none", "Figures 4 and 5"),
        Claim("before", "alongside", "Figure 5: on par", within=0.02),
    ),
    references={
        "teacher": {"teacher.correction": None, **UNPRUNED},
        "corrected teacher": UNPRUNED,
    },
    base={"evaluation.checks": 5},
    for_profile=at_scale,
    caveats=(
        "The teacher was not trained on this text: at quick and laptop the README files of packages instead of Python, "
        "at h200 WikiText-103. What Llama 3.1 was trained on is not known: paper keeps the profile's text.",
        "The correction is as long as the profile's distillation, at a fifth of its peak rate; in the paper it is "
        "about 100B tokens at a fifth of the peak of the teacher's own training, and its loss falls by over 6 %: "
        "compare the two teachers.",
        "All seeds of a row share one corrected teacher, but alongside it learns in each seed's own order.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
