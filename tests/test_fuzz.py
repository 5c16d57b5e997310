"""``make fuzz`` ends with the first failure, and says how to have it again."""

import os

import pytest

from tests import fuzz

FAULT = """
from hypothesis import given, settings, strategies as st

@given(st.integers(0, 2**31))
@settings(max_examples=20, database=None, deadline=None)
def test_small(x):
    assert {claim}

def test_draws_nothing():
    assert False
"""


@pytest.fixture
def planted(tmp_path):
    """Return a function that plants a property, and returns the arguments for it alone."""

    def plant(claim):
        (tmp_path / "test_planted.py").write_text(FAULT.format(claim=claim))
        return [str(tmp_path), "-c", os.devnull, "--rootdir", str(tmp_path)]

    return plant


def test_finds_a_fault_and_says_how_to_have_it_again(planted, capfd):
    assert fuzz.main(["1", "--seed", "7", *planted("x < 2**20")]) == 1
    out = capfd.readouterr().out
    assert out.splitlines()[-1].startswith("pass 1 failed; again: ")
    assert "--hypothesis-seed=7" in out.splitlines()[-1]
    assert "1048576" in out


@pytest.mark.long
def test_a_pass_that_ends(planted):
    status, out = fuzz.run_pass(fuzz.command(1, planted("x >= 0")), 300)
    assert status == 0
    assert "1 passed, 1 deselected" in out


@pytest.mark.long
def test_ends_when_the_time_is_up(planted, capfd):
    assert fuzz.main(["0.01", *planted("x >= 0")]) == 0
    assert capfd.readouterr().out.splitlines()[-1].endswith(" passes without a failure")
