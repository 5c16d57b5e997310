"""What the documentation takes from the package as it is built."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from kornia_mvit.training.recipes import find_recipe, list_recipes
from kornia_mvit.weights import list_weights

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(table: str) -> list[list[str]]:
    """Read a list-table."""
    found: list[list[str]] = []
    for line in table.splitlines():
        if line.startswith("   * -"):
            found.append([line[6:].strip()])
        elif line.startswith("     -"):
            found[-1].append(line[6:].strip())
    return found[1:]


class TestRecipes:
    def test_table_has_every_recipe_with_its_settings(self, generate: ModuleType) -> None:
        table = {re.search(r"<recipe-(.+)>", row[0])[1]: row for row in rows(generate.recipe_table())}  # type: ignore[index]
        assert list(table) == list_recipes()
        for name, row in table.items():
            settings = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
            assert row[2] == str(settings["trainer"]["max_epochs"])
            assert row[1].endswith(settings["data"]["class_path"].rpartition(".")[2])

    def test_scores_are_those_of_the_files(self, generate: ModuleType) -> None:
        table = {row[0]: row[3] for row in rows(generate.recipe_table())}
        assert table[":ref:`digits <recipe-digits>`"].startswith("Reached 100.0 % of the 360 digits")
        assert table[":ref:`finetune <recipe-finetune>`"] == "Not yet measured."

    def test_refuses_a_recipe_without_score(
        self, generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "mine.yaml"
        monkeypatch.setattr(generate, "find_recipe", lambda name: file)
        file.write_text("# Mine.\n#   kornia-mvit fit --config mine\n# It is fast.\nmodel: {}\n")
        with pytest.raises(ValueError, match="mine tells no score"):
            generate.read_recipe("mine")
        file.write_text("# Mine. Not yet measured.\nmodel: {}\n")
        with pytest.raises(ValueError, match="mine has no command"):
            generate.read_recipe("mine")


class TestTables:
    def test_networks(self, generate: ModuleType) -> None:
        # arXiv 2110.02178 and Apple's code; products with those of attention
        table = {row[0]: row[1:] for row in rows(generate.variant_table())}
        assert table["parameters with 1,000 classes"] == ["1,272,024", "2,317,848", "5,578,632"]
        assert table["multiply-accumulates at 256×256"] == ["0.41 G", "1.03 G", "2.00 G"]
        assert table["last 1×1 convolution"] == ["320", "384", "640"]

    def test_weights(self, generate: ModuleType) -> None:
        assert [row[0].strip("|` ") for row in rows(generate.weights_table())] == list_weights()

    def test_moved_paths(self, generate: ModuleType) -> None:
        table = dict(rows(generate.moved_table()))
        assert table["``data.batch``"] == "``batch``"
        assert table["``data.datasets.read_mask``"] == "``data.masks.read_mask``"

    def test_extras_are_all_described(self, generate: ModuleType, tmp_path: Path) -> None:
        assert len(rows(generate.extras_table(ROOT / "pyproject.toml"))) == len(generate.EXTRAS) + 1
        file = tmp_path / "pyproject.toml"
        file.write_text('[project]\ndependencies = []\n[project.optional-dependencies]\nnew = ["torch"]\n')
        with pytest.raises(ValueError, match="extras are new"):
            generate.extras_table(file)


class TestNotebooks:
    def test_missing_one_is_named(self, generate: ModuleType, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.mkdir()
        for name in generate.NOTEBOOKS[:-1]:
            (source / f"{name}.ipynb").write_text("{}")
        with pytest.raises(FileNotFoundError, match=f"{generate.NOTEBOOKS[-1]}.ipynb"):
            generate.bring_notebooks(source, target)

    def test_stale_ones_go(self, generate: ModuleType, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.mkdir()
        target.mkdir()
        (target / "old.ipynb").write_text("{}")
        for name in generate.NOTEBOOKS:
            (source / f"{name}.ipynb").write_text(name)
        generate.bring_notebooks(source, target)
        assert {path.stem for path in target.iterdir()} == set(generate.NOTEBOOKS)

    def test_all_are_shown(self, generate: ModuleType) -> None:
        shown = re.findall(r"^   examples/(\w+)$", (DOCS / "index.rst").read_text(encoding="utf-8"), re.MULTILINE)
        assert shown == list(generate.NOTEBOOKS)


def test_pages_are_in_the_index() -> None:
    index = (DOCS / "index.rst").read_text(encoding="utf-8")
    shown = set(re.findall(r"^   ([a-z]+)$", index, re.MULTILINE))
    assert {path.stem for path in DOCS.glob("*.rst")} - {"index"} <= shown


def test_paths_in_contributing_exist() -> None:
    """The table of folders, and that of what a change touches."""
    text = (ROOT / "CONTRIBUTING.rst").read_text(encoding="utf-8")
    inside, where = text[text.index("Where things stand") :].split("Where a change belongs:")
    inside = inside[inside.index("``batch.py``") : inside.index("``tests/``")]
    paths = re.findall(r"^``([\w./]+)``(?:, ``([\w./]+)``)?", inside, re.MULTILINE)
    found = {f"kornia_mvit/{path}" for pair in paths for path in pair if path}
    changes = where[: where.index("A public name that moves")]
    found |= set(re.findall(r"``((?:kornia_mvit|tests)/[\w./]+)``", changes))
    assert len(found) > 20
    assert len(re.findall(r"^an? ", changes, re.MULTILINE)) == 11
    assert [path for path in found if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()] == []
