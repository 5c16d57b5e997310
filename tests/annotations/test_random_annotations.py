"""Random annotations: a slice of what ``python -m tests.annotations.run`` writes and reads."""

import pytest

from tests.annotations.cases import Case
from tests.annotations.run import KINDS, complaint, run_cases


class TestRandomAnnotations:
    @pytest.mark.parametrize("kind", KINDS)
    def test_slice(self, kind):
        wrong, refused = run_cases(kind, 6, seed=3)
        assert wrong == {}
        assert refused < 6

    @pytest.mark.parametrize(
        ("load", "errors", "message"),
        [
            (lambda: {"train": [1]}, (), "wrong train: [1], expected [2]"),
            (lambda: {"train": [2]}, ("3",), "read, though it should say '3'"),
            (lambda: {}[0], ("0",), "KeyError"),
            (lambda: int("x"), (), "refused: ValueError"),
            (lambda: int("x"), ("y",), "lacks 'y'"),
            (lambda: int("x"), ("x",), None),
            (lambda: {"train": [2]}, (), None),
        ],
    )
    def test_faults_are_found(self, load, errors, message):
        found = complaint(Case(load, {"train": [2]}, errors))
        assert (found is None) if message is None else (message in found)
