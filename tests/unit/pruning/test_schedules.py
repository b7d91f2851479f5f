"""Learning rates of the trainings of masks, by hand and against torch's own schedules."""

import pytest
import torch

from lit_prune.pruning.learned.schedules import constant, cosine, linear, scheduled


def test_a_linear_schedule_by_hand() -> None:
    assert [linear(4)(step) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert [linear(6, warmup=2)(step) for step in range(7)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0]


def test_a_cosine_is_that_of_torch_and_stays_at_its_least() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    for step in range(7):
        assert cosine(7)(step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert [cosine(4, least=0.1, warmup=2)(step) for step in range(6)] == pytest.approx([0.5, 1, 1, 0.55, 0.1, 0.1])


def test_each_group_has_its_schedule() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 4.0)]
    found = scheduled(torch.optim.SGD(groups), linear(2), constant)
    found["optimizer"].step()
    found["lr_scheduler"]["scheduler"].step()
    assert [group["lr"] for group in found["optimizer"].param_groups] == [0.5, 4.0]
    assert found["lr_scheduler"]["interval"] == "step"
