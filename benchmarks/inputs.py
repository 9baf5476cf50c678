"""Models and recordings of a benchmark, loaded and checked before anything is measured; names for its tables."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper import load_model, load_processor
from hf_distil_whisper.cli.config import DataSource, InputError, is_main_process
from hf_distil_whisper.cli.inputs import best_device, describe_rows, open_source
from hf_distil_whisper.inference.prompt import resolve_language, scoring_language


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Names of models and files for a table: the shortest end of each path that no other path has.

    `runs/tiny` and `noise/pub.flac` are "tiny" and "pub", `runs/a/student` and `runs/b/student` are "a/student" and
    "b/student". A path that is the end of another one stays whole.

    Args:
        paths (`Sequence[str]`): names on the Hub, folders and files. One that is given twice is one.

    Returns:
        `dict[str, str]`: path by name, in their order.
    """
    ends = {path: _path_ends(path) for path in paths}
    number = Counter(end for ends_of_path in ends.values() for end in ends_of_path)
    return {next((end for end in ends[path] if number[end] == 1), path): path for path in ends}


def _path_ends(name: str) -> list[str]:
    """The last part of a path, the last two, and so on up to the whole; a file's without its suffix."""
    path = Path(name)
    parts = (path.with_suffix("") if path.is_file() else path).parts
    return [str(Path(*parts[start:])) for start in reversed(range(len(parts)))]


def machine() -> str:
    """The machine that figures are measured on, for example `"NVIDIA H200 (AVX512), 16 threads, torch 2.13.0"`."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} processor"
    level = torch.backends.cpu.get_cpu_capability()
    return f"{device} ({level}), {torch.get_num_threads()} threads, torch {torch.__version__}"


class LoadedModel(NamedTuple):
    """A Whisper in eval mode on the best device, and its processor."""

    model: WhisperForConditionalGeneration
    processor: WhisperProcessor


def require(args: Any, *names: str) -> None:
    """Raises an [`InputError`] for the first of the flags that was not given."""
    for name in names:
        if not getattr(args, name):
            raise InputError(f"--{name} is missing; --help lists the flags")


def whole_numbers(args: Any, *names: str) -> None:
    """Raises an [`InputError`] for a flag whose number, or one of whose numbers, is below 1."""
    for name in names:
        value = getattr(args, name)
        numbers = value if isinstance(value, list) else [value]
        if not numbers or min(numbers) < 1:
            raise InputError(f"--{name}: expected whole numbers above 0, got {value}")


def new_folder(folder: str | None) -> None:
    """Raises an [`InputError`] for an output folder that is not empty: it may hold hours of work."""
    if folder is not None and Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise InputError(f"--output_dir: {folder} holds another run already; choose a new folder or empty it")


def load_models(
    places: Mapping[str, str], dtype: str = "float32", language: str | None = None
) -> dict[str, LoadedModel]:
    """Loads models and processors.

    Args:
        places (`Mapping[str, str]`): Hub name or folder by the name in the tables.
        dtype (`str`, *optional*, defaults to `"float32"`): of the weights.
        language (`str`, *optional*): of the speech, which every model must know.

    Raises:
        InputError: for a language that a model does not know.
    """
    loaded = {}
    for name, place in places.items():
        model = load_model(place, dtype=getattr(torch, dtype)).to(best_device()).eval()
        try:
            resolve_language(model, language)
        except ValueError as error:
            raise InputError(f"--language: {place}: {error}") from error
        loaded[name] = LoadedModel(model, load_processor(place))
    return loaded


def check_one_normalizer(models: Mapping[str, LoadedModel], language: str | None, normalizer: str | None) -> None:
    """Raises an [`InputError`] for models whose texts would be normalised differently: their rates say nothing."""
    languages = {name: scoring_language(one.model, language) for name, one in models.items()}
    if len(set(languages.values())) > 1 and normalizer is None:
        pairs = ", ".join(f"{name} by {code!r}" for name, code in languages.items())
        raise InputError(
            f"--language is missing: the models would be normalised differently ({pairs}), so that their rates could "
            "not be compared. Give the language that is spoken, or choose a --normalizer"
        )


def load_sets(sources: Mapping[str, DataSource], columns: Sequence[str] = ("audio",)) -> dict[str, Dataset]:
    """Loads data sets by name.

    Raises:
        InputError: for one that lacks a column.
    """
    sets = {}
    for name, source in sources.items():
        sets[name] = open_source(source)
        for column in columns:
            if column not in sets[name].column_names:
                raise InputError(
                    f"{name}: {source.path!r} has no column {column!r}; it has: {', '.join(sets[name].column_names)}"
                )
    return sets


def ready(models: Mapping[str, LoadedModel], sets: Mapping[str, Dataset], dry_run: bool) -> bool:
    """Prints what will be measured on what; returns whether to go on."""
    if is_main_process():
        for name, one in models.items():
            print(f"{name}: {one.model.num_parameters() / 1e6:.1f} M parameters, {one.model.dtype}")
        for name, rows in sets.items():
            print(f"{name}: {describe_rows(rows)}")
        if dry_run:
            print("dry run: the inputs are ready, nothing was written")
    return not dry_run
