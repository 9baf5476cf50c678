"""Settings of sequential long form that commands share: when a window is transcribed again."""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from hf_distil_whisper.checkpoints import (
    check_compatible,
    load_model,
    load_processor,
)
from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    is_main_process,
    nearest,
    parse_yaml,
)
from hf_distil_whisper.data.shards import (
    RUN,
    ShardStore,
)
from hf_distil_whisper.data.sources import (
    load_source,
    mean_duration,
)
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.prompt import (
    resolve_language,
    scoring_language,
)
from hf_distil_whisper.inference.sequential import TemperatureFallback
from hf_distil_whisper.inference.speculative import (
    check_assistant,
    create_assistant,
)

_DATA = "a Hub name, folder, file or URL"
_MODEL = "a Hub name or a folder with config.json"

FLAC_BYTES_PER_HOUR = 65e6
"""Speech at 16 kHz and 16 bit after FLAC's compression, measured on read speech: 55 to 60 % of PCM."""


@dataclass
class Plan:
    """Checked inputs of one command.

    Args:
        command (`str`): stands in the heading.
        steps (`list[str]`): what will be done, in order.
        figures (`dict[str, str]`): what it will take, by name.
        problems (`list[str]`): what is wrong with the inputs, each with the flag's name.
        datasets (`dict[str, Dataset]`): the rows that were found, by the flag that names them.
        streams (`dict[str, IterableDataset]`): the same, where they are only to be read as they come.
    """

    command: str
    steps: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    streams: dict[str, IterableDataset] = field(default_factory=dict)

    def text(self) -> str:
        """Steps and figures as text for a terminal."""
        lines = [f"{self.command}:", *(f"  {number}. {step}" for number, step in enumerate(self.steps, 1))]
        return "\n".join(lines + [f"  {name}: {figure}" for name, figure in self.figures.items()])

    def check(self) -> None:
        """Raises an [`InputError`] with all problems, if there are any."""
        if self.problems:
            raise InputError("\n  ".join(["the inputs are not ready:", *self.problems]))

    def settle(self, *, dry_run: bool) -> bool:
        """Prints the plan; returns whether to go on.

        Raises:
            InputError: if an input is wrong; all problems at once.
        """
        if is_main_process() and self.steps:
            sys.stdout.write(self.text() + "\n")
        self.check()
        if dry_run and is_main_process():
            sys.stdout.write("dry run: the inputs are ready, nothing was written\n")
        sys.stdout.flush()
        return not dry_run

    def require(self, value: object, flag: str, expected: str) -> bool:
        """Notes a flag that was not given."""
        if value is None or value == "" or value == {}:
            self.problems.append(f"--{flag} is missing: {expected}")
            return False
        return True

    def single_process(self) -> None:
        """Notes a start in several processes, each of which would do the whole work and write to the same folder."""
        world_size = os.environ.get("WORLD_SIZE", "1")
        if world_size != "1":
            self.problems.append(f"{self.command} works in one process, got {world_size}: set --num_processes 1")

    def model_config(self, name_or_path: str | None, flag: str) -> PreTrainedConfig | None:
        """Checks that a model of any kind is there; returns its config."""
        if not self.require(name_or_path, flag, _MODEL) or name_or_path is None:
            return None
        try:
            return AutoConfig.from_pretrained(name_or_path)
        except (OSError, ValueError) as error:
            first_line = str(error).splitlines()[0]
            self.problems.append(f"--{flag}: no model at {name_or_path!r}, expected {_MODEL} ({first_line})")
            return None

    def model(self, name_or_path: str | None, flag: str) -> WhisperForConditionalGeneration | None:
        """Checks that a Whisper is there; returns its architecture on the meta device, without weights."""
        config = self.model_config(name_or_path, flag)
        if config is None:
            return None
        if not isinstance(config, WhisperConfig):
            self.problems.append(f"--{flag}: {name_or_path!r} is a {config.model_type!r} model, expected a Whisper")
            return None
        with torch.device("meta"):
            model = WhisperForConditionalGeneration(config)
        try:
            model.generation_config = GenerationConfig.from_pretrained(name_or_path)
        except OSError:
            return model  # a checkpoint without the file has its settings in config.json
        return model

    def processor(self, name_or_path: str, flag: str) -> WhisperProcessor | None:
        """Checks that the files of a processor lie beside a model."""
        try:
            return load_processor(name_or_path)
        except (OSError, ValueError) as error:
            self.problems.append(f"--{flag}: {error}")
            return None

    def listener(self, name_or_path: str | None, language: str | None) -> WhisperForConditionalGeneration | None:
        """As [`model`], of `--model_name_or_path`; also notes what its processor lacks, and an unknown language."""
        model = self.model(name_or_path, "model_name_or_path")
        if model is not None:
            self.processor(name_or_path or "", "model_name_or_path")
            try:
                resolve_language(model, language)
            except ValueError as error:
                self.problems.append(f"--language: {error}")
        return model

    def scoring(
        self,
        models: Mapping[str, WhisperForConditionalGeneration],
        language: str | None,
        normalizer: str | None,
    ) -> None:
        """Notes a language that a model does not know, and models whose rates could not be compared."""
        languages = {}
        for column, model in models.items():
            try:
                languages[column] = scoring_language(model, language)
            except ValueError as error:
                self.problems.append(f"--language: {error}")
        if len(set(languages.values())) > 1 and normalizer is None:
            pairs = ", ".join(f"{column} by {found!r}" for column, found in languages.items())
            self.problems.append(
                f"--language is missing: the models would be normalised differently ({pairs}), so that their rates "
                "could not be compared. Say which one is spoken, or choose a --normalizer"
            )

    def repository(self, repo_id: str | None) -> None:
        """Notes a name of a repository that is missing or not allowed."""
        if repo_id is None:
            self.problems.append("--repo_id is missing: owner/name, or a name under your account")
            return
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            self.problems.append(f"--repo_id: {error}")

    def source(self, source: DataSource | None, flag: str, columns: tuple[str, ...] = ()) -> Dataset | None:
        """Checks that a dataset is there and holds `columns`; keeps its rows in `datasets`."""
        if source is None:
            self.problems.append(f"--{flag} is missing: {_DATA}")
            return None
        try:
            dataset = open_source(source)
        except (OSError, ValueError) as error:
            self.problems.append(f"--{flag}: {error}")
            return None
        if not self._holds(dataset, source, flag, columns):
            return None
        self.datasets[flag] = dataset
        return dataset

    def stream(self, source: DataSource | None, flag: str, columns: tuple[str, ...] = ()) -> IterableDataset | None:
        """Checks that a dataset is there to be read as it comes and holds `columns`; keeps it in `streams`."""
        if source is None:
            self.problems.append(f"--{flag} is missing: {_DATA}")
            return None
        if source.share is not None:
            self.problems.append(f"--{flag}.share: a stream does not know its number of rows; leave it out")
            return None
        try:
            rows = load_source(**source_arguments(source), streaming=True)
        except (OSError, ValueError) as error:
            self.problems.append(f"--{flag}: {error}")
            return None
        if not self._holds(rows, source, flag, columns):
            return None
        self.streams[flag] = rows
        return rows

    def _holds(self, rows: Dataset | IterableDataset, source: DataSource, flag: str, columns: tuple[str, ...]) -> bool:
        there = rows.column_names or []
        missing = [column for column in columns if column not in there]
        if missing:
            self.problems.append(f"--{flag}: {source.path!r} has no column {missing[0]!r}; it has: {', '.join(there)}")
        return not missing

    @property
    def rows(self) -> dict[str, Dataset | IterableDataset]:
        """What was found for each flag, as data set or stream."""
        return {**self.datasets, **self.streams}

    def output(self, folder: str | None, flag: str = "output_dir", goes_on: bool = False) -> None:
        """Checks that nothing would be overwritten; `goes_on`: shards of a run that was stopped may be there."""
        if not self.require(folder, flag, "the folder to write to") or folder is None:
            return
        if Path(folder).is_file():
            self.problems.append(f"--{flag}: {folder} is a file, expected a folder")
        elif goes_on and (Path(folder) / RUN).is_file():
            there = sum(shard.info["source_rows"] for shard in ShardStore(folder).shards())
            self.steps.append(f"go on after the {there} rows that {folder} holds already")
        elif Path(folder).is_dir() and any(Path(folder).iterdir()):
            self.problems.append(f"--{flag}: {folder} holds another run already; choose a new folder or empty it")


def open_source(source: DataSource) -> Dataset:
    """Loads the rows that a [`DataSource`] names, or its share of them, under the library's column names."""
    rows = load_source(**source_arguments(source))
    if source.share is None:
        return rows
    drawn = np.random.default_rng(0).permutation(len(rows))[: max(round(source.share * len(rows)), 1)]
    return rows.select(sorted(drawn))


def source_arguments(source: DataSource) -> dict[str, Any]:
    """A [`DataSource`] as arguments of [`load_source`]."""
    names = (
        "split",
        "config",
        "revision",
        "audio_column",
        "text_column",
        "speaker_column",
        "recording_column",
        "language_column",
        "id_column",
        "max_samples",
    )
    return {"name_or_path": source.path, **{name: getattr(source, name) for name in names}}


def hours_of_audio(dataset: Dataset) -> float:
    """Hours in a dataset: exact with a `duration` column, else estimated from the headers of at most 200 rows."""
    return (mean_duration(dataset) or 0.0) * len(dataset) / 3600


def describe_rows(dataset: Dataset) -> str:
    """For a plan: `"12.3 h in 4,000 rows"`."""
    return f"{hours_of_audio(dataset):.2f} h in {len(dataset):,} rows"


def gigabytes(number_of_bytes: float) -> str:
    """`"1.23 GB"`, below that `"456 MB"`."""
    return f"{number_of_bytes / 1e9:.2f} GB" if number_of_bytes >= 1e9 else f"{number_of_bytes / 1e6:.0f} MB"


def best_device() -> torch.device:
    """The accelerator where there is one, else the CPU; of several processes on a machine, each takes its own."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return torch.device("cpu")
    return torch.device(found.type, int(os.environ["LOCAL_RANK"])) if "LOCAL_RANK" in os.environ else found


def torch_dtype(name: str) -> torch.dtype:
    """`"bfloat16"` → `torch.bfloat16`."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def generation_bytes(model: WhisperForConditionalGeneration, dtype: torch.dtype, sequences: int) -> float:
    """Memory of weights and of what generation keeps: encoder states, keys and values of every decoder layer.

    Args:
        model (`WhisperForConditionalGeneration`): may be on the meta device.
        dtype (`torch.dtype`): of weights and states.
        sequences (`int`): batch size times beams.
    """
    config = model.config
    frames, tokens, width = config.max_source_positions, config.max_target_positions, config.d_model
    states = frames * width + 2 * config.decoder_layers * (frames + tokens) * width
    encoder_peak = frames * (2 * config.encoder_ffn_dim + 6 * width)
    return dtype.itemsize * (model.num_parameters() + sequences * (states + encoder_peak))


def training_bytes(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration | None,
    *,
    rows: int,
    freeze_encoder: bool,
    half_precision: bool,
    chunk_size: int,
) -> float:
    """Memory of a training process: weights in float32, gradients and AdamW's moments of what is trained, activations.

    An estimate: activations of the trained layers at 448 tokens and 40 numbers per token and channel, logits of one
    chunk of the loss; the frozen encoder's are freed layer by layer.

    Args:
        student (`WhisperForConditionalGeneration`): may be on the meta device.
        teacher (`WhisperForConditionalGeneration`, *optional*): the same.
        rows (`int`): windows per process and step.
        freeze_encoder (`bool`): whether the encoder is trained, and computed once for both.
        half_precision (`bool`): whether activations take 2 bytes.
        chunk_size (`int`): tokens whose logits are held at once.
    """
    config, itemsize = student.config, 2 if half_precision else 4
    encoder = student.get_encoder().num_parameters()
    trained = student.num_parameters() - (encoder if freeze_encoder else 0)
    weights = 4 * student.num_parameters() + 12 * trained
    if teacher is not None:
        weights += itemsize * (teacher.num_parameters() - (encoder if freeze_encoder else 0))
    frames, tokens, width = config.max_source_positions, config.max_target_positions, config.d_model
    layer = 40 * width * itemsize
    decoder = config.decoder_layers * (tokens * layer + 2 * frames * width * itemsize)
    encoder_layers = 1 if freeze_encoder else config.encoder_layers
    logits = 4 * 4 * chunk_size * config.vocab_size
    return weights + rows * (decoder + encoder_layers * frames * layer) + logits


def machine() -> str:
    """What the figures were measured on, in words and without names."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} processor"
    level = torch.backends.cpu.get_cpu_capability()
    return f"{device} ({level}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def load_listener(name_or_path: str, dtype: str) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """A Whisper on the best device, in eval mode, with its processor.

    Args:
        name_or_path (`str`): Hub name or folder.
        dtype (`str`): type of the weights, for example `"float32"`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if model and processor do not go together.
    """
    model, processor = load_model(name_or_path, dtype=torch_dtype(dtype)), load_processor(name_or_path)
    check_compatible(model, None, processor)
    return model.to(best_device()), processor


def load_assistant(
    place: str, model: WhisperForConditionalGeneration
) -> tuple[WhisperForConditionalGeneration, Assistant]:
    """A checkpoint, and what drafts of it: its decoder where the encoder is the model's own, else all of it.

    Args:
        place (`str`): Hub name or folder.
        model (`WhisperForConditionalGeneration`): whose text it is.

    Raises:
        ValueError: for another vocabulary, or other mel bins.
    """
    whole = load_model(place, dtype=model.dtype).to(model.device).eval()
    check_assistant(whole, model)
    try:
        return whole, create_assistant(whole, model)
    except ValueError:
        return whole, whole


def fallback_setting() -> Any:
    """Field of an arguments dataclass for [`as_fallback`]; the flag alone stands for true."""
    text = "Sequential only: repeat unlikely windows; true, or thresholds such as {logprob_threshold: -0.8}."
    return field(default=None, metadata={"help": text, "nargs": "?", "const": "true"})


def as_fallback(value: Any) -> bool | TemperatureFallback:
    """Reads `temperature_fallback` from what a recipe or flag gives.

    Args:
        value (`bool`, `str`, `dict` or [`TemperatureFallback`], *optional*): true, false, or a mapping of its fields,
            or the YAML text of one of these.

    Raises:
        InputError: on an unknown key, or a value of the wrong type.
    """
    flag = "--temperature_fallback"
    value = parse_yaml(value) if isinstance(value, str) else value
    if value is None or isinstance(value, bool | TemperatureFallback):
        return value or False
    names = [item.name for item in fields(TemperatureFallback)]
    if not isinstance(value, dict):
        raise InputError(f"{flag}: expected true, false or a mapping with {', '.join(names)}, got {value!r}")
    settings = dict(value)
    for name, number in value.items():
        if name not in names:
            raise InputError(f"{flag}: unknown key {name!r}{nearest(str(name), names)}. Keys: {', '.join(names)}")
        if name == "temperatures":
            settings[name] = numbers = tuple(number if isinstance(number, list) else [number])
            if not all(isinstance(one, int | float) for one in numbers):
                raise InputError(f"{flag}.{name}: expected numbers such as [0.0, 0.4, 0.8], got {number!r}")
        elif number is not None and not isinstance(number, int | float):
            raise InputError(f"{flag}.{name}: expected a number or null, got {number!r}")
    try:
        return TemperatureFallback(**settings)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error


def check_method(plan: Plan, method: str, flag: str, chunked: dict[str, Any], sequential: dict[str, Any]) -> None:
    """Notes settings that the chosen algorithm of long form would not read.

    Args:
        plan (`Plan`): takes the problems.
        method (`str`): "chunked" or "sequential".
        flag (`str`): that chooses it.
        chunked (`dict[str, Any]`): settings of the one by name; what is None or False was not given.
        sequential (`dict[str, Any]`): of the other.
    """
    other, settings = ("sequential", sequential) if method == "chunked" else ("chunked", chunked)
    for name, value in settings.items():
        if value is not None and value is not False:
            plan.problems.append(f"--{name}: belongs to --{flag} {other}, but it is {method}. Leave one of them out")
