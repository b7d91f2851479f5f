"""Ridge regression against plain linear algebra, with the penalty against explicit leave-one-out fits."""

import pytest
import torch

from lit_prune.importance.ridge import PENALTIES, ridge


def drawn(*sizes):
    return torch.randn(*sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(len(sizes)))


def by_hand(x, y, penalty):
    """Coefficients and intercept from the normal equations, the intercept unpenalised."""
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    cost = torch.diag(torch.tensor([penalty] * x.shape[1] + [0.0], dtype=x.dtype))
    return torch.linalg.lstsq(ones.T @ ones + cost, ones.T @ y, driver="gelsd").solution


def test_planted_coefficients_are_recovered():
    x = (drawn(200, 30) > 0).double()
    planted = drawn(30)
    torch.testing.assert_close(ridge(x, x @ planted + 7.0), planted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("features", [5, 40])
def test_the_penalty_has_the_smallest_leave_one_out_error(features):
    x, noise = drawn(20, features), drawn(20)
    y = x[:, 0] - x[:, 1] + noise
    centred = x - x.mean(0)
    penalties = PENALTIES * centred.square().sum(1).mean()

    def error(penalty):
        found = 0.0
        for i in range(20):
            rest = [j for j in range(20) if j != i]
            fit = by_hand(x[rest], y[rest], float(penalty))
            found += float(y[i] - x[i] @ fit[:-1] - fit[-1]) ** 2
        return found

    best = min(penalties, key=error)
    torch.testing.assert_close(ridge(x, y), by_hand(x, y, float(best))[:-1], rtol=1e-6, atol=1e-8)


def test_observations_that_agree_have_no_slopes():
    assert torch.equal(ridge(drawn(6, 3), torch.full((6,), 2.0)), torch.zeros(3, dtype=torch.float64))
