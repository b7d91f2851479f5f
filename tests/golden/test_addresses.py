"""Addresses of pinned cells: no change of the code may move results in a store."""

import pytest

from lit_prune.config import Cell, Corpus, Teacher
from lit_prune.store.address import STAGES, key

# The addresses of PINNED. They may change only together with a raised SCHEMA, or with a changed default; a
# field that is added with `later`, a new loss or a moved file must leave them as they are.
GOLDEN = {
    "tokenizer": "c342d2c31b2b",
    "teacher": "2dfc55923374",
    "tokens": "6e11a1f6c431",
    "correction": "a0cf62ed0ba5",
    "importance": "41ded145c5fd",
    "head_channels": "78ae13d39521",
    "preactivations": "3fc839e70c7c",
    "distances": "406fe52e61bf",
    "removals": "41ef3a43a840",
    "gradients": "eebadc331836",
    "student": "612bcbed7b31",
    "cell": "1c07a3717540",
}
PINNED = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))


def test_every_stage_has_a_golden_address():
    assert set(GOLDEN) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_golden_addresses(stage):
    assert key(PINNED, stage) == GOLDEN[stage]
