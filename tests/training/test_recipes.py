"""Recipes: found by name, and each is a whole configuration."""

import pytest
import yaml

from kornia_mvit.training import find_recipe, list_recipes


class TestFindRecipe:
    def test_smoke(self, tmp_path):
        assert list_recipes() == ["digits", "folder"]
        assert find_recipe("digits").name == "digits.yaml"
        own = tmp_path / "own.yaml"
        own.touch()
        assert find_recipe(str(own)) == own

    def test_exception(self):
        with pytest.raises(ValueError, match="no recipe or file 'digit'; recipes: digits, folder"):
            find_recipe("digit")

    @pytest.mark.parametrize("name", list_recipes())
    def test_a_recipe_states_its_command_and_its_promise(self, name):
        text = find_recipe(name).read_text()
        head = [line for line in text.splitlines() if line.startswith("#")]
        assert any(f"kornia-mvit fit --config {name}" in line for line in head)
        assert any("reached" in line.lower() or "not yet measured" in line for line in head)
        assert set(yaml.safe_load(text)) == {"model", "data", "trainer"}
