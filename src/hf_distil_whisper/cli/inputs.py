"""Checks of a command's inputs, collected in a [`Plan`] that is printed before anything is loaded or written.

Models are opened without weights, datasets are opened and their columns compared; all problems are reported at once.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible, complete_generation_config, load_model, load_processor
from hf_distil_whisper.cli.config import DataSource, InputError, is_main_process, nearest, parse_yaml
from hf_distil_whisper.data.shards import RUN, ShardStore
from hf_distil_whisper.data.sources import MissingSplit, load_source, mean_duration
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.sequential import TemperatureFallback
from hf_distil_whisper.inference.speculative import check_assistant, create_assistant

logger = logging.getLogger(__name__)

_DATA = "a Hub name, folder, file or URL"
_MODEL = "a Hub name or a folder with config.json"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Plan:
    """What a command is going to do, and what is wrong with its inputs.

    Args:
        command (`str`): heading of the plan.
        steps (`list[str]`): what will be done, in order.
        figures (`dict[str, str]`): what it will take, by name: hours of audio, memory, disk.
        problems (`list[str]`): what is wrong, each with the flag's name and what to do.
    """

    command: str
    steps: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises an [`InputError`] with all problems, if there are any."""
        if self.problems:
            raise InputError("\n  ".join(["the inputs are not ready:", *self.problems]))

    def report(self, *, dry_run: bool = False) -> bool:
        """Prints the plan, raises its problems, and returns whether the command is to run.

        Args:
            dry_run (`bool`, *optional*, defaults to `False`): stop after the plan.

        Raises:
            InputError: if an input is wrong; all problems at once.
        """
        if is_main_process() and self.steps:
            lines = [f"{self.command}:", *(f"  {number}. {step}" for number, step in enumerate(self.steps, 1))]
            lines += [f"  {name}: {figure}" for name, figure in self.figures.items()]
            sys.stdout.write("\n".join(lines) + "\n")
        self.check()
        if dry_run and is_main_process():
            sys.stdout.write("dry run: the inputs are ready, nothing was written\n")
        sys.stdout.flush()
        return not dry_run

    @contextmanager
    def collect(self, flag: str) -> Iterator[None]:
        """Turns a `ValueError` or `OSError` of its block into a problem of that flag."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.problems.append(f"--{flag}: {error}")

    def require(self, value: object, flag: str, expected: str) -> bool:
        """Whether a flag is given; a problem where it is not."""
        if value is None or value == "" or value == {}:
            self.problems.append(f"--{flag} is missing: {expected}")
            return False
        return True

    def single_process(self) -> None:
        """Checks that the command was started once: every process would do all of the work in the same folder."""
        world_size = os.environ.get("WORLD_SIZE", "1")
        if world_size != "1":
            self.problems.append(f"{self.command} works in one process, got {world_size}: set --num_processes 1")

    def model(self, name_or_path: str | None, flag: str) -> WhisperForConditionalGeneration | None:
        """Checks that there is a Whisper; returns its architecture on the meta device, without weights."""
        if not self.require(name_or_path, flag, _MODEL) or name_or_path is None:
            return None
        try:
            config = AutoConfig.from_pretrained(name_or_path)
        except (OSError, ValueError) as error:
            first_line = str(error).splitlines()[0]
            self.problems.append(f"--{flag}: no model at {name_or_path!r}, expected {_MODEL} ({first_line})")
            return None
        if not isinstance(config, WhisperConfig):
            self.problems.append(f"--{flag}: {name_or_path!r} is a {config.model_type!r} model, expected a Whisper")
            return None
        with torch.device("meta"):  # shapes only: a plan of large-v3 would take 6 GB and a minute
            model = WhisperForConditionalGeneration(config)
        with suppress(OSError):  # a checkpoint without the file has these settings in config.json
            model.generation_config = GenerationConfig.from_pretrained(name_or_path)
        model.generation_config = complete_generation_config(model.generation_config, config)
        return model

    def processor(self, name_or_path: str | None, flag: str) -> WhisperProcessor | None:
        """Checks that there are the files of a processor beside a model."""
        with self.collect(flag):
            return load_processor(name_or_path or "")
        return None

    def model_and_processor(self, name_or_path: str | None, flag: str) -> WhisperForConditionalGeneration | None:
        """Checks that there is a Whisper with its processor; returns its architecture, as [`model`] does."""
        model = self.model(name_or_path, flag)
        if model is not None:
            processor = self.processor(name_or_path, flag)
            with self.collect(flag):
                check_compatible(model, None, processor)
        return model

    def repository(self, repo_id: str | None) -> None:
        """Checks the name of a repository on the Hub."""
        if self.require(repo_id, "repo_id", "owner/name, or a name under your account") and repo_id is not None:
            try:
                validate_repo_id(repo_id)
            except HFValidationError as error:
                self.problems.append(f"--repo_id: {error}")

    def source(self, source: DataSource | None, flag: str, columns: tuple[str, ...] = ()) -> Dataset | None:
        """Opens a dataset, or its `share`, and checks that it has `columns`."""
        return self._open(open_source, source, flag, columns)

    def stream(self, source: DataSource | None, flag: str, columns: tuple[str, ...] = ()) -> IterableDataset | None:
        """Opens a dataset to be read row by row, without a copy before, and checks that it has `columns`."""
        if source is not None and source.share is not None:
            self.problems.append(f"--{flag}.share: the number of rows of a stream is not known; leave it out")
            return None
        return self._open(lambda source: _load(source, streaming=True), source, flag, columns)

    def _open(
        self, load: Callable[[DataSource], Any], source: DataSource | None, flag: str, columns: tuple[str, ...]
    ) -> Any:
        if not self.require(source, flag, _DATA) or source is None:
            return None
        with self.collect(flag):
            rows = load(source)
            names = rows.column_names or []
            missing = [column for column in columns if column not in names]
            if not missing:
                return rows
            self.problems.append(f"--{flag}: {source.path!r} has no column {missing[0]!r}; it has: {', '.join(names)}")
        return None

    def output(self, folder: str | None, flag: str = "output_dir", resumes: bool = False) -> None:
        """Checks that nothing would be overwritten; with `resumes`, shards of a stopped run may be there."""
        if not self.require(folder, flag, "the folder to write to") or folder is None:
            return
        if Path(folder).is_file():
            self.problems.append(f"--{flag}: {folder} is a file, expected a folder")
        elif resumes and (Path(folder) / RUN).is_file():
            done = sum(shard.info["source_rows"] for shard in ShardStore(folder).shards())
            self.steps.append(f"go on after the {done} rows that {folder} holds already")
        elif Path(folder).is_dir() and any(Path(folder).iterdir()):
            self.problems.append(f"--{flag}: {folder} holds another run already; choose a new folder or empty it")

    def long_form_method(
        self, method: str, flag: str, chunked: Mapping[str, object], sequential: Mapping[str, object]
    ) -> None:
        """Checks that no setting of the other long-form algorithm is given: it would have no effect."""
        other, settings = ("sequential", sequential) if method == "chunked" else ("chunked", chunked)
        for name, value in settings.items():
            if value is not None and value is not False:
                self.problems.append(
                    f"--{name}: belongs to --{flag} {other}, but it is {method}. Leave one of them out"
                )


def _load(source: DataSource, **options: Any) -> Any:
    """Loads a dataset: where no split is named, the only one if there is none of the usual name."""
    try:
        return load_source(**source.arguments(), **options)
    except MissingSplit as error:
        if source.is_split_given or len(error.splits) > 1:
            raise
        (only,) = error.splits
        logger.info(f"{source.path}: there is no split {source.split!r}, and {only!r} is read, the only one.")
        source.split = only
        return load_source(**source.arguments(), **options)


def open_source(source: DataSource) -> Dataset:
    """Loads the rows of a dataset, or its `share` of them."""
    rows: Dataset = _load(source)
    if source.share is None:
        return rows
    drawn = np.random.default_rng(0).permutation(len(rows))[: max(round(source.share * len(rows)), 1)]
    return rows.select(sorted(drawn))


def hours_of_audio(dataset: Dataset) -> float:
    """Hours in a dataset: exact with a `duration` column, else estimated from the headers of at most 200 rows."""
    return (mean_duration(dataset) or 0.0) * len(dataset) / 3600


def describe_rows(dataset: Dataset) -> str:
    """For a plan: `"12.30 h in 4,000 rows"`."""
    return f"{hours_of_audio(dataset):.2f} h in {len(dataset):,} rows"


def gigabytes(number_of_bytes: float) -> str:
    """`"1.23 GB"`, below that `"456 MB"`."""
    return f"{number_of_bytes / 1e9:.2f} GB" if number_of_bytes >= 1e9 else f"{number_of_bytes / 1e6:.0f} MB"


def generation_bytes(model: WhisperForConditionalGeneration, dtype: torch.dtype, sequences: int) -> float:
    """Memory for weights, encoder outputs, and keys and values of all decoder layers; `sequences`: batch × beams."""
    config = model.config
    frames, tokens, width = config.max_source_positions, config.max_target_positions, config.d_model
    states = frames * width + 2 * config.decoder_layers * (frames + tokens) * width
    encoder_peak = frames * (2 * config.encoder_ffn_dim + 6 * width)
    return dtype.itemsize * (model.num_parameters() + sequences * (states + encoder_peak))


def best_device() -> torch.device:
    """The accelerator, else the CPU; of several processes on a machine, each takes another one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    local_rank = os.environ.get("LOCAL_RANK")
    return accelerator if local_rank is None else torch.device(accelerator.type, int(local_rank))


def load_for_inference(name_or_path: str, dtype: str) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Loads a Whisper for inference, on the best device and in eval mode, and its processor."""
    model, processor = load_model(name_or_path, dtype=DTYPES[dtype]), load_processor(name_or_path)
    check_compatible(model, None, processor)
    return model.to(best_device()), processor


def load_assistant(
    name_or_path: str, model: WhisperForConditionalGeneration
) -> tuple[WhisperForConditionalGeneration, Assistant]:
    """Loads a checkpoint that drafts for `model`; returns it, and what drafts: its decoder alone, or all of it."""
    checkpoint = load_model(name_or_path, dtype=model.dtype).to(model.device).eval()
    check_assistant(checkpoint, model)
    try:
        return checkpoint, create_assistant(checkpoint, model)
    except ValueError:
        return checkpoint, checkpoint  # its encoder is not the model's


def fallback_setting() -> Any:
    """Field of an arguments dataclass for [`as_fallback`]; the flag alone stands for true."""
    text = (
        "Sequential only: transcribe repetitive or unlikely windows again at higher temperatures and skip silence; "
        "true, or thresholds such as {logprob_threshold: -0.8}."
    )
    return field(default=None, metadata={"help": text, "nargs": "?", "const": "true"})


def as_fallback(value: Any) -> bool | TemperatureFallback:
    """Reads `temperature_fallback`: true, false, a mapping of [`TemperatureFallback`]'s fields, or the YAML of one."""
    flag, names = "--temperature_fallback", [item.name for item in fields(TemperatureFallback)]
    value = parse_yaml(value) if isinstance(value, str) else value
    if value is None or isinstance(value, bool | TemperatureFallback):
        return value or False
    if not isinstance(value, dict):
        raise InputError(f"{flag}: expected true, false or a mapping with {', '.join(names)}, got {value!r}")
    settings = dict(value)
    for name, number in value.items():
        if name not in names:
            raise InputError(f"{flag}: unknown key {name!r}{nearest(str(name), names)}. Keys: {', '.join(names)}")
        if name == "temperatures":
            settings[name] = tuple(number if isinstance(number, list) else [number])
            if not all(isinstance(temperature, int | float) for temperature in settings[name]):
                raise InputError(f"{flag}.{name}: expected numbers such as [0.0, 0.4, 0.8], got {number!r}")
        elif number is not None and not isinstance(number, int | float):
            raise InputError(f"{flag}.{name}: expected a number or null, got {number!r}")
    try:
        return TemperatureFallback(**settings)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error
