"""The knapsack against all combinations."""

import itertools
import random

import pytest

from lit_prune.pruning.knapsack import Option, knapsack, least_cost


def brute_force(groups, limit):
    fitting = [
        choice
        for choice in itertools.product(*groups)
        if sum(one.cost for one in choice) <= limit and any(one.sufficient for one in choice)
    ]
    return min((sum(one.score for one in choice) for choice in fitting), default=None)


@pytest.mark.parametrize("seed", range(25))
def test_the_choice_is_the_best_of_all_combinations(seed):
    draw = random.Random(seed)
    scale = draw.choice([1, 10**6])

    def option():
        return Option(draw.uniform(-0.2, 1), scale * draw.randrange(20) + draw.randrange(3), draw.random() < 0.3)

    groups = [[option() for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(1, 5))]
    groups[0].append(Option(2.0, scale * 5))
    least = least_cost(groups)
    assert brute_force(groups, least - 1) is None
    for limit in (least, least + 7 * scale, least + 100 * scale):
        chosen = [group[i] for group, i in zip(groups, knapsack(groups, limit), strict=True)]
        assert sum(one.cost for one in chosen) <= limit
        assert any(one.sufficient for one in chosen)
        assert sum(one.score for one in chosen) == pytest.approx(brute_force(groups, limit), abs=1e-9)
    with pytest.raises(ValueError, match="knapsack"):
        knapsack(groups, least - 1)
