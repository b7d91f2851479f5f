"""Cost of losses on logits: from the logits of all tokens at once, and in chunks.

    python -m benchmarks.losses [--threads 1] [--repeats 7] [--json FILE]

Measures one forward and backward pass, from random last states of student and teacher to the gradients of the student's
states and head; see benchmarks/measuring.py.
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
from lit_prune.losses.chunked import head_losses
from lit_prune.losses.logit import logit_losses
from lit_prune.losses.targets import HeadTarget
from lit_prune.models.lm_head import LMHead


@dataclass(frozen=True)
class Case:
    """The loss and the sizes of one evaluation."""

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
    """Run the benchmark and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (7)")
    parser.add_argument("--vocab", type=int, nargs="+", default=[2048, 32000], help="vocabularies (2048 32000)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096], help="tokens (1024 4096)")
    parser.add_argument("--losses", nargs="+", default=["clm", *logit_losses], help="losses (clm and all logit losses)")
    parser.add_argument("--width", type=int, default=256, help="width of the states (256)")
    parser.add_argument("--bfloat16", action="store_true", help="under autocast")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    environment = measuring.environment()
    print(f"{measuring.environment_line(environment)}; width {args.width}; {args.repeats} rounds\n")
    found: dict[str, Any] = {"environment": environment, "width": args.width, "repeats": args.repeats, "cases": []}
    for vocab in args.vocab:
        for tokens in args.tokens:
            for loss in args.losses:
                case = Case(vocab, tokens, loss, args.width, args.bfloat16)
                found["cases"].append({"case": case} | measure(case, args.repeats))
    if args.json:
        measuring.write(args.json, found)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Return time and peak memory of every way."""
    timings = measuring.compare({name: prepare(case, name) for name in WAYS}, repeats)
    if sys.platform != "linux":
        measuring.print_timings(case.title, timings)
        return {"timings": timings}
    peaks = {name: measuring.peak_memory(name, prepare, case, name) for name in WAYS}
    measuring.print_timings(case.title, timings, MiB_added={name: f"{peak.added:.0f}" for name, peak in peaks.items()})
    return {"timings": timings, "memory": list(peaks.values())}


def prepare(case: Case, name: str) -> measuring.Way:
    """Return one way to evaluate a case, with its inputs ready and lazy loading done."""
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
    """Last states and heads of student and teacher, of the same width."""

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
    """Return the loss as lit_prune computes it, in chunks of tokens."""
    if loss == "clm":
        return head_losses(inputs.states, inputs.head, successors=inputs.successors, ce_weight=1.0).loss
    settings: dict[str, Any] = {"target": inputs.target, "logit_loss": logit_losses[loss], "kd_weight": 1.0}
    return head_losses(inputs.states, inputs.head, **settings).loss


WAYS = {"all logits": of_all_logits, "in chunks": in_chunks}


if __name__ == "__main__":
    main()
