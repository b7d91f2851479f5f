"""An error carries its field; reading a section in another's place renames it."""

import pytest

from lit_prune.config import ConfigError, errors_of


@pytest.mark.parametrize(
    ("message", "field", "problem"),
    [
        ("corpus.path: must be text, got: nothing", "corpus.path", "must be text, got: nothing"),
        ("--store: cannot be written", "--store", "cannot be written"),
        ("there is no such thing: no field", "", "there is no such thing: no field"),
        ("unknown loss", "", "unknown loss"),
    ],
)
def test_the_field_of_an_error_is_data(message, field, problem):
    error = ConfigError(message)
    assert (str(error), error.field, error.problem) == (message, field, problem)


@pytest.mark.parametrize(
    ("raised", "field"),
    [
        ("corpus.path", "evaluation.second_corpus.path"),
        ("corpus", "evaluation.second_corpus"),
        ("corpuses.source", "corpuses.source"),
        ("teacher.pretraining.corpus.path", "teacher.pretraining.corpus.path"),
    ],
)
def test_fields_of_one_section_become_those_of_another_and_no_other_word_does(raised, field):
    with pytest.raises(ConfigError) as caught, errors_of({"corpus": "evaluation.second_corpus"}):
        raise ConfigError(f"{raised}: corpus.path is not text")
    assert str(caught.value) == f"{field}: corpus.path is not text"
