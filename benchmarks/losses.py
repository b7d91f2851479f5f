"""What the losses that are computed from logits cost: from the logits of all tokens, and from those of a few at a time.

    python -m benchmarks.losses [--threads 1] [--repeats 7] [--json FILE]

One evaluation forward and backward, from the last states of student and teacher to the gradient of the student's states
and head, random numbers, measured as benchmarks/measuring.py says.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measuring
from lit_prune.losses.chunked import HeadTarget, head_losses
from lit_prune.losses.logit import logit_losses
from lit_prune.models.lm_head import LMHead


@dataclass(frozen=True)
class Case:
    """What is evaluated."""

    vocab: int
    tokens: int
    loss: str
    """A logit loss, or "clm" for the cross-entropy of the successors alone."""
    width: int
    bfloat16: bool

    @property
    def title(self) -> str:
        return f"{self.loss}, vocabulary {self.vocab}, {self.tokens} tokens{', bfloat16' if self.bfloat16 else ''}"


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (7)")
    parser.add_argument("--vocab", type=int, nargs="+", default=[2048, 32000], help="vocabularies (2048 32000)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096], help="tokens (1024 4096)")
    parser.add_argument("--losses", nargs="+", default=["clm", *logit_losses], help="losses (clm and all logit losses)")
    parser.add_argument("--width", type=int, default=256, help="width of the states (256)")
    parser.add_argument("--bfloat16", action="store_true", help="under autocast")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    environment = measuring.environment()
    print(f"{measuring.environment_line(environment)}; width {asked.width}; {asked.repeats} rounds\n")
    found: dict[str, Any] = {"environment": environment, "width": asked.width, "repeats": asked.repeats, "cases": []}
    for vocab in asked.vocab:
        for tokens in asked.tokens:
            for loss in asked.losses:
                case = Case(vocab, tokens, loss, asked.width, asked.bfloat16)
                found["cases"].append({"case": case} | measure(case, asked.repeats))
    if asked.json:
        measuring.write(asked.json, found)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Time and peak memory of every way."""
    timings = measuring.compare({name: prepare(case, name) for name in WAYS}, repeats)
    if sys.platform != "linux":
        measuring.print_timings(case.title, timings)
        return {"timings": timings}
    peaks = {name: measuring.peak_memory(name, prepare, case, name) for name in WAYS}
    measuring.print_timings(case.title, timings, MiB_added={name: f"{peak.added:.0f}" for name, peak in peaks.items()})
    return {"timings": timings, "memory": list(peaks.values())}


def prepare(case: Case, name: str) -> measuring.Way:
    """Return one way to evaluate a case, with its inputs made and all that is loaded on first use loaded."""
    inputs, few = Inputs.of(case), Inputs.of(replace(case, tokens=8))

    def run(inputs: Inputs = inputs) -> None:
        inputs.states.grad = inputs.head.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16) if case.bfloat16 else nullcontext():
            loss = WAYS[name](inputs, case.loss)
        loss.backward()

    run(few)
    return run


@dataclass(frozen=True)
class Inputs:
    """Of student and teacher, of the same width."""

    states: Tensor
    head: LMHead
    target: HeadTarget
    successors: Tensor

    @staticmethod
    def of(case: Case) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        draws = [torch.randn(n, case.width, generator=generator) for n in 2 * (case.tokens, case.vocab)]
        ours, our_head, theirs, their_head = draws
        our_head, their_head = our_head / case.width**0.5, their_head / case.width**0.5
        successors = torch.randint(0, case.vocab, (case.tokens,), generator=generator)
        target = HeadTarget(theirs, LMHead(their_head))
        return Inputs(ours.requires_grad_(), LMHead(our_head.requires_grad_()), target, successors)


def of_all_logits(inputs: Inputs, loss: str) -> Tensor:
    """Return the loss from the logits of all tokens."""
    ours = inputs.head.logits(inputs.states).float()
    if loss == "clm":
        return F.cross_entropy(ours, inputs.successors)
    with torch.no_grad():
        theirs = inputs.target.head.logits(inputs.target.states).float()
    return logit_losses[loss](ours, theirs).mean()


def in_chunks(inputs: Inputs, loss: str) -> Tensor:
    """Return what lit_prune does."""
    if loss == "clm":
        return head_losses(inputs.states, inputs.head, successors=inputs.successors, ce_weight=1.0).loss
    asked: dict[str, Any] = {"target": inputs.target, "logit_loss": logit_losses[loss], "kd_weight": 1.0}
    return head_losses(inputs.states, inputs.head, **asked).loss


WAYS = {"all logits": of_all_logits, "in chunks": in_chunks}


if __name__ == "__main__":
    main()
