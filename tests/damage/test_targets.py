"""Batches of random fields: right, or refused by name."""

from tests.damage.targets import run_cases


def test_random_fields_are_right_or_refused_by_name():
    assert run_cases(60, seed=0) == {}
