"""Flags of a placement: ranges, and flags without effect."""

from __future__ import annotations

import pytest
from refusals import refuses

from lit_prune.config import Placement
from lit_prune.config.overrides import check_placement


@pytest.mark.parametrize(
    ("placement", "flag", "value"),
    [
        (Placement(jobs=0), "--jobs", 0),
        (Placement(on="ray", gpus=-1), "--gpus", -1),
        (Placement(cpus=2), "--cpus", "here"),
        (Placement(jobs=2, gpus=1), "--gpus", "here"),
        (Placement(on="ray", minutes=10), "--minutes", "ray"),
        (Placement(on="slurm", address="auto"), "--address", "slurm"),
        (Placement(on="ray", slurm=("partition=gpu",)), "--slurm", "ray"),
    ],
)
def test_a_flag_out_of_range_or_without_effect_is_refused(placement: Placement, flag: str, value: object) -> None:
    with refuses(flag, value):
        check_placement(placement)


@pytest.mark.parametrize(
    "placement",
    [
        Placement(),
        Placement(jobs=2),
        Placement(on="ray", cpus=1, gpus=0, address="auto", jobs=3),
        Placement(on="slurm", cpus=8, gpus=1, minutes=60, slurm=("partition=gpu", "constraint=h100")),
    ],
)
def test_flags_of_their_place_pass(placement: Placement) -> None:
    check_placement(placement)
