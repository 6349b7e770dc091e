"""Runs whose cause is known: the first two sentences name it."""

import re

import pytest
from causes import CAUSES, train

from learndyn import diagnose


NAMED = (
    "healthy-sft",
    "healthy-dpo",
    "swapped-labels",
    "wrong-reference",
    "lr-10x",
    "lr-3e-2",
    "lr-zero",
    "frozen-adapter",
    "memorised",
    "eos-missing",
    "identical-pairs",
    "truncated-chosen",
    "format-mismatch",
)
"""Causes that the diagnosis names; `benchmarks/causes.py` tries all of them."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of the model that all runs start from; the first run makes it."""
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("cause", NAMED)
def test_first_two_sentences_name_the_cause(cause, models, tmp_path):
    diagnosis = diagnose(train(cause, 0, tmp_path, models))
    assert re.search(CAUSES[cause].named, " ".join(diagnosis.sentences[:2]))
