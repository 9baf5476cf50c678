"""Recipes: YAML files that hold the settings of one command, found by path or by name in `configs/`.

Knows where the recipes lie and how their text becomes values; which keys a command accepts is known in `arguments`.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml


class InputError(ValueError):
    """What the user gave cannot be used. The message names the file or flag and says what to do."""


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.2's scalars: `1e-4` is a number, `no`, `off` and `12:30` are text, only `true` and `false` booleans."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - the loader's own way of being configured

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A key that stands twice would silently lose its first value."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9_]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
}
for _tag, _pattern in _SCALARS.items():
    _RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None)


def parse_yaml(text: str) -> Any:
    """Reads one YAML value, for example that of a flag: `"0.1"` → 0.1, `"{path: corpus, split: test}"` → a dict."""
    return yaml.load(text, _RecipeLoader)  # a subclass of SafeLoader


def nearest(word: str, words: list[str]) -> str:
    """Returns `" (did you mean …?)"` with the most similar of `words`, or nothing where none is similar."""
    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def recipe_folder() -> Path:
    """Where the recipes lie: inside an installed wheel, or at the top of a source tree."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """Resolves a recipe: a YAML file, or the name of one that comes with the package.

    Raises:
        InputError: if neither a file nor a recipe of this name exists.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise InputError(f"{name_or_path}: there is no such recipe file. Recipes by name: {', '.join(recipe_names())}")
    packaged = recipe_folder() / f"{name_or_path}.yaml"
    if not packaged.is_file():
        raise InputError(
            f"{name_or_path!r} is neither a YAML file nor a recipe{nearest(name_or_path, recipe_names())}. "
            f"Recipes by name: {', '.join(recipe_names())}"
        )
    return packaged


def load_recipe(path: Path) -> dict[str, Any]:
    """Reads the settings of a recipe.

    Raises:
        InputError: if the file is not YAML, or holds something else than keys and values.
    """
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected `key: value` lines, got {type(settings).__name__}")
    return settings


def is_main_process() -> bool:
    """Whether this process may speak: the first of those that torchrun or accelerate started, or the only one."""
    return os.environ.get("RANK", "0") == "0"
