import subprocess
import sys

import kornia.contrib
import pytest
import torch
from torch import nn

import kornia_mvit
from kornia_mvit import MobileViT, register_in_kornia


@pytest.fixture
def registered(monkeypatch):
    """Register for one test: what the monkeypatch notes here, it takes back afterwards."""
    monkeypatch.setattr(kornia.contrib, "MobileViT", None, raising=False)
    register_in_kornia()


@pytest.mark.usefixtures("registered")
class TestRegisterInKornia:
    def test_smoke(self):
        assert kornia.contrib.MobileViT is MobileViT

    def test_documented_snippet(self):
        """Kornia's documentation, word for word."""
        import kornia.contrib as K

        classifier = nn.Sequential(
            K.MobileViT(mode='xxs'),
            nn.AvgPool2d(256 // 32, 1),
            nn.Flatten(),
            nn.Linear(320, 1000)
        )  # fmt: skip
        assert classifier(torch.rand(1, 3, 256, 256)).shape == (1, 1000)

    def test_twice(self):
        register_in_kornia()
        assert kornia.contrib.MobileViT is kornia_mvit.MobileViT


def test_nothing_is_registered_unasked():
    code = "import kornia_mvit, kornia.contrib, sys; sys.exit(hasattr(kornia.contrib, 'MobileViT'))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
