"""One distillation run in its own process: by lit_prune, by a plain loop, or by another library.

All start from the same weights, see the same batches in the same order, and take AdamW steps (constant lr 1e-3, betas
0.9 and 0.95, decay 0.1 for matrices only) on gradients clipped to a norm of 1. They minimise the same loss:
KL(teacher || student), summed over the whole vocabulary and averaged over the positions that have a successor.
Each trainer computes it as follows:

    ours      Distill()'s defaults: temperature 1, no factor of temperature squared
    loop      F.kl_div on both models' full logits, divided by the number of scored positions
    hf        the same lines as compute_loss of a transformers.Trainer, which has no distillation loss
    trl       GKDTrainer with lmbda 0 (only the given text) and beta 0 (forward KL); it shifts logits and labels itself,
              masks labels of -100, has no temperature in its loss, and requires an attention mask: all ones
    modelopt  KDTrainer with temperature 1, so that its factor of temperature squared is 1; it shifts by itself, takes
              logits to float32, and averages over the mask

Gradient checkpointing, on by default in TRL, and saving are off, since they cost speed at these sizes. Attention is
sdpa and AdamW is fused in every peer, as by default.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoConfig

from benchmarks.jobs import SEED, InOrder, Job, Meter, Run, resident
from lit_prune.config import Distill, Execution, Optimizer
from lit_prune.cpu.attention import AttentionShape
from lit_prune.data.tokens import IGNORED
from lit_prune.distill.train import train
from lit_prune.models.loading import load_model
from lit_prune.models.silence import quiet

LR, BETA1, BETA2, DECAY, CLIP = 1e-3, 0.9, 0.95, 0.1, 1.0


def ours(job: Job, student: Any, teacher: Any, meter: Meter) -> None:
    """Train with lit_prune."""
    import lightning as L

    class Marks(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
                meter.step(pl_module.terms["loss"])

    quiet()
    # A constant learning rate.
    optim = Optimizer(
        lr=LR, min_lr=LR, warmup_steps=0, beta1=BETA1, beta2=BETA2, weight_decay=DECAY, max_grad_norm=CLIP
    )
    distill = Distill(
        seq_len=job.seq_len, batch_size=job.batch, max_steps=job.steps, precision=job.precision, optimizer=optim
    )  # type: ignore[arg-type]
    execution = Execution(accelerator="cpu", checkpoint_seconds=1e9)
    out = Path(job.folder) / "out"
    out.mkdir(exist_ok=True)
    train(
        student, teacher, distill, Path(job.folder) / "tokens", out,
        seed=SEED, execution=execution, on_progress=lambda step, row: None, callbacks=[Marks()],
    )  # fmt: skip


def loop(job: Job, student: Any, teacher: Any, meter: Meter) -> None:
    """Train with a minimal loop, the reference for the overhead of a trainer."""
    trained = list(student.parameters())
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(BETA1, BETA2), fused=True)
    for batch in DataLoader(InOrder(job), batch_size=job.batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16-mixed"):
            loss = forward_kl(student, teacher, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        adamw.step()
        adamw.zero_grad()
        meter.step(loss)


def forward_kl(student: Any, teacher: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the objective on the full logits of one batch."""
    scored = batch["labels"][:, 1:] != IGNORED
    ours = student(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1][scored].float()
    with torch.no_grad():
        theirs = teacher(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1][scored].float()
    return F.kl_div(F.log_softmax(ours, -1), F.log_softmax(theirs, -1), log_target=True, reduction="batchmean")


def hf(job: Job, student: Any, teacher: Any, meter: Meter) -> None:
    """Train with transformers' Trainer and the naive objective."""
    from transformers import Trainer, TrainingArguments

    class Naive(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            return forward_kl(model, teacher, inputs)

    # Not a submodule of the student, so accelerate does not put it under autocast.
    teacher.forward = torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16-mixed")(teacher.forward)
    arguments = TrainingArguments(**training_arguments(job))
    metered(Naive, meter)(student, arguments, train_dataset=InOrder(job)).train()


def trl(job: Job, student: Any, teacher: Any, meter: Meter) -> None:
    """Train with TRL's trainer for generalised knowledge distillation, off-policy data only."""
    import datasets
    from transformers import PreTrainedTokenizerFast, default_data_collator
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def collate(sequences: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = default_data_collator(sequences)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}

    arguments = GKDConfig(lmbda=0.0, beta=0.0, **training_arguments(job))
    sequences = datasets.Dataset.from_list([{k: v.tolist() for k, v in sequence.items()} for sequence in InOrder(job)])
    trainer = metered(GKDTrainer, meter)(
        student, teacher, arguments, data_collator=collate, train_dataset=sequences.with_format("torch"),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), eos_token="<eos>", pad_token="<eos>"),
    )  # fmt: skip
    trainer.train()


def _tokenizer() -> Any:
    """Return a tokenizer, which Trainer requires but never uses, as the data is tokenised."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>"))


def modelopt(job: Job, student: Any, teacher: Any, meter: Meter) -> None:
    """Train with NVIDIA Model Optimizer's trainer for Hugging Face models."""
    from modelopt.torch.distill.plugins.huggingface import KDTrainer
    from transformers import TrainingArguments

    arguments = TrainingArguments(**training_arguments(job))
    distilled = {"teacher_model": teacher, "temperature": 1.0}
    trainer = metered(KDTrainer, meter)(student, arguments, train_dataset=InOrder(job), distill_args=distilled)
    trainer.train()


TRAINERS: dict[str, Callable[[Job, Any, Any, Meter], None]] = {
    "ours": ours,
    "hf": hf,
    "trl": trl,
    "modelopt": modelopt,
    "loop": loop,
}
"""Name -> function that trains by a job and records every step in a meter."""


def training_arguments(job: Job) -> dict[str, Any]:
    """Return the TrainingArguments of the peers, all of which extend transformers' Trainer."""
    return {
        "output_dir": str(Path(job.folder) / "out"), "max_steps": job.steps, "seed": SEED, "use_cpu": True,
        "per_device_train_batch_size": job.batch, "train_sampling_strategy": "sequential",
        "learning_rate": LR, "lr_scheduler_type": "constant", "adam_beta1": BETA1, "adam_beta2": BETA2,
        "weight_decay": DECAY, "max_grad_norm": CLIP, "optim": "adamw_torch_fused",
        "bf16": job.precision == "bf16-mixed", "gradient_checkpointing": False, "dataloader_pin_memory": False,
        "save_strategy": "no", "logging_steps": 10, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


def metered(trainer: type[Any], meter: Meter) -> type[Any]:
    """Return a subclass of a transformers Trainer that records every step in `meter`."""
    from transformers import TrainerCallback

    class Metered(trainer):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self.add_callback(Marks(self))

        def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
            self.last_loss = super().training_step(*arguments, **keywords)
            return self.last_loss

        def log(self, *arguments: Any, **keywords: Any) -> None:
            """Print nothing: standard output belongs to the benchmark."""

    class Marks(TrainerCallback):
        def __init__(self, of: Any) -> None:
            self.of = of

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step(self.of.last_loss)

    return Metered


def main(arguments: list[str] | None = None) -> int:
    """Run the job in a file and write the result to another; return exit code 3 if the peer is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="one run of benchmarks.step")
    parser.add_argument("job", type=Path)
    parser.add_argument("result", type=Path)
    args = parser.parse_args(arguments)
    job = Job(**json.loads(args.job.read_text()))
    warnings.filterwarnings("ignore")
    try:
        run = measure(job)
    except ImportError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 3
    args.result.write_text(json.dumps(asdict(run)))
    return 0


def measure(job: Job) -> Run:
    """Train by `job` and return the measurements."""
    switched = set_up(job)
    folder, meter = Path(job.folder), Meter()
    student, teacher = load_model(str(folder / "student")), load_model(str(folder / "teacher"))
    teacher.requires_grad_(False)
    before = resident("VmRSS")
    TRAINERS[job.trainer](job, student.train(), teacher, meter)
    return meter.found(before, switched)


def set_up(job: Job) -> dict[str, Any]:
    """Set up this process; return the effect of each optimisation."""
    torch.set_num_threads(job.threads)
    if not job.switches:
        return {}
    from lit_prune import cpu
    from lit_prune.cpu import allocator, matmul, threads

    if job.trainer == "ours":
        cpu.choose(Execution(accelerator="cpu", cpu="auto", threads=job.threads))
        cpu.prepare(_attention(job))
        return cpu.applied()
    with threads.alone():
        return {"matmul": matmul.switch(True), "allocator": allocator.switch(True)}


def _attention(job: Job) -> AttentionShape:
    """Return the shape of the teacher's attention, at which lit_prune's commands choose a kernel."""
    config = AutoConfig.from_pretrained(Path(job.folder) / "teacher")
    return AttentionShape(
        job.batch, config.num_attention_heads, config.num_key_value_heads, job.seq_len, config.head_dim
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
