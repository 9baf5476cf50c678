"""`pseudo_label_dataset`: the teacher's transcripts as a column of a dataset (paper, section 4.2).

Labels are written in shards, which several processes share and an interrupted run continues.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.checkpoints import check_compatible, weights_fingerprint
from hf_distil_whisper.data.audio import SAMPLING_RATE, load_audio
from hf_distil_whisper.data.features import extractor_settings, recording_key
from hf_distil_whisper.data.packing import PACKED_FEATURES, pack_utterances
from hf_distil_whisper.data.shards import ShardStore
from hf_distil_whisper.data.sources import END_OF_FILE, ROWS_FILE, RowErrors, load_shards, without_decoder
from hf_distil_whisper.inference.ctranslate2 import BACKENDS, Ctranslate2Generator
from hf_distil_whisper.inference.dataset import AudioProgress, feature_batches, row_languages
from hf_distil_whisper.inference.encoder import EncoderCache, encode, window_features
from hf_distil_whisper.inference.generation import GenerationSettings, TokenSequence, generate_tokens
from hf_distil_whisper.inference.output import (
    TIME_PRECISION,
    compression_ratio,
    no_speech,
    open_end,
    plain_text,
    timestamped_text,
)
from hf_distil_whisper.inference.prompt import (
    max_generated_tokens,
    resolve_language,
    timestamp_begin,
)
from hf_distil_whisper.metrics import errors_in_language, get_normalizer

logger = logging.get_logger(__name__)

LABEL_FEATURES = Features(
    {
        "whisper_transcript": Value("string"),
        "duration": Value("float64"),
        "truncated": Value("bool"),
        "mean_log_prob": Value("float64"),
        "no_speech_prob": Value("float64"),
        "compression_ratio": Value("float64"),
        "previous_transcript": Value("string"),
        "language": Value("string"),
        "language_prob": Value("float64"),
    }
)
"""The columns that labelling adds to every row."""

ERROR_FEATURES = Features(
    {"wer": Value("float64")} | {name: Value("int64") for name in ("hits", "substitutions", "deletions", "insertions")}
)
"""Added if there is a `text` column; null for rows without text or without a spoken word in it."""

MIN_REST = 0.5
"""Seconds behind an open end that are worth a window of their own; fewer hold no word."""

MAX_WINDOWS = 3
"""Windows for one row at most; a teacher that leaves off more often than that goes round in circles."""

MIN_ROWS_TO_FAIL = 10
"""If a shard of at least this many rows has no label at all, the rows are not to blame and the run stops."""


@dataclass(frozen=True)
class Packing:
    """How the source is cut into shards, and recordings are joined and split in each; see [`pack_utterances`].

    Args:
        max_duration (`float`, *optional*): seconds of a row at most: neighbouring utterances of one speaker are joined
            up to it, longer recordings are split. None: rows stay as they are.
        max_words (`int`, *optional*): also split rows with more words, if the times of the words are known.
        rows_per_shard (`int`, *optional*, defaults to 1000): rows of the source that are committed together.
        second_window (`bool`, *optional*, defaults to `True`): transcribe on from where a label leaves off before the
            speech does, as Whisper's does in many windows of nearly 30 s, and join the two. False is the paper's
            procedure: such labels are only marked as `truncated`.

    Raises:
        ValueError: for `max_words` without `max_duration`, or less than one row per shard.
    """

    max_duration: float | None = None
    max_words: int | None = None
    rows_per_shard: int = 1000
    second_window: bool = True

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1:
            raise ValueError(f"`rows_per_shard` is {self.rows_per_shard}, expected at least 1.")
        if self.max_words is not None and self.max_duration is None:
            raise ValueError(
                f"`max_words` is {self.max_words}, but no row is split without `max_duration`: set it, or leave both."
            )


@dataclass(frozen=True)
class Backend:
    """The runtime of the teacher.

    Args:
        name (`str`, *optional*, defaults to `"transformers"`): or "ctranslate2" (extra `ct2`), which is faster on a
            CPU; see [`Ctranslate2Generator`]. The teacher is converted on first use.
        compute_type (`str`, *optional*, defaults to `"default"`): of CTranslate2: "float32", "int8", "float16", ...
        teacher_cache_dir (`str` or `Path`, *optional*): local folder for the encoder hidden states of each row. A
            training with the same `teacher_cache_dir`, whose student shares the encoder, does not run the encoder
            again. The encoder runs in transformers then, whatever the backend.

    Raises:
        ValueError: for an unknown name, or a compute type with transformers.
    """

    name: str = "transformers"
    compute_type: str = "default"
    teacher_cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if self.name not in BACKENDS:
            raise ValueError(f"`backend` is {self.name!r}, expected one of {', '.join(BACKENDS)}.")
        if self.name == "transformers" and self.compute_type != "default":
            raise ValueError(
                f"`compute_type` is {self.compute_type!r}, which only backend='ctranslate2' supports: transformers "
                "computes in the dtype of the teacher's weights. Load the teacher in another `dtype`, or leave "
                "`compute_type` out."
            )


def pseudo_label_dataset(
    dataset: Dataset | IterableDataset,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    *,
    output_dir: str | Path,
    generation: GenerationSettings | None = None,
    packing: Packing | None = None,
    backend: Backend | str = "transformers",
    errors: RowErrors | None = None,
    **keywords: Any,
) -> Dataset:
    """Transcribes every row with the teacher and writes the labelled dataset to `output_dir`.

    Rows are labelled in batches of similar length and written in their order. A row that cannot be read, or is longer
    than the teacher's window, is left out and listed in `errors`; it never ends the run.

    The work is cut into shards of `rows_per_shard` rows. Each is committed at once and never redone: an interrupted
    run continues when it is started again with the same settings. Started by torchrun or accelerate, on one machine or
    on several that share `output_dir`, every process labels its share of the shards; the number of processes may
    differ from start to start.

    Args:
        dataset (`Dataset` or `IterableDataset`): rows with `audio` as [`load_source`] returns it, optionally `id`,
            `text`, `language` and `condition_on_prev`. Of a stream the processes share the files, each of which is cut
            into its own shards.
        teacher (`WhisperForConditionalGeneration`): in eval mode; not modified.
        processor (`WhisperProcessor`): of the teacher.
        output_dir (`str` or `Path`): folder or fsspec URL for the shards; new, empty, or of the same run. Read it
            again with [`load_source`].
        generation ([`GenerationSettings`], *optional*, defaults to greedy search with timestamps): what the labels
            hold. `language` is that of rows without one in their column `language`; None: English, or detected row by
            row by a multilingual teacher. A row in a language that the teacher does not know is left out.
        packing ([`Packing`], *optional*): joins and splits recordings first, within a shard. By default nothing is
            joined or split, and a row beyond the window is left out.
        backend ([`Backend`] or `str`, *optional*, defaults to `"transformers"`): or "ctranslate2".
        errors (`RowErrors`, *optional*): receives the rows left out, those of earlier starts included; they are logged
            in any case.
        keywords: fields of [`GenerationSettings`], of [`Packing`] (`max_duration`, `max_words`, `rows_per_shard`,
            `second_window`) and of [`Backend`] (`compute_type`, `teacher_cache_dir`), which replace those of the
            objects.

    Returns:
        `Dataset`: read back from `output_dir`. All columns of the source and:
            - `whisper_transcript`: "<|0.00|> Hello.<|1.20|>", or plain text without timestamps; no other special
              tokens;
            - `duration`: seconds;
            - `truncated`: whether the transcript stops before the speech does: `max_new_tokens` was reached, or it
              ends with an open segment;
            - `mean_log_prob`, `no_speech_prob`: see [`score_tokens`]; `compression_ratio`: see [`compression_ratio`];
            - `previous_transcript`: plain text of the row before, if `condition_on_prev` is true and that row has a
              complete label in the same shard; else null;
            - `language`: the code that the row was transcribed in, and `language_prob` where it was detected;
            - `wer`, `hits`, `substitutions`, `deletions`, `insertions`, if there is a `text` column: normalised, a
              fraction and the counts behind it; null without text.

    Raises:
        StaleRunError: if `output_dir` holds another run (names the settings that differ), or other files.
        ValueError: for another model's processor, 0 rows, a missing `audio` column, duplicate ids, an unknown backend
            or language, or if no row could be labelled.

    Example:
        ```python
        >>> rows = load_source("recordings/", split="train")
        >>> labelled = pseudo_label_dataset(rows, teacher, processor, output_dir="labelled", num_beams=5)
        >>> filtered, report = filter_by_wer(labelled, language="en")
        ```
    """
    runtime = Backend(backend) if isinstance(backend, str) else backend
    generation, packing, runtime = _replace_fields(
        [generation or GenerationSettings(return_timestamps=True), packing or Packing(), runtime], keywords
    )
    _check_dataset(dataset)
    store = ShardStore(output_dir)
    store.identity()  # a folder of other files is refused before any work
    check_compatible(teacher, None, processor)
    # So is an unknown language, before anything is written.
    resolve_language(teacher, generation.language, generation.task)
    store.open_run(_identity(dataset, teacher, generation, packing, runtime))
    source = without_decoder(dataset)
    finished = finished_shards(store)
    num_rows = len(dataset) if isinstance(dataset, Dataset) else None
    with closing(AudioProgress(num_rows, "labelling", initial=sum(finished.values()))) as progress:
        labeller = _Labeller(teacher, processor, generation, packing, runtime, progress)
        for name, rows in missing_shards(source, store, finished, packing.rows_per_shard):
            _commit(store, name, *labeller.label(name, rows))
    _wait_for_others(source, store, packing.rows_per_shard)
    return _read_labels(store, RowErrors() if errors is None else errors)


def _replace_fields(settings: Sequence[Any], keywords: dict[str, Any]) -> list[Any]:
    """Each dataclass instance with the keywords that are its fields."""
    replaced = []
    for instance in settings:
        names = [item.name for item in fields(instance) if item.name in keywords]
        replaced.append(replace(instance, **{name: keywords.pop(name) for name in names}))
    if keywords:
        raise TypeError(f"pseudo_label_dataset() got an unexpected keyword argument {next(iter(keywords))!r}")
    return replaced


def _check_dataset(dataset: Dataset | IterableDataset) -> None:
    columns = dataset.column_names or []
    if "audio" not in columns:
        raise ValueError(
            f"The data set has no column 'audio' to transcribe; it has {', '.join(columns) or 'no columns'}. Name the "
            "right one with `audio_column` when loading it."
        )
    if isinstance(dataset, Dataset):
        if len(dataset) == 0:
            raise ValueError("The data set has 0 rows, so there is nothing to label. Check the source and its split.")
        _check_ids(dataset)


def _check_ids(rows: Dataset) -> None:
    if "id" not in rows.column_names:
        return
    counts = Counter(rows["id"])
    if duplicates := [str(name) for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"{len(duplicates)} ids stand for several rows, {', '.join(duplicates[:3])} among them: labels could not "
            "be distinguished. Name a column of unique ids with `id_column` when loading."
        )


def _identity(
    dataset: Dataset | IterableDataset,
    teacher: WhisperForConditionalGeneration,
    generation: GenerationSettings,
    packing: Packing,
    backend: Backend,
) -> dict[str, Any]:
    """All that the labels depend on, as in `run.json`."""
    identity: dict[str, Any] = {
        "teacher": weights_fingerprint(teacher),
        "backend": backend.name,
        "compute_type": backend.compute_type,
        "max_duration": packing.max_duration,
        "max_words": packing.max_words,
        "rows_per_shard": packing.rows_per_shard,
        "second_window": packing.second_window,
        "num_beams": generation.num_beams,
        "max_new_tokens": generation.max_new_tokens,
        "return_timestamps": bool(generation.return_timestamps),
        "language": generation.language,
        "task": generation.task,
    }
    if generation.min_new_tokens is not None:
        identity["min_new_tokens"] = generation.min_new_tokens
    if isinstance(dataset, IterableDataset):  # the rows are not known before they are read
        return identity | {"files": dataset.num_shards, "columns": dataset.column_names}
    if "id" not in dataset.column_names:
        return identity | {"rows": len(dataset), "ids": None}
    digest = hashlib.sha256()
    for batch in dataset.select_columns(["id"]).iter(batch_size=10_000):
        digest.update("\n".join(map(str, batch["id"])).encode())
    return identity | {"rows": len(dataset), "ids": digest.hexdigest()[:16]}


def finished_shards(store: ShardStore) -> dict[str, int]:
    """Source rows of the finished shards, by name. Those in which no row could be read are tried again."""
    return {
        shard.name: shard.info["source_rows"]
        for shard in store.shards()
        if shard.info["rows"] or not shard.info["source_rows"]
    }


def missing_shards(
    dataset: Dataset | IterableDataset, store: ShardStore, finished: Mapping[str, int], rows_per_shard: int
) -> Iterator[tuple[str, Dataset]]:
    """Name and source rows of the unfinished shards of this process; what the store holds of them is removed.

    Of a dataset the processes take turns at the shards, of a stream at the files, so that none reads another's audio.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if isinstance(dataset, IterableDataset):
        for file in range(rank, dataset.num_shards, world_size):
            yield from _missing_shards_of_file(dataset, file, store, finished, rows_per_shard)
        return
    for index, start in enumerate(range(0, len(dataset), rows_per_shard)):
        name = _shard_name(start)
        if name not in finished and index % world_size == rank:
            store.remove(name)
            yield name, dataset.select(range(start, min(start + rows_per_shard, len(dataset))))


def _missing_shards_of_file(
    stream: IterableDataset, file: int, store: ShardStore, finished: Mapping[str, int], rows_per_shard: int
) -> Iterator[tuple[str, Dataset]]:
    start = 0
    # By the number of rows of each finished shard, the next one of the file is known.
    while name := next((name for name in _shard_names_of_file(file, start) if name in finished), None):
        if name.endswith(END_OF_FILE):
            return
        start += finished[name]
    rows = iter(stream.shard(num_shards=stream.num_shards, index=file).skip(start))
    next_row, is_last = next(rows, None), False
    while not is_last:
        block = [] if next_row is None else [next_row, *islice(rows, rows_per_shard - 1)]
        next_row = next(rows, None)  # one row ahead, since the name of a file's last shard marks it as the last
        is_last = next_row is None
        names = _shard_names_of_file(file, start)
        for name in names:
            store.remove(name)
        shard = Dataset.from_list(block, features=stream.features) if block else Dataset.from_dict({})
        _check_ids(shard)
        yield names[is_last], shard
        start += len(block)


def _shard_name(start: int) -> str:
    return f"{start:010d}"  # sorted by name, shards are in the order of the source


def _shard_names_of_file(file: int, start: int) -> tuple[str, str]:
    """Name of a shard that starts at a row of a file, and its name if it is the last one of the file."""
    name = f"{file:06d}-{_shard_name(start)}"
    return name, name + END_OF_FILE


@dataclass
class _Labeller:
    """Labels shards with one teacher and one set of settings."""

    teacher: WhisperForConditionalGeneration
    processor: WhisperProcessor
    generation: GenerationSettings
    packing: Packing
    backend: Backend
    progress: AudioProgress

    def __post_init__(self) -> None:
        self.encoder_cache = None
        if self.backend.teacher_cache_dir is not None:
            encoder = self.teacher.model.encoder
            self.encoder_cache = EncoderCache(encoder, self.teacher.dtype, self.backend.teacher_cache_dir)
        self.generate: Callable[..., list[TokenSequence]]
        if self.backend.name == "transformers":
            self.generate = partial(generate_tokens, self.teacher, settings=self.generation, statistics=True)
        else:
            compute_type = self.backend.compute_type
            self.generate = Ctranslate2Generator(
                self.teacher, self.processor, self.generation, compute_type=compute_type
            )

    def label(self, name: str, rows: Dataset) -> tuple[Dataset | None, dict[str, Any]]:
        """The labelled rows of a shard, None if there are none, and the `info` of its manifest."""
        start, errors = time.perf_counter(), RowErrors()
        labelled = self._label_rows(rows, errors) if len(rows) else None
        self.progress.complete(len(rows))
        if labelled is None and len(rows) >= MIN_ROWS_TO_FAIL:
            raise ValueError(
                f"None of the {len(rows)} rows of shard {name} could be labelled. What was labelled "
                f"before is kept: start again when the cause is gone.\n{errors.summary()}"
            )
        return labelled, {
            "rows": 0 if labelled is None else len(labelled),
            "source_rows": len(rows),
            "hours": 0.0 if labelled is None else sum(labelled["duration"]) / 3600,
            "seconds": time.perf_counter() - start,
            "lost": errors.rows,
        }

    def _label_rows(self, rows: Dataset, errors: RowErrors) -> Dataset | None:
        num_source_rows = len(rows)
        # A shard is packed by itself: its labels must not depend on which other shards a process has.
        if self.packing.max_duration is not None:
            packed = pack_utterances(
                rows, max_duration=self.packing.max_duration, max_words=self.packing.max_words, errors=errors
            )
            rows = Dataset.from_list(list(packed), features=PACKED_FEATURES)
        source_rows_per_row = num_source_rows / max(len(rows), 1)
        # Only what reading needs: all other columns would be decoded along with every row.
        recordings = rows.select_columns([name for name in ("id", "audio") if name in rows.column_names])
        languages = row_languages(self.teacher, rows, errors, self.generation.language, self.generation.task)
        sequences: dict[int, TokenSequence] = {}
        durations: dict[int, float] = {}
        settings = self.generation
        for batch in feature_batches(
            self.teacher, self.processor, recordings, errors, rows=languages, batch_size=settings.batch_size,
            token_budget=settings.token_budget,
        ):  # fmt: skip
            inputs: dict[str, Any] = {"input_features": batch.input_features}
            if self.encoder_cache is not None:
                states = encode(self.teacher, batch.input_features)  # (batch, frames, d_model)
                inputs = {"encoder_hidden_states": states}
                for row, state in zip(batch.rows, states, strict=True):
                    key = recording_key(recordings[row]["audio"], extractor_settings(self.processor), f"row {row}")
                    self.encoder_cache.add(key, state)
            inputs["languages"] = [languages[row] for row in batch.rows]
            sequences |= zip(batch.rows, self.generate(**inputs), strict=True)
            durations |= zip(batch.rows, batch.durations, strict=True)
            self.progress.update(len(batch.rows) * source_rows_per_row, sum(batch.durations))
        if self.encoder_cache is not None:
            self.encoder_cache.flush()
        self._close_open_ends(recordings, sequences, durations)
        return self._add_labels(rows, dict(sorted(sequences.items())), durations) if sequences else None

    def _close_open_ends(
        self, recordings: Dataset, sequences: dict[int, TokenSequence], durations: Mapping[int, float]
    ) -> None:
        """Transcribes on from where labels leave off, and joins the parts; what stays open is marked as truncated."""
        first_timestamp, batch_size = timestamp_begin(self.teacher), self.generation.batch_size
        for further_windows in reversed(range(MAX_WINDOWS if self.packing.second_window else 1)):
            starts: dict[int, float] = {}
            for row, sequence in sequences.items():
                start = open_end(sequence.tokens, first_timestamp)
                if start is None or sequence.truncated:
                    continue
                if durations[row] - start < MIN_REST:
                    sequences[row] = replace(sequence, tokens=sequence.tokens[:-1])
                elif not further_windows:
                    sequences[row] = replace(sequence, truncated=True)
                else:
                    starts[row] = start
            rows = list(starts)
            for index in range(0, len(rows), batch_size):
                batch = rows[index : index + batch_size]
                # The rows are counted, and this may take a fifth of the time.
                self.progress.bar.set_description(f"labelling, further window {index} of {len(rows)}")
                rests = [load_audio(recordings[row]["audio"])[round(starts[row] * SAMPLING_RATE) :] for row in batch]
                features = window_features(self.teacher, self.processor, rests)
                languages = [sequences[row].language for row in batch]
                for row, rest in zip(batch, self.generate(input_features=features, languages=languages), strict=True):
                    sequences[row] = self._joined(sequences[row], rest, starts[row])
        self.progress.bar.set_description("labelling")

    def _joined(self, sequence: TokenSequence, rest: TokenSequence, start: float) -> TokenSequence:
        """A label with an open end and the tokens of the audio from `start` seconds on as one label."""
        first_timestamp, settings = timestamp_begin(self.teacher), self.generation
        tokens, is_silent = sequence.tokens[:-1], no_speech(rest.no_speech_prob, rest.mean_log_prob)
        if is_silent or all(token >= first_timestamp for token in rest.tokens):
            return replace(sequence, tokens=tokens)
        shift, last = round(start / TIME_PRECISION), first_timestamp + round(30 / TIME_PRECISION)
        tokens += [min(token + shift, last) if token >= first_timestamp else token for token in rest.tokens]
        limit = settings.max_new_tokens or max_generated_tokens(self.teacher, return_timestamps=True)
        # A mean over tokens, of which `<|endoftext|>` is one.
        weights = [len(sequence.tokens) + 1, len(rest.tokens) + 1]
        return replace(
            sequence,
            tokens=tokens[:limit],
            truncated=rest.truncated or len(tokens) > limit,
            mean_log_prob=float(np.average([sequence.mean_log_prob, rest.mean_log_prob], weights=weights)),
        )

    def _add_labels(
        self, rows: Dataset, sequences: Mapping[int, TokenSequence], durations: Mapping[int, float]
    ) -> Dataset:
        """The labelled rows, in order, with their new columns; labels of an earlier run are replaced."""
        tokenizer, first_timestamp = self.processor.tokenizer, timestamp_begin(self.teacher)
        texts = {row: plain_text(one.tokens, tokenizer, first_timestamp) for row, one in sequences.items()}
        transcripts = [timestamped_text(one.tokens, tokenizer, first_timestamp) for one in sequences.values()]
        columns: dict[str, list] = {
            "whisper_transcript": transcripts,
            "duration": [durations[row] for row in sequences],
            "truncated": [one.truncated for one in sequences.values()],
            "mean_log_prob": [one.mean_log_prob for one in sequences.values()],
            "no_speech_prob": [one.no_speech_prob for one in sequences.values()],
            "compression_ratio": [compression_ratio(text) for text in texts.values()],
            "previous_transcript": _previous_transcripts(rows, sequences, texts),
            "language": [one.language or "en" for one in sequences.values()],  # None: an English-only teacher
            "language_prob": [one.language_prob for one in sequences.values()],
        }
        features = dict(LABEL_FEATURES)
        if "text" in rows.column_names:
            spoken = ["en"] * len(texts) if self.generation.task == "translate" else columns["language"]
            columns |= _error_columns(rows.select_columns(["text"]).select(list(texts))["text"], texts, spoken)
            features |= ERROR_FEATURES
        labels = Dataset.from_dict(columns, features=Features(features))
        source = rows.remove_columns([name for name in columns if name in rows.column_names])
        return concatenate_datasets([source.select(list(sequences)), labels], axis=1)


def _error_columns(
    references: Sequence[str | None], texts: Mapping[int, str], languages: Sequence[str]
) -> dict[str, list]:
    """WER and error counts by row; None for rows whose text is missing or has no spoken word."""
    errors = [
        errors_in_language(reference, text, language) if reference and get_normalizer(language)(reference) else None
        for reference, text, language in zip(references, texts.values(), languages, strict=True)
    ]
    return {name: [None if row is None else getattr(row, name) for row in errors] for name in ERROR_FEATURES}


def _previous_transcripts(
    rows: Dataset, sequences: Mapping[int, TokenSequence], texts: Mapping[int, str]
) -> list[str | None]:
    """What was said right before each labelled row; None if that is unknown."""
    if "condition_on_prev" not in rows.column_names:
        return [None] * len(texts)
    # True or false from packing; from the reference scripts the token ids of the prompt, or null.
    continues = rows.select_columns(["condition_on_prev"])["condition_on_prev"]
    previous: list[str | None] = []
    for row in texts:
        is_known = row - 1 in texts and not sequences[row - 1].truncated
        previous.append(texts[row - 1] or None if continues[row] and is_known else None)
    return previous


def _commit(store: ShardStore, name: str, labelled: Dataset | None, info: dict[str, Any]) -> None:
    def write(folder: Path) -> None:
        if labelled is not None:
            table = labelled.with_format("arrow")[:]
            # `datasets` reads its own types (Audio, ...) back from this metadata.
            table = table.replace_schema_metadata(labelled.features.arrow_schema.metadata)
            pq.write_table(table, folder / ROWS_FILE)

    try:
        store.commit(name, write, info)
    except FileExistsError:
        logger.warning(f"shard {name} was labelled by another process meanwhile, whose labels stay.")


def _wait_for_others(dataset: Dataset | IterableDataset, store: ShardStore, rows_per_shard: int) -> None:
    """Waits until all shards are there, by polling: a barrier of the process group would time out."""

    def count_missing(names: set[str]) -> int:
        if isinstance(dataset, IterableDataset):
            return dataset.num_shards - sum(name.endswith(END_OF_FILE) for name in names)
        return len({_shard_name(start) for start in range(0, len(dataset), rows_per_shard)} - names)

    pause = 0.1
    while count := count_missing(store.names()):
        logger.info(f"waiting for {count} shards or files of other processes")
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def _read_labels(store: ShardStore, errors: RowErrors) -> Dataset:
    shards = store.shards()
    for shard in shards:
        for row, reason in shard.info["lost"]:
            errors.add(row, reason)
    if len(errors):
        logger.warning(errors.summary())
    if not any(shard.info["rows"] for shard in shards):
        rows = sum(shard.info["source_rows"] for shard in shards)
        raise ValueError(f"None of {rows} rows could be labelled, so nothing was written.\n{errors.summary()}")
    return load_shards(store)
