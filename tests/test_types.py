"""The types that other people's checkers read from the package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A line of a program, and the type that a checker has to see.
PROGRAM = {
    "MobileViT('xs')(images)": "Tensor",
    "MobileViT('xs').forward_features(images)": "list[Tensor]",
    "MobileViTClassifier('xxs', num_classes=5)(images)": "Tensor",
    "DeepLabV3('xxs', num_classes=5)(images)": "Tensor",
    "SSDLite('xxs', num_classes=5)(images)": "tuple[Tensor, Tensor]",
    "fuse(DeepLabV3('xxs'))": "DeepLabV3",
    "from_pretrained('model.ckpt')": "Classifier | DeepLabV3 | SSDLite",
    "AugmentationPipeline(policies.classification_train(64))(images)": "Tensor",
    "AugmentationPipeline(policies.classification_train(64))(Batch(images))": "Batch",
    "AugmentationPipeline(policies.classification_train(64))(images, labels)": "tuple[Tensor, Tensor]",
    "Preprocess(64).module()(images)": "Tensor",
    "Preprocess(64)(images)": "Tensor",
    "read_image('photo.jpg')": "Tensor",
    "MobileViT('xs').push_to_hub('owner/name')": "str",
    "kornia_mvit.EMA(0.9)": "EMA",
    "list_weights()": "list[str]",
}


def run_checker(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a type checker as a user of this environment would."""
    # pyright asks the first python of PATH where packages lie, and verifytypes asks nobody else.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("types") / "program.py"
    lines = [
        "import torch",
        "from typing_extensions import reveal_type",
        "import kornia_mvit",
        "from kornia_mvit import *",
    ]
    lines += ["images, labels = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])"]
    path.write_text("\n".join([*lines, *(f"reveal_type({line})" for line in PROGRAM)]) + "\n")
    return path


def revealed(output: str, pattern: str) -> list[str]:
    """Return the types that a checker told of, by the last part of their names."""
    return [re.sub(r"\b(?:\w+\.)+(?=\w)", "", name) for name in re.findall(pattern, output)]


@pytest.mark.long(every_share=True)
def test_every_public_type_is_known():
    result = run_checker("pyright", "--verifytypes", "kornia_mvit", "--ignoreexternal", "--outputjson")
    assert result.stdout.startswith("{"), result.stdout + result.stderr  # else it did not run
    found = json.loads(result.stdout)["typeCompleteness"]
    lacking = {
        f"{symbol['name']}: {fault['message']}"
        for symbol in found["symbols"]
        for fault in symbol["diagnostics"]
        if fault["severity"] == "error"
    }
    assert found["packageRootDirectory"] == str(ROOT / "kornia_mvit")
    assert found["exportedSymbolCounts"]["withKnownType"] > 1000
    assert sorted(lacking) == []
    assert found["completenessScore"] == 1


@pytest.mark.long(every_share=True)
def test_pyright_sees_what_a_program_gets(program):
    result = run_checker("pyright", str(program))
    assert result.returncode == 0, result.stdout + result.stderr
    assert revealed(result.stdout, r'information: Type of ".*" is "(.*)"') == list(PROGRAM.values())


@pytest.mark.long(every_share=True)
def test_mypy_sees_what_a_program_gets(program):
    result = run_checker("mypy", "--strict", str(program))
    assert result.returncode == 0, result.stdout + result.stderr
    assert revealed(result.stdout, r'Revealed type is "(.*)"') == list(PROGRAM.values())
