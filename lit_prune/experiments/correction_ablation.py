"""Does a teacher that is fine-tuned on the distillation text teach better? In Practice, Figures 4 and 5."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile
from lit_prune.config.table import SMALLEST_EFFECT, UNPRUNED, Changes, Claim, Table

ROWS: dict[str, Changes] = {
    "before": {"distill.teacher_optimizer": None},
    "none": {"teacher.finetune": None, "distill.teacher_optimizer": None},
    "alongside": {"teacher.finetune": None},
}


def at_scale(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with a correction as long as the distillation, at a fifth of its peak learning rate."""
    distill = profile.cell.distill
    optim = dataclasses.replace(distill.optimizer, lr=distill.optimizer.lr / 5)
    sizes = {name: getattr(distill, name) for name in ("max_steps", "seq_len", "batch_size", "precision")}
    correction = {f"teacher.finetune.{name}": value for name, value in sizes.items()}
    rates = {"teacher.finetune.optimizer": optim, "distill.teacher_optimizer": optim}
    text = dict(profile.new_text)
    about = (
        f"The distillation text is {text['corpus.path']} unless --set names another. A teacher trained here has not "
        "seen it; what a downloaded teacher has seen is not checked."
    )
    base = table.base_overrides | text | correction | rates
    return dataclasses.replace(table, base_overrides=base, caveats=(about, *table.caveats))


TABLE = Table(
    name="correction_ablation",
    question="Does a teacher that is first, or alongside, fine-tuned on the distillation text teach better?",
    source="LLM Pruning and Distillation in Practice (arXiv 2408.11796v4), Figures 4 and 5",
    rows=ROWS,
    baseline="before",
    claims=(
        Claim("before", "none", "Figure 4"),
        Claim("alongside", "none", "Figure 5: on par with a teacher corrected before"),
        Claim("before", "alongside", "Figure 5: on par", tolerance=SMALLEST_EFFECT),
    ),
    reference_rows={
        "teacher": {"teacher.finetune": None, **UNPRUNED},
        "corrected teacher": UNPRUNED,
    },
    base_overrides={"evaluation.num_validations": 5},
    seed_fields=("seed", "calibration.seed", "teacher.finetune.seed"),
    build_for_profile=at_scale,
    different_texts=(("corpus", "teacher.pretraining.corpus"),),
    caveats=(
        "The correction is as long as the profile's distillation, at a fifth of its peak rate; in the paper it is "
        "about 100B tokens at a fifth of the peak of the teacher's own training, and the student's validation loss is "
        "over 6 % lower: compare before with none.",
        "A seed draws other calibration sequences and another order of the data, of the correction as of the "
        "distillation.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
