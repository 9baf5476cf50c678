"""Settings of a command: recipes in YAML, overruled by flags, as dataclasses.

A recipe's values pass through the same argument parser as flags, so that both are converted and checked alike.
"""

import argparse
import copy
import dataclasses
import difflib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import yaml

if TYPE_CHECKING:
    from transformers import HfArgumentParser


class InputError(ValueError):
    """What the user gave cannot be used. The message names the file or flag and says what to do."""


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.2's scalars: `1e-4` is a number, `no`, `off` and `12:30` are text, only `true` and `false` booleans."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML fills it through `add_implicit_resolver`

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        # PyYAML keeps the last of two values without a word.
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
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


def nearest(word: str, words: Sequence[str]) -> str:
    """Returns `" (did you mean …?)"` with the most similar of `words`, or nothing where none is similar."""
    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def is_main_process() -> bool:
    """Whether this process prints: the first of those that torchrun or accelerate started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def recipe_folder() -> Path:
    """The folder of the recipes: inside an installed wheel, or at the top of a source tree."""
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
        InputError: if the file is not YAML, or holds anything but keys and values.
    """
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected `key: value` lines, got {type(settings).__name__}")
    return settings


_KEYS_BELOW = "Its keys are listed below."


def setting(default: Any, help: str) -> Any:
    """Field of an arguments dataclass with its help text."""
    return field(default=default, metadata={"help": help.replace("%", "%%")})


def source_setting(help: str) -> Any:
    """Field of an arguments dataclass for one or several datasets (type `DataSource | str | None`, for example)."""
    return setting(None, f"{help} {_KEYS_BELOW}")


CORPUS_PREFIX = "corpus:"
_ACCESS = ("open", "gated", "local")


@dataclass(frozen=True)
class Corpus:
    """A corpus of the paper.

    Args:
        name (`str`): as in `corpus:<name>`.
        hours (`float`): of training speech, or of the test set.
        domain (`str`): topic and recording situation.
        licence (`str`): of its speech.
        access (`str`): "open", "gated" (asks for a consent on its page) or "local" (does not load from the Hub).
        source (`dict`): keys of [`DataSource`] that hold for all splits.
        splits (`dict[str, dict]`): further keys for each split.
        preparation (`str`): what to do, and what to know, before it is used.
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
    speakers: int | None = None

    def __post_init__(self) -> None:
        if self.access not in _ACCESS:
            raise InputError(f"corpus {self.name}: access is {self.access!r}, expected one of {', '.join(_ACCESS)}")


@lru_cache(maxsize=1)
def load_corpora() -> dict[str, Corpus]:
    """All corpora that come with the package, by name."""
    files = sorted((recipe_folder() / "corpora").glob("*.yaml"))
    return {name: Corpus(name, **facts) for file in files for name, facts in load_recipe(file).items()}


def _corpus_keys(path: str, flag: str) -> dict[str, Any]:
    """Keys of a [`DataSource`] for `corpus:<name>/<split>`; the first split where none is named."""
    name, _, split = path.removeprefix(CORPUS_PREFIX).partition("/")
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
    """Where the rows of one dataset come from: `train_dataset` or one entry of `eval_datasets`, for example.

    The help text of each field says what it holds; `hf-distil-whisper <command> --help` prints them.
    """

    path: str = field(
        metadata={
            "help": "Hub name, folder (recordings, manifests, save_to_disk, Parquet, tar), file or URL; or a "
            "corpus of the paper, corpus:<name>/<split>, which sets the other keys."
        }
    )
    split: str = setting(
        "train", "Split to read (default: train, or test where the dataset is only evaluated on; or the only one)."
    )
    config: str | None = setting(None, "Configuration of a Hub dataset, a language for example.")
    revision: str | None = setting(None, "Branch, tag or commit of a Hub dataset.")
    audio_column: str = setting("audio", "Column of the recordings (default: audio).")
    text_column: str | None = setting("text", "Column of the reference text, if there is one (default: text).")
    transcript_column: str = setting(
        "whisper_transcript", "Column of the pseudo-labels to train on (default: whisper_transcript)."
    )
    speaker_column: str | None = setting(None, "Column of the speaker: only utterances of one speaker are packed.")
    recording_column: str | None = setting(None, "Column of the recording: only utterances of one are packed.")
    language_column: str | None = setting(None, "Column of each row's language (code or name), for mixed languages.")
    id_column: str | None = setting(None, "Column of the row's id (default: split and row index).")
    max_samples: int | None = setting(None, "Read only the first rows, this many.")
    channel: int | str | None = setting(
        None, 'Channel of the recordings, from 0; or "each": a row of every channel (default: they are mixed).'
    )
    share: float | None = setting(
        None, "Read only this fraction of the rows, drawn at random; a larger share contains a smaller one."
    )
    weight: float | None = setting(
        None, "How often rows of this dataset are drawn in a training on several, relative to the others' weights."
    )
    wer_threshold: float | None = setting(
        None,
        "Train only on rows whose pseudo-label has at most this WER against the text, as a fraction (paper: 0.1).",
    )
    unit: str | None = setting(
        None, 'What wer_threshold counts: "word" or "character" (default: that of the language).'
    )

    is_split_given = True  # no field: whether `split` is the user's word, or the usual one of the flag

    def __post_init__(self) -> None:
        number = (int, float)
        for name, kind, holds, expected in (
            ("path", str, lambda _: True, "text"),
            ("split", str, lambda _: True, "text"),
            ("max_samples", int, lambda value: value >= 1, "a whole number above 0"),
            (
                "channel",
                (int, str),
                lambda value: value == "each" or (type(value) is int and value >= 0),
                '0, 1, ... or "each"',
            ),
            ("share", number, lambda value: 0 < value <= 1, "a fraction of the rows, more than 0 and at most 1"),
            ("weight", number, lambda value: value > 0, "a number above 0"),
            ("wer_threshold", number, lambda value: 0 <= value <= 1, "a fraction up to 1, such as 0.1 (10 % WER)"),
            ("unit", str, lambda value: value in ("word", "character"), '"word" or "character"'),
        ):
            value = getattr(self, name)
            is_left_out = value is None and name not in ("path", "split")
            if not is_left_out and not (isinstance(value, kind) and holds(value)):
                raise InputError(f"{name}: expected {expected}, got {value!r}")

    def arguments(self) -> dict[str, Any]:
        """The keys that [`load_source`] takes, by the names of its parameters."""
        of_training = ("path", "transcript_column", "share", "weight", "wer_threshold", "unit")
        keys = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {"name_or_path": self.path, **{key: keys[key] for key in keys if key not in of_training}}


_KEYS = [item.name for item in dataclasses.fields(DataSource)]


def as_source(value: Any, flag: str, split: str = "train") -> DataSource | None:
    """Reads a dataset from a path, a mapping with `path` and more, or the YAML text of one; None stays None.

    Args:
        value (`str`, `dict` or [`DataSource`], *optional*): `"corpus"` or `{"path": "corpus", "split": "dev"}`.
        flag (`str`): named in error messages.
        split (`str`, *optional*, defaults to `"train"`): used where `value` names none.

    Raises:
        InputError: on an unknown key, a missing path or a value of the wrong type.
    """
    return None if value is None or value == "" else _read_source(value, flag, split)


def _read_source(value: Any, flag: str, split: str) -> DataSource:
    if isinstance(value, DataSource):
        return value
    if isinstance(value, str):
        value = parse_yaml(value) if value.lstrip().startswith("{") else {"path": value}
    if not isinstance(value, dict):
        raise InputError(f"{flag}: expected a path or a mapping with the key 'path', got {value!r}")
    for key in value:
        if key not in _KEYS:
            raise InputError(f"{flag}: unknown key {key!r}{nearest(str(key), _KEYS)}. Keys: {', '.join(_KEYS)}")
    if "path" not in value:
        raise InputError(f"{flag}: the key 'path' is missing: a Hub name, folder, file or URL")
    path = str(value["path"])
    if path.startswith(CORPUS_PREFIX):
        value = _corpus_keys(path, flag) | {key: given for key, given in value.items() if key != "path"}
        path = value["path"]
    try:
        source = DataSource(**{"split": split, **value})
    except InputError as error:
        raise InputError(f"{flag}.{error}") from error
    source.is_split_given = "split" in value
    return source


def as_sources(value: Any, flag: str, split: str = "test") -> dict[str, DataSource]:
    """Reads a mapping of names to datasets (`{"test": "corpus"}`), or one path, which is named after its split."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = parse_yaml(value) if value.lstrip().startswith("{") else {split: value}
    if not isinstance(value, dict):
        raise InputError(f"{flag}: expected a mapping of names to datasets, got {value!r}")
    return {name: _read_source(source, f"{flag}.{name}", split) for name, source in value.items()}


def as_training_sources(value: Any, flag: str, split: str = "train") -> dict[str, DataSource]:
    """Reads one dataset, called like its flag, or several by name: `{"read": {"path": ...}, "spoken": ...}`.

    Raises:
        InputError: where only some of several datasets have a weight.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_yaml(value)
    several = isinstance(value, dict) and value and not set(value) & set(_KEYS)
    if not several or not all(isinstance(source, str | dict | DataSource) for source in value.values()):
        source = as_source(value, flag, split)
        return {} if source is None else {flag: source}
    sources = as_sources(value, flag, split)
    weighted = [name for name, source in sources.items() if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        missing = next(name for name in sources if name not in weighted)
        raise InputError(f"{flag}.{missing}.weight is missing: {weighted[0]} has one, so that all need one")
    return sources


_SWITCHES = {"on": "true", "off": "false"}
"""What YAML users write for a boolean and `string_to_bool` does not know."""


def parse_arguments(
    *types: type, argv: Sequence[str] | None = None, command: str | None = None, words_to: str | None = None
) -> tuple[Any, ...]:
    """Fills dataclasses from an optional recipe and from flags, which win.

    `train distil-large-v3 --max_steps 100 --train_dataset.path corpus` reads `configs/distil-large-v3.yaml`, then
    replaces two of its values; `--lora null` removes one.

    Args:
        types (`type`): dataclasses whose fields are the accepted keys. A class may sort flags under headings of
            `--help` in its `flag_groups`, a mapping of headings to names of flags.
        argv (`Sequence[str]`, *optional*): a recipe's name or YAML file, then flags; by default those of the process.
        command (`str`, *optional*): name of the program in its help text.
        words_to (`str`, *optional*): name of a list field that takes the words which belong to no flag. A recipe is
            then only recognised by the ending of its file.

    Returns:
        `tuple`: one object of each type.

    Raises:
        InputError: on an unknown key or flag (with the nearest valid one), or a value of the wrong type.

    Example:
        ```python
        args, training_args = parse_arguments(TrainArguments, DistillationTrainingArguments)
        ```
    """
    import torch  # not above: `hf-distil-whisper` lists its commands at once, and torch takes seconds

    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _build_parser(types, command)
    is_word = bool(arguments) and not arguments[0].startswith("-")
    has_recipe = is_word and (words_to is None or arguments[0].endswith((".yaml", ".yml")))
    recipe = find_recipe(arguments.pop(0)) if has_recipe else None
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
        values.use_cpu = True  # TrainingArguments refuses bf16 without an accelerator, which a dry run may not have
    try:
        return parser.parse_dict(vars(values))
    except InputError as error:
        raise InputError(f"{recipe}: {error}" if recipe else str(error)) from error


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of each flag with the type of its value, and no "(default: None)"."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {"string_to_bool": "bool"}.get(name := getattr(action.type, "__name__", "value"), name)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = action.option_strings[-1:] if action.dest == "help" else action.option_strings[:1]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _build_parser(types: Sequence[type], command: str | None) -> "HfArgumentParser":
    from transformers import HfArgumentParser  # not above: takes 1.4 s, as said in `parse_arguments`

    parser = HfArgumentParser(types, prog=command, allow_abbrev=False, formatter_class=_HelpFormatter)
    parser.usage = f"{parser.prog} [recipe or file.yaml] [--flag value ...]"
    parser.error = _raise_input_error
    _sort_flags(parser, types)
    return parser


def _raise_input_error(message: str) -> NoReturn:
    raise InputError(message)


def _sort_flags(parser: "HfArgumentParser", types: Sequence[type]) -> None:
    """Sorts the flags of `--help` under headings: `flag_groups` and keys of a dataset, then what the Trainer has."""
    from transformers import Seq2SeqTrainingArguments  # not above, as in `_build_parser`

    # argparse groups flags when they are added, which HfArgumentParser does in the order of the fields.
    options = parser._optionals._group_actions
    by_name: dict[str, list[argparse.Action]] = {}
    for action in options:
        by_name.setdefault(action.dest, []).append(action)
        if isinstance(action, argparse._StoreFalseAction):
            action.help = argparse.SUPPRESS  # `--no_x` beside `--x false`

    def group(heading: str, names: Sequence[str]) -> None:
        actions = [action for name in names for action in by_name[name]]
        parser.add_argument_group(heading)._group_actions.extend(actions)
        options[:] = [action for action in options if action not in actions]

    groups = {heading: names for kind in types for heading, names in getattr(kind, "flag_groups", {}).items()}
    for heading, names in groups.items():
        group(heading, names)
    fields = [item for kind in types for item in dataclasses.fields(kind)]
    if any(str(item.metadata.get("help", "")).endswith(_KEYS_BELOW) for item in fields):
        keys = parser.add_argument_group("keys of a dataset (--<flag>.<key> value)")
        for item in dataclasses.fields(DataSource):
            keys._group_actions.append(argparse.Action([], item.name, help=item.metadata["help"]))
    if any(issubclass(kind, Seq2SeqTrainingArguments) for kind in types):
        grouped = {name for names in groups.values() for name in names}
        inherited = [item.name for item in dataclasses.fields(Seq2SeqTrainingArguments) if item.name not in grouped]
        group("Trainer (transformers.Seq2SeqTrainingArguments)", inherited)


def _move_dotted_flags(arguments: list[str], settings: dict[str, Any]) -> list[str]:
    """`--eval_datasets.test.split dev` → settings["eval_datasets"]["test"]["split"]; returns the other arguments.

    A plain `--train_dataset corpus` beside `--train_dataset.split dev` moves too: it would replace the mapping. So
    does `--lora null`, which removes the recipe's value: no flag's type knows null.
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


def _convert(parser: "HfArgumentParser", settings: dict[str, Any]) -> dict[str, Any]:
    """Passes a recipe's values through the parser, so that they get the types of its fields."""
    from transformers.hf_argparser import string_to_bool  # as in `_build_parser`

    actions = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
    converted: dict[str, Any] = {}
    tokens: list[str] = []
    for key, value in settings.items():
        if key not in actions:
            raise InputError(f"unknown key {key!r}{nearest(str(key), list(actions))}")
        if isinstance(value, list) and actions[key].nargs == "+":
            tokens += [f"--{key}", *map(str, value)]
        elif value is None:  # removes a value: the default holds, which is null for all that may be null
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
