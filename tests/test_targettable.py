"""The table of which operation carries which target is what the operations do, and finds what is wrong."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from kornia.augmentation import RandomHorizontalFlip

from kornia_mvit import AugmentationPipeline, Batch

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "targets.rst").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("targettable", DOCS / "targettable.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_page_is_what_the_operations_do(table: ModuleType) -> None:
    assert PAGE.partition(table.MARK)[1:] == (table.MARK, table.write_table(table.make_rows()).removeprefix(table.MARK))


@pytest.mark.parametrize("name", ["RandomAffine", "PatchSequential of geometry", "RandomMosaic", "Mosaic"])
def test_some_rows(table: ModuleType, name: str) -> None:
    (row,) = table.make_rows([name])
    assert f"\n   {', '.join(row)}\n" in PAGE


def test_page_has_every_operation(table: ModuleType) -> None:
    rows = [line.partition(",")[0].strip() for line in PAGE.partition(table.MARK)[2].splitlines()[4:]]
    assert rows == [name.lstrip("*") for name in table.find_operations()]


@pytest.mark.parametrize(
    "target",
    ["image", "boxes", "oriented_boxes", "instance_masks", "mask", "keypoints", "values", "vectors", "extra: image"],
)
def test_a_target_that_is_elsewhere_is_found(table: ModuleType, target: str) -> None:
    """What is compared with where pixels went is not moved as they were."""
    batch = Batch(table.make_image(), **table.make_targets()[target])
    out, _ = AugmentationPipeline([RandomHorizontalFlip(p=1.0)]).augment(batch)
    right = table.ramp().repeat(2, 1, 1, 1).flip(-1)
    table.check_places("flip", target, batch, out, right, moves=True)
    other = out.replace(image=out.image.flip(-1)) if target == "extra: image" else out
    with pytest.raises(table.Wrong, match=f"flip: {target} is not where"):
        table.check_places("flip", target, batch, other, right.flip(-1), moves=True)
    if target != "extra: image":
        still = AugmentationPipeline([RandomHorizontalFlip(p=0.0)])
        if target in ("mask", "boxes", "oriented_boxes", "keypoints", "values", "vectors"):
            with pytest.raises(table.Wrong, match=f"flip: {target} is brought back"):
                table.check_back("flip", target, still, batch, out, still.augment(batch)[1])


@pytest.mark.parametrize("error", [RuntimeError("boxes"), ValueError("Flip fails\non boxes"), ValueError("it fails")])
def test_errors_in_other_words_are_found(table: ModuleType, error: Exception) -> None:
    with pytest.raises(table.Wrong, match="Flip, boxes"):
        table.refusal(error, "Flip", "boxes")
    assert table.refusal(ValueError("Flip cannot carry boxes"), "Flip", "boxes") == table.REFUSED
