"""Dataclasses ⇄ YAML + flags: the settings of a command from a recipe, overruled by flags.

A recipe's values pass through the same argument parser as flags, so both are converted and checked alike. What the
settings mean is known by the commands.
"""

import dataclasses
import difflib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool


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


PREFIX = "corpus:"
_ACCESS = ("open", "gated", "local")


@dataclass(frozen=True)
class Corpus:
    """A corpus of the paper.

    Args:
        name (`str`): as in `corpus:<name>`.
        hours (`float`): of training speech, or of the set to score on.
        domain (`str`): what is spoken about, and where.
        licence (`str`): under which its speech may be used.
        access (`str`): "open", "gated" (needs a consent on its page) or "local" (does not load from the Hub).
        source (`dict`): keys of [`DataSource`] that hold for all splits.
        splits (`dict[str, dict]`): further keys for each split.
        preparation (`str`): what is to be done, and to be known, before.
        speakers (`int`, *optional*): where known.
    """

    name: str
    hours: float
    domain: str
    licence: str
    access: Literal["open", "gated", "local"]
    source: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    preparation: str
    speakers: int | None = field(default=None)

    def __post_init__(self) -> None:
        if self.access not in _ACCESS:
            raise InputError(f"corpus {self.name}: access is {self.access!r}, expected one of {', '.join(_ACCESS)}")


@lru_cache(maxsize=1)
def load_corpora() -> dict[str, Corpus]:
    """All corpora that come with the package, by name."""
    files = sorted((recipe_folder() / "corpora").glob("*.yaml"))
    return {name: Corpus(name, **facts) for file in files for name, facts in load_recipe(file).items()}


def corpus_source(place: str, flag: str) -> dict[str, Any]:
    """Turns the name of a corpus into keys of a [`DataSource`].

    Args:
        place (`str`): `"corpus:<name>"` for its first split, or `"corpus:<name>/<split>"`.
        flag (`str`): stands in error messages.

    Raises:
        InputError: for an unknown corpus or split; names those that exist.
    """
    name, _, split = place.removeprefix(PREFIX).partition("/")
    corpora = load_corpora()
    if name not in corpora:
        raise InputError(f"{flag}: no corpus {name!r}{nearest(name, list(corpora))}. Corpora: {', '.join(corpora)}")
    corpus = corpora[name]
    split = split or next(iter(corpus.splits))
    if split not in corpus.splits:
        raise InputError(f"{flag}: corpus {name} has no split {split!r}. Splits: {', '.join(corpus.splits)}")
    return {**corpus.source, **corpus.splits[split]}


@dataclass
class DataSource:
    """Where the rows of one dataset come from; the keys under `train_dataset` and each entry of `eval_datasets`.

    Args:
        path (`str`): Hub name; folder (`save_to_disk`, audio with metadata, Parquet, tar); file; URL; or a corpus of
            the paper, `corpus:<name>/<split>`, which brings the other keys with it.
        split (`str`, *optional*, defaults to `"train"`): `"test"` where a dataset is only scored, unless its folder
            holds the one data set that `pseudo-label` or `filter` wrote.
        config (`str`, *optional*): configuration of a Hub dataset, for example a language.
        revision (`str`, *optional*): of a Hub dataset.
        audio_column (`str`, *optional*, defaults to `"audio"`).
        text_column (`str`, *optional*, defaults to `"text"`): reference text; null for audio without text.
        transcript_column (`str`, *optional*, defaults to `"whisper_transcript"`): pseudo-labels to train on.
        speaker_column (`str`, *optional*): only utterances of one speaker are packed together.
        recording_column (`str`, *optional*): and only those of one recording.
        language_column (`str`, *optional*): of each row, code or name, where a source holds several languages.
        id_column (`str`, *optional*): row numbers where left out.
        max_samples (`int`, *optional*): first rows only.
        share (`float`, *optional*): so much of all rows, more than 0 and at most 1, drawn at random: always the same
            ones, and a larger share holds a smaller one.
        weight (`float`, *optional*): how often its rows are drawn in a training on several sources, in relation to the
            weights of the others.
        wer_threshold (`float`, *optional*): keeps the rows whose pseudo-label differs from the text by at most this
            WER, as a fraction (λ of section 4.2; 0.1 in the paper).
    """

    path: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    audio_column: str = "audio"
    text_column: str | None = "text"
    transcript_column: str = "whisper_transcript"
    speaker_column: str | None = None
    recording_column: str | None = None
    language_column: str | None = None
    id_column: str | None = None
    max_samples: int | None = None
    share: float | None = None
    weight: float | None = None
    wer_threshold: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("path", self.path), ("split", self.split)):
            if not isinstance(value, str):
                raise InputError(f"{name}: expected text, got {value!r}")
        if self.max_samples is not None and (not isinstance(self.max_samples, int) or self.max_samples < 1):
            raise InputError(f"max_samples: expected a whole number above 0, got {self.max_samples!r}")
        if self.share is not None and (not isinstance(self.share, int | float) or not 0 < self.share <= 1):
            raise InputError(f"share: expected a fraction of the rows, more than 0 and at most 1, got {self.share!r}")
        if self.wer_threshold is not None and (
            not isinstance(self.wer_threshold, int | float) or not 0 <= self.wer_threshold
        ):
            raise InputError(f"wer_threshold: expected a fraction such as 0.1 (10 % WER), got {self.wer_threshold!r}")
        if self.weight is not None and (not isinstance(self.weight, int | float) or not self.weight > 0):
            raise InputError(f"weight: expected a number above 0, got {self.weight!r}")


def as_source(value: Any, flag: str, split: str = "train") -> DataSource:
    """Reads a dataset's place from what a recipe or flag gives: a path, or a mapping with `path` and more.

    Args:
        value (`str`, `dict` or `DataSource`): `"corpus"`, `{"path": "corpus", "split": "dev"}` or its YAML text.
        flag (`str`): stands in error messages, for example `"train_dataset"`.
        split (`str`, *optional*, defaults to `"train"`): used where `value` names none.

    Raises:
        InputError: on an unknown key, a missing path or a value of the wrong type.
    """
    if isinstance(value, DataSource):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_yaml(value)
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, dict):
        raise InputError(f"{flag}: expected a path or a mapping with the key 'path', got {value!r}")
    names = [item.name for item in dataclasses.fields(DataSource)]
    for key in value:
        if key not in names:
            raise InputError(f"{flag}: unknown key {key!r}{nearest(str(key), names)}. Keys: {', '.join(names)}")
    if "path" not in value:
        raise InputError(f"{flag}: the key 'path' is missing: a Hub name, folder, file or URL")
    if str(value["path"]).startswith(PREFIX):
        value = {**corpus_source(value["path"], flag), **{key: part for key, part in value.items() if key != "path"}}
    if any((Path(str(value["path"])) / name).is_file() for name in ("state.json", "run.json", "row_index.json")):
        split = "train"  # one data set that a command has written is read whole, whatever the flag's usual split
    try:
        return DataSource(**{"split": split, **value})
    except InputError as error:
        raise InputError(f"{flag}.{error}") from error


def as_sources(value: Any, flag: str, split: str = "test") -> dict[str, DataSource]:
    """Reads a mapping of names to datasets, for example `eval_datasets`.

    Args:
        value (`str`, `dict`, *optional*): `{"test": {"path": "corpus"}}`, its YAML text, or one path, which is then
            named after its split.
        flag (`str`): stands in error messages.
        split (`str`, *optional*, defaults to `"test"`): used where a dataset names none.

    Raises:
        InputError: as `as_source`.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        value = parse_yaml(value) if value.lstrip().startswith("{") else {split: value}
    if not isinstance(value, dict):
        raise InputError(f"{flag}: expected a mapping of names to datasets, got {value!r}")
    return {name: as_source(source, f"{flag}.{name}", split) for name, source in value.items()}


def as_training_sources(value: Any, flag: str, split: str = "train") -> dict[str, DataSource]:
    """Reads one data set, or several by name, to train on or to take all of the rows of.

    Args:
        value (`str`, `dict`, *optional*): as `as_source` takes it, or `{"read": {"path": ...}, "spoken": ...}`.
        flag (`str`): stands in error messages, and names a single data set.
        split (`str`, *optional*, defaults to `"train"`): used where a data set names none.

    Raises:
        InputError: as `as_source`, and where only some of several sources have a weight.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_yaml(value)
    if value is None or value == "":
        return {}
    names = [item.name for item in dataclasses.fields(DataSource)]
    if not isinstance(value, dict) or not value or set(value) & set(names):
        return {flag: as_source(value, flag, split)}
    if not all(isinstance(place, str | dict | DataSource) for place in value.values()):
        return {flag: as_source(value, flag, split)}  # no mapping of sources: says which key is unknown
    sources = as_sources(value, flag, split)
    weighted = [name for name, source in sources.items() if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        missing = next(name for name in sources if name not in weighted)
        raise InputError(f"{flag}.{missing}.weight is missing: {weighted[0]} has one, so that all need one")
    return sources


def short_names(places: Sequence[str]) -> dict[str, str]:
    """Models and files by what tells them apart in a table: the shortest end of the path that no other one has.

    `runs/tiny` and `noise/pub.flac` are "tiny" and "pub", `runs/a/student` and `runs/b/student` are "a/student" and
    "b/student". A path that is the end of another one stays whole.

    Args:
        places (`Sequence[str]`): names on the Hub, folders and files. One that is given twice is one.

    Returns:
        `dict[str, str]`: place by name, in their order.
    """
    ends = {place: _path_ends(place) for place in places}
    number = Counter(end for of_place in ends.values() for end in of_place)
    return {next((end for end in ends[place] if number[end] == 1), place): place for place in ends}


def _path_ends(place: str) -> list[str]:
    """The last part of a path, the last two, and so on up to the whole; a file's without its suffix."""
    path = Path(place)
    parts = (path.with_suffix("") if path.is_file() else path).parts
    return [str(Path(*parts[start:])) for start in reversed(range(len(parts)))]


def setting(default: Any, help: str) -> Any:
    """Field of an arguments dataclass with its help text."""
    return field(default=default, metadata={"help": help.replace("%", "%%")})


def source_setting(help: str) -> Any:
    """Field of an arguments dataclass that holds one or several datasets."""
    return setting(None, f"{help} Single keys: --<this>.split test.")


_SWITCHES = {"on": "true", "off": "false"}
"""What YAML users write for a boolean and `string_to_bool` does not know."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse_arguments(
    *types: type, argv: Sequence[str] | None = None, command: str | None = None, words_to: str | None = None
) -> tuple[Any, ...]:
    """Fills dataclasses from an optional recipe and from flags, which win.

    `train distil-large-v3 --max_steps 100 --train_dataset.path corpus` reads `configs/distil-large-v3.yaml`, then
    replaces two of its values; `--lora null` takes one away.

    Args:
        types (`type`): dataclasses whose fields are the accepted keys.
        argv (`Sequence[str]`, *optional*): a recipe's name or YAML file, then flags; by default those of the process.
        command (`str`, *optional*): name of the program in its help text.
        words_to (`str`, *optional*): name of a list field that takes the words which belong to no flag. A recipe is
            then only recognised by the ending of its file.

    Returns:
        `tuple`: one object of each type.

    Raises:
        InputError: on an unknown key or flag (with the nearest valid one), or a value of the wrong type.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(types, prog=command, allow_abbrev=False)
    parser.usage = f"{parser.prog} [recipe or file.yaml] [--flag value ...]"
    named = arguments[:1] and not arguments[0].startswith("-")
    with_recipe = named and (words_to is None or arguments[0].endswith((".yaml", ".yml")))
    recipe = find_recipe(arguments.pop(0)) if with_recipe else None
    settings = load_recipe(recipe) if recipe else {}
    flags = _move_dotted_flags(arguments, settings)
    try:
        parser.set_defaults(**_convert(parser, settings))
    except InputError as error:
        raise InputError(f"{recipe or 'flags'}: {error}") from error
    values, unknown = parser.parse_known_args(flags)
    if words_to is not None:
        words = [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
        vars(values)[words_to] = [*(vars(values)[words_to] or []), *words] or None
    if unknown:
        names = [option for action in parser._actions for option in action.option_strings]
        raise InputError(f"unknown argument {unknown[0]!r}{nearest(unknown[0].split('=')[0], names)}")
    if vars(values).get("dry_run") and "use_cpu" in values and not torch.accelerator.is_available():
        values.use_cpu = True  # a dry run may happen far from the accelerator; TrainingArguments refuses bf16 there
    try:
        return parser.parse_dict(vars(values))
    except InputError as error:
        raise InputError(f"{recipe}: {error}" if recipe else str(error)) from error


def _move_dotted_flags(arguments: list[str], settings: dict[str, Any]) -> list[str]:
    """`--eval_datasets.test.split dev` → settings["eval_datasets"]["test"]["split"]; returns the other arguments.

    A plain `--train_dataset corpus` beside `--train_dataset.split dev` moves too: it would overrule the mapping. So
    does `--lora null`, nothing in place of the recipe's value: no flag's type knows null.
    """
    dotted = {argument[2:].split(".")[0] for argument in arguments if _is_dotted(argument)}
    others: list[str] = []
    moved: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        name, equals, value = argument.partition("=")
        null = (value if equals else "".join(queue[:1])) == "null"
        if not (_is_dotted(argument) or (name.startswith("--") and (name[2:] in dotted or null))):
            others.append(argument)
            continue
        if not equals and not queue:
            raise InputError(f"{name}: a value must follow")
        flag, dot, rest = name[2:].partition(".")
        moved.append((flag.replace("-", "_") + dot + rest, value if equals else queue.pop(0)))
    for name, value in sorted(moved, key=lambda pair: "." in pair[0]):
        *parents, last = name.split(".")
        target = settings
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {"path": target[parent]} if isinstance(target.get(parent), str) else {}
            target = target[parent]
        target[last] = parse_yaml(value)
    return others


def _is_dotted(argument: str) -> bool:
    return argument.startswith("--") and "." in argument.partition("=")[0]


def _convert(parser: _Parser, settings: dict[str, Any]) -> dict[str, Any]:
    """Passes a recipe's values through the parser, so that they get the types of its fields."""
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
    converted: dict[str, Any] = {}
    tokens: list[str] = []
    for key, value in settings.items():
        if key not in actions:
            raise InputError(f"unknown key {key!r}{nearest(str(key), list(actions))}")
        if isinstance(value, list) and actions[key].nargs == "+":
            tokens += [f"--{key}", *map(str, value)]
        elif value is None:  # takes a value away: the default holds, which is null for all that may be null
            converted[key] = actions[key].default
        elif isinstance(value, list):
            converted[key] = value
        elif isinstance(value, dict):
            converted[key] = json.dumps(value)
        elif actions[key].type is string_to_bool:
            tokens.append(f"--{key}={_SWITCHES.get(str(value).lower(), value)}")
        else:
            tokens.append(f"--{key}={str(value).lower() if isinstance(value, bool) else value}")
    given = vars(parser.parse_args(tokens))
    names = [token[2:].split("=")[0] for token in tokens if token.startswith("--")]
    return converted | {name: given[name] for name in names}
