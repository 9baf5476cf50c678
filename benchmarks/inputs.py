"""Flags, models and recordings of a benchmark, loaded and checked before anything is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper import get_normalizer, load_model, load_processor
from hf_distil_whisper.cli.config import DataSource, InputError, is_main_process, setting
from hf_distil_whisper.cli.inputs import best_device, describe_rows, open_source
from hf_distil_whisper.inference.prompt import is_multilingual, resolve_language


def list_setting(default: Sequence[Any], help: str) -> Any:
    """Field of an arguments dataclass for a list, with its help text."""
    return field(default_factory=lambda: list(default), metadata={"help": help.replace("%", "%%")})


@dataclass
class ScoringArguments:
    """Flags of every script that scores models."""

    flag_groups: ClassVar = {"scoring": ("language", "normalizer", "dtype", "dry_run")}

    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the normaliser of the language.')
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    dry_run: bool = setting(False, "Load models and recordings only.")

    @property
    def scoring(self) -> dict[str, Any]:
        """`language` and `normalizer` of the functions that score."""
        return {"language": self.language, "normalizer": get_normalizer(self.normalizer) if self.normalizer else None}


class LoadedModel(NamedTuple):
    """A Whisper in eval mode on the best device, and its processor."""

    model: WhisperForConditionalGeneration
    processor: WhisperProcessor


def check_flags(args: Any, *required: str, whole: Sequence[str] = (), folder: str | None = None) -> None:
    """Refuses flags that are missing, whole numbers below 1, and an output folder that is not empty.

    Raises:
        InputError: for the first of them, with its name.
    """
    for name in required:
        if not getattr(args, name):
            raise InputError(f"--{name} is missing; --help lists the flags")
    for name in whole:
        value = getattr(args, name)
        numbers = value if isinstance(value, list) else [value]
        if not numbers or min(numbers) < 1:
            raise InputError(f"--{name}: expected whole numbers above 0, got {value}")
    if folder is not None and Path(folder).is_dir() and any(Path(folder).iterdir()):  # it may hold hours of work
        raise InputError(f"--output_dir: {folder} holds another run already; choose a new folder or empty it")


def load_models(
    paths: Mapping[str, str], dtype: str = "float32", language: str | None = None
) -> dict[str, LoadedModel]:
    """Models and processors by their names in the tables, from Hub names or folders."""
    loaded = {}
    for name, path in paths.items():
        model = load_model(path, dtype=getattr(torch, dtype)).to(best_device()).eval()
        try:
            resolve_language(model, language)
        except ValueError as error:
            raise InputError(f"--language: {path}: {error}") from error
        loaded[name] = LoadedModel(model, load_processor(path))
    return loaded


def load_scored_models(paths: Mapping[str, str], args: ScoringArguments) -> dict[str, LoadedModel]:
    """Models to score. Multilingual ones need a language, or a normaliser that is right for what they detect."""
    models = load_models(paths, args.dtype, args.language)
    multilingual = [name for name, one in models.items() if is_multilingual(one.model)]
    if multilingual and args.language is None and args.normalizer is None:
        raise InputError(
            f"--language is missing: {', '.join(multilingual)} would detect it, and error rates depend on it. Give "
            "the language that is spoken, or choose a --normalizer"
        )
    return models


def load_sets(sources: Mapping[str, DataSource], columns: Sequence[str] = ("audio",)) -> dict[str, Dataset]:
    """Loads data sets by name."""
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
