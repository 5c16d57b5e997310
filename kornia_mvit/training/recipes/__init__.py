"""Recipes: one YAML file each, stating command, time and score, found by name."""

from pathlib import Path

__all__ = ["describe_recipe", "find_recipe", "list_recipes"]

_FOLDER = Path(__file__).parent


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: one of the package by its name, or any file by its path.

    Raises:
        ValueError: if there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    path = _FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no recipe or file {name!r}; recipes: {', '.join(list_recipes())}")
    return path


def describe_recipe(name: str) -> str:
    """Return the first sentence of a recipe, which says what it is for.

    Raises:
        ValueError: if there is no such recipe.
    """
    head = []
    for line in find_recipe(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        head.append(line.removeprefix("# ").strip())
    return f"{' '.join(head)} ".split(". ")[0].removesuffix(" ").removesuffix(".")
