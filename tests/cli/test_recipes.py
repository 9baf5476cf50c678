"""Recipes: how their text becomes values, and how they are found."""

import pytest

from hf_distil_whisper.cli.config import (
    InputError,
    find_recipe,
    load_recipe,
    parse_yaml,
    recipe_names,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-.5", -0.5),
        ("80_000", 80_000),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("010", "010"),
        ("true", True),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    """YAML 1.1 reads a learning rate of 1e-4 as text, Norwegian as False and 12:30 as 750."""
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_key_given_twice_is_an_error(tmp_path) -> None:
    """PyYAML keeps the last one, so that an edited line above it has no effect."""
    recipe = tmp_path / "twice.yaml"
    recipe.write_text("max_steps: 1\nmax_steps: 2\n")
    with pytest.raises(InputError, match=r"twice\.yaml.*'max_steps' is given twice"):
        load_recipe(recipe)


def test_a_recipe_that_is_no_mapping_is_an_error(tmp_path) -> None:
    recipe = tmp_path / "list.yaml"
    recipe.write_text("- max_steps\n")
    with pytest.raises(InputError, match="expected `key: value` lines, got list"):
        load_recipe(recipe)


def test_recipes_are_found_by_name_and_by_path(tmp_path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("max_steps: 1\n")
    assert find_recipe(str(own)) == own
    assert find_recipe("distil-large-v3").name == "distil-large-v3.yaml"
    assert "distil-medium.en" in recipe_names()


def test_an_unknown_recipe_names_the_nearest_one() -> None:
    with pytest.raises(InputError, match="did you mean 'distil-large-v3'"):
        find_recipe("distil-large-v33")
    with pytest.raises(InputError, match=r"missing\.yaml: there is no such recipe file"):
        find_recipe("missing.yaml")
