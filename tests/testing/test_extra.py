"""The extra ``testing``."""

import pytest

from tests.test_imports import run_python, run_without_extras


def test_names_its_extra():
    result = run_without_extras("from kornia_mvit.testing import check_backbone")
    assert "ImportError" in result.stderr.splitlines()[-1]
    assert "kornia_mvit.testing needs hypothesis; install kornia-mvit[testing]" in result.stderr.splitlines()[-1]


@pytest.mark.long
def test_needs_no_other_extra():
    """Hypothesis and NumPy do, beside torch and kornia."""
    blocked = "matplotlib", "PIL", "pytest", "pytorch_lightning", "timm", "torchvision"
    result = run_python(
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from torch import nn\n"
        "from kornia_mvit.testing import check_backbone\n"
        "print(check_backbone(lambda: nn.Conv2d(3, 4, 3), properties=['sizes', 'neighbours'], max_examples=3).ok)"
    )
    assert result.stdout == "True\n", result.stderr
