"""`lit-prune prune` and `lit-prune distill`: one model in, one smaller or better Hugging Face folder out."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.filesize import decimal

from lit_prune import cpu
from lit_prune.api.compress import distill, prune
from lit_prune.api.output import Compressed
from lit_prune.cli.process import Output, Verb
from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Execution
from lit_prune.config.overrides import parse_setting
from lit_prune.config.prune import DEFAULT_METHOD, method_class, method_summaries
from lit_prune.cpu.threads import share_the_machine
from lit_prune.escape import printable, terminal_text
from lit_prune.render.model_card import size_text
from lit_prune.store import DEFAULT_ROOT

Share = int | float | None
Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclasses.dataclass(frozen=True)
class _Common:
    """Flags of both commands."""

    out: Path
    """Folder to write: model, tokenizer and README.md (the model card); must be empty or not exist."""
    corpus: str = "python"
    """Text: python (the standard library of this Python), docstrings, readmes, a file, a folder or a hub data set;
    `lit-prune fields corpus.path` explains them."""
    seq_len: int = 256
    """Tokens in a sequence."""
    profile: str | None = None
    """Profile to start from: quick, laptop, smollm2, h200, paper, or a YAML file; default: the defaults of a cell."""
    set: Settings = ()
    """FIELD=VALUE for any other setting, e.g. calibration.num_sequences=512. `lit-prune fields` lists them."""
    store: str = DEFAULT_ROOT
    """Folder of all results; results in it are reused."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = Execution()

    def common(self) -> dict[str, Any]:
        """Return the arguments that both functions take."""
        return {
            "out": self.out, "corpus": self.corpus, "seq_len": self.seq_len, "profile": self.profile,
            "settings": dict(map(parse_setting, self.set)), "store": self.store, "execution": self.execution,
            "progress": ProgressBar,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PruneArgs(_Common):
    """Prune one model, write the student as a Hugging Face folder, and print the losses."""

    model: tyro.conf.Positional[str] = tyro.MISSING
    """Model to prune: a teacher by name (`lit-prune teachers`), a folder, a .gguf file or a hub id."""
    method: str = DEFAULT_METHOD
    """Pruning method, one of those above. --set changes its settings; `lit-prune fields prune.METHOD` lists them."""
    num_parameters: Share = None
    """Parameters to keep, a count or a share in (0, 1]. If no other size is given, the default method prunes hidden
    channels and MLP neurons to the same share; default: 0.5 if no size is given at all, or the method's own."""
    hidden_size: Share = None
    """Hidden channels to keep, a count or a share; default: all."""
    intermediate_size: Share = None
    """MLP neurons to keep in each layer, a count or a share; default: all."""
    num_attention_heads: Share = None
    """Query heads to keep in each layer, a count or a share; default: all."""
    num_hidden_layers: Share = None
    """Layers to keep, a count or a share; default: all."""
    sparsity: float | None = None
    """Weights to set to zero, a share of those of the linears in the layers, for methods that zero weights."""


@dataclasses.dataclass(frozen=True)
class DistillArgs(_Common):
    """Distill a teacher into a student, write the student as a Hugging Face folder, and print the losses."""

    student: tyro.conf.Positional[str] = tyro.MISSING
    """Model to train: a folder (such as one that `lit-prune prune` wrote), a .gguf file or a hub id."""
    teacher: str = tyro.MISSING
    """Model to imitate: a teacher by name, a folder, a .gguf file or a hub id. It must have the student's tokenizer."""
    max_steps: int = 100
    """Optimizer steps."""
    batch_size: int = 8
    """Sequences per step."""
    logit_loss: str = "kld"
    """Loss between the next-token distributions: kld, reverse_kld, jsd, mse, cosine, ..."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Log the run to Weights & Biases; auto is online if there is an API key, else offline."""


def list_methods() -> str:
    """Return all methods, a line each, for the help text."""
    return "\n".join(["Methods:", *(f"  {name:<15} {line}" for name, line in method_summaries().items())])


def run_prune(flags: PruneArgs) -> int:
    """Prune, write and print, with the retraining that the method publishes; return 1 if the computation failed."""
    sizes = {
        name: getattr(flags, name)
        for name in ("num_parameters", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    }
    code = _carried_out(prune, flags, model=flags.model, method=flags.method, sparsity=flags.sparsity, **sizes)
    retraining = method_class(flags.method).retraining
    if code == 0 and retraining:
        command = ["lit-prune", "distill", str(flags.out), "--teacher", flags.model, "--corpus", flags.corpus]
        command += ["--out", f"{flags.out}-retrained", *distill_flags(retraining)]
        for name in ("seq_len", "profile", "store"):  # as given: a longer sequence may not fit the model
            if (value := getattr(flags, name)) != getattr(PruneArgs, name):
                command += [f"--{name.replace('_', '-')}", str(value)]
        Output().print(terminal_text(f"retrain as published: {shlex.join(command)}"), soft_wrap=True)
    return code


def distill_flags(changes: Mapping[str, Any]) -> list[str]:
    """Return fields of `distill` as flags of `lit-prune distill`."""
    flags = {
        "distill.max_steps": "--max-steps", "distill.batch_size": "--batch-size", "distill.optimizer.lr": "--lr",
        "distill.logit_loss": "--logit-loss",
    }  # fmt: skip
    written = {path: value if isinstance(value, str) else json.dumps(value) for path, value in changes.items()}
    given = [(flags[path], value) for path, value in written.items() if path in flags]
    others = [("--set", f"{path}={value}") for path, value in written.items() if path not in flags]
    return [word for pair in given + others for word in pair]


def run_distill(flags: DistillArgs) -> int:
    """Distill, write and print; return 1 if the computation failed."""
    names = ("student", "teacher", "max_steps", "batch_size", "logit_loss", "lr", "wandb")
    return _carried_out(distill, flags, **{name: getattr(flags, name) for name in names})


def _carried_out(function: Any, flags: _Common, **arguments: Any) -> int:
    share_the_machine()
    cpu.choose(flags.execution)
    try:
        found = function(arguments.pop("model", None) or arguments.pop("student"), **arguments, **flags.common())
    except RuntimeError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    _print(found)
    return 0


def _print(found: Compressed) -> None:
    """Print the losses, and where the student lies and how large it is."""
    console = Output()
    num_bytes = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())
    for name, result in (("teacher", found.teacher), ("student", found.student)):
        before = (
            f", {result['lm_loss_before']:.4f} before distillation"
            if name == "student" and "lm_loss_before" in result
            else ""
        )
        size, loss = size_text(result), f"{result['lm_loss']:.4f} nats/token{before}"
        console.print(terminal_text(f"{name}: {size} parameters, {loss}"), soft_wrap=True)
    console.print(terminal_text(f"written: {found.folder} ({decimal(num_bytes)})"), soft_wrap=True)


PRUNE = Verb("prune", PruneArgs, run_prune, more_help=list_methods)
DISTILL = Verb("distill", DistillArgs, run_distill)
