"""The teacher's transcripts as a column of a data set: pseudo-labels (paper, section 4.2), greedy by default.

Knows how the work is cut into shards, shared by processes and taken up again; what belongs into a labelled row is said
in `label_columns.py`, `filtering.py` decides which rows are good enough.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.checkpoints import weights_fingerprint
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.features import extractor_settings, recording_key
from hf_distil_whisper.data.packing import (
    PACKED_FEATURES,
    pack_utterances,
)
from hf_distil_whisper.data.shards import ShardStore
from hf_distil_whisper.data.sources import (
    END_OF_FILE,
    ROWS_FILE,
    RowErrors,
    load_shards,
    without_decoder,
)
from hf_distil_whisper.inference.ctranslate2 import (
    BACKENDS,
    Ctranslate2Generator,
)
from hf_distil_whisper.inference.dataset import (
    AudioProgress,
    RowTokens,
    generate_rows,
)
from hf_distil_whisper.inference.encoder import (
    EncoderCache,
)
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    generate_tokens,
)
from hf_distil_whisper.inference.output import (
    compression_ratio,
    plain_text,
    timestamped_text,
)
from hf_distil_whisper.inference.prompt import (
    resolve_language,
    scoring_language,
    timestamp_begin,
)
from hf_distil_whisper.metrics import get_normalizer
from hf_distil_whisper.pseudo_labels.filtering import row_errors


class Block(NamedTuple):
    """Rows that are labelled and committed together.

    Args:
        name (`str`): of their shard; shards sorted by name are in the order of the source.
        rows (`Dataset`): in their order.
    """

    name: str
    rows: Dataset


def own_blocks(
    dataset: Dataset | IterableDataset, store: ShardStore, rows_per_shard: int, progress: AudioProgress
) -> Iterator[Block]:
    """The blocks of this process that are not labelled yet, or in which no row could be read before.

    Of a data set the processes take turns at the blocks, of a stream at its files, so that none reads another's audio.

    Args:
        dataset (`Dataset` or `IterableDataset`): the source.
        store (`ShardStore`): of the labels.
        rows_per_shard (`int`): rows of a block.
        progress ([`AudioProgress`]): told of what is passed over.
    """
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if isinstance(dataset, IterableDataset):
        yield from _blocks_of_files(
            dataset, store, rows_per_shard, range(rank, dataset.num_shards, processes), progress
        )
        return
    done = {shard.name for shard in store.shards() if shard.info["rows"]}
    for number, start in enumerate(range(0, len(dataset), rows_per_shard)):
        rows = dataset.select(range(start, min(start + rows_per_shard, len(dataset))))
        if _name(start) in done:
            progress.skip(len(rows))
        elif number % processes == rank:
            store.remove(_name(start))
            yield Block(_name(start), rows)


def blocks_missing(dataset: Dataset | IterableDataset, rows_per_shard: int, there: set[str]) -> int:
    """How many blocks of a data set, or files of a stream, are not labelled to their end.

    Args:
        dataset (`Dataset` or `IterableDataset`): the source.
        rows_per_shard (`int`): rows of a block.
        there (`set[str]`): names of the shards.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.num_shards - sum(name.endswith(END_OF_FILE) for name in there)
    return len({_name(start) for start in range(0, len(dataset), rows_per_shard)} - there)


def check_ids(rows: Dataset) -> None:
    """Raises a `ValueError` if an id stands for several rows: their labels could not be told apart."""
    if "id" not in rows.column_names:
        return
    counts = Counter(rows["id"])
    if twice := [str(name) for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"{len(twice)} ids stand for several rows, {', '.join(twice[:3])} among them: labels could not be "
            "told apart. Name a column of unique ids with `id_column` when loading."
        )


def _blocks_of_files(
    stream: IterableDataset, store: ShardStore, rows_per_shard: int, files: range, progress: AudioProgress
) -> Iterator[Block]:
    done = {shard.name: shard.info for shard in store.shards() if shard.info["rows"] or not shard.info["source_rows"]}
    for file in files:
        start, ended = 0, False
        while not ended and (name := next((name for name in _names(file, start) if name in done), None)):
            start, ended = start + done[name]["source_rows"], name.endswith(END_OF_FILE)
        progress.skip(start)
        if not ended:
            rows = iter(stream.shard(num_shards=stream.num_shards, index=file).skip(start))
            for number, block, last in _cut(rows, rows_per_shard):
                name = _names(file, start + number)[last]
                for unfinished in _names(file, start + number):
                    store.remove(unfinished)
                yield Block(name, _as_dataset(block, stream))


def _cut(rows: Iterator[dict], size: int) -> Iterator[tuple[int, list[dict], bool]]:
    """Blocks of rows with the number of their first one, and whether it is the last block. Reads one row ahead."""
    number, first = 0, next(rows, None)
    last = False
    while not last:
        block = [] if first is None else [first, *islice(rows, size - 1)]
        first = next(rows, None)
        last = first is None
        yield number, block, last
        number += len(block)


def _as_dataset(rows: list[dict], stream: IterableDataset) -> Dataset:
    dataset = Dataset.from_list(rows, features=stream.features) if rows else Dataset.from_dict({})
    check_ids(dataset)
    return dataset


def _name(start: int) -> str:
    return f"{start:010d}"


def _names(file: int, start: int) -> tuple[str, str]:
    """Of a block of a stream, and of the same as the last one of its file."""
    name = f"{file:06d}-{start:010d}"
    return name, name + END_OF_FILE


LABEL_FEATURES = Features(
    {
        "whisper_transcript": Value("string"),
        "duration": Value("float64"),
        "truncated": Value("bool"),
        "mean_log_prob": Value("float64"),
        "no_speech_prob": Value("float64"),
        "compression_ratio": Value("float64"),
        "previous_transcript": Value("string"),
    }
)
"""The columns that labelling adds to every row."""

ERROR_FEATURES = Features(
    {"wer": Value("float64")} | {name: Value("int64") for name in ("hits", "substitutions", "deletions", "insertions")}
)
"""Those that it adds where there is a `text` column; null without text, and where nothing of it is spoken."""


def with_labels(dataset: Dataset, found: RowTokens, processor: WhisperProcessor, begin: int, language: str) -> Dataset:
    """The labelled rows, in order, with their new columns; labels of an earlier run are replaced.

    Args:
        dataset (`Dataset`): rows that were given to the teacher.
        found (`RowTokens`): what it wrote.
        processor (`WhisperProcessor`): of the teacher.
        begin (`int`): the first timestamp token.
        language (`str`): whose normaliser scores the rows whose column `language` says none.
    """
    rows = list(found.sequences)
    texts = {row: plain_text(found.sequences[row].tokens, processor.tokenizer, begin) for row in rows}
    columns: dict[str, list] = {
        "whisper_transcript": [
            timestamped_text(found.sequences[row].tokens, processor.tokenizer, begin) for row in rows
        ],
        "duration": [found.durations[row] for row in rows],
        "truncated": [found.sequences[row].truncated for row in rows],
        "mean_log_prob": [found.sequences[row].mean_log_prob for row in rows],
        "no_speech_prob": [found.sequences[row].no_speech_prob for row in rows],
        "compression_ratio": [compression_ratio(texts[row]) for row in rows],
        "previous_transcript": _previous_transcripts(dataset, found, texts),
    }
    features = dict(LABEL_FEATURES)
    if "text" in dataset.column_names:
        known = dataset.select_columns([name for name in ("text", "language") if name in dataset.column_names])
        told = known.select(rows)[:]
        languages = [own or language for own in told.get("language", [None] * len(rows))]
        columns |= _errors(told["text"], [texts[row] for row in rows], languages)
        features |= ERROR_FEATURES
    labels = Dataset.from_dict(columns, features=Features(features))
    source = dataset.remove_columns([name for name in columns if name in dataset.column_names])
    return concatenate_datasets([source.select(rows), labels], axis=1)


def _errors(references: Sequence[str | None], predictions: Sequence[str], languages: Sequence[str]) -> dict[str, list]:
    """Rate and counts by row; a reference of nothing but punctuation has none."""
    spoken = [
        reference if reference and get_normalizer(language)(reference) else None
        for reference, language in zip(references, languages, strict=True)
    ]
    found = row_errors(spoken, predictions, languages)
    return {name: [None if errors is None else getattr(errors, name) for errors in found] for name in ERROR_FEATURES}


def _previous_transcripts(dataset: Dataset, found: RowTokens, texts: dict[int, str]) -> list[str | None]:
    """The prompt of each labelled row: what was said right before it, and nothing where that is not known."""
    if "condition_on_prev" not in dataset.column_names:
        return [None] * len(texts)
    continues = dataset.select_columns(["condition_on_prev"])["condition_on_prev"]
    previous = []
    for row in texts:
        before = row - 1
        known = before in texts and not found.sequences[before].truncated
        # Packing writes booleans, the reference scripts the prompt's token ids, or null where nothing came before.
        previous.append(texts[before] or None if continues[row] and known else None)
    return previous


logger = logging.get_logger(__name__)

SYSTEMIC = 10
"""Rows of a shard from which on the loss of all of them is not the rows' fault."""


def pseudo_label_dataset(
    dataset: Dataset | IterableDataset,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    *,
    output_dir: str | Path,
    language: str | None = None,
    batch_size: int = 16,
    token_budget: int | None = None,
    num_beams: int = 1,
    backend: str = "transformers",
    compute_type: str = "default",
    task: str = "transcribe",
    return_timestamps: bool = True,
    max_new_tokens: int | None = None,
    max_duration: float | None = None,
    max_words: int | None = None,
    rows_per_shard: int = 1000,
    teacher_cache_dir: str | Path | None = None,
    errors: RowErrors | None = None,
) -> Dataset:
    """Transcribes every row with the teacher and writes the labelled data set to `output_dir`.

    Rows go through the teacher in batches of like length and come out in their order. A row that cannot be read, or is
    longer than the teacher's window, is left out and listed in `errors`; it never ends the run.

    The work is cut into shards of `rows_per_shard` rows. Each is committed at once and never redone: a run that was
    stopped, however it was, goes on when it is started again with the same settings. Started by torchrun or
    accelerate, on one machine or on several that share `output_dir`, every process labels its share of the shards;
    the number of processes may differ from start to start.

    Args:
        dataset (`Dataset` or `IterableDataset`): rows with `audio` as [`load_source`] gives it,
            optionally `id`, `text` and `condition_on_prev`. Of a stream the processes share the files, each of which
            is cut into shards of its own.
        teacher (`WhisperForConditionalGeneration`): in eval mode; left as it is.
        processor (`WhisperProcessor`): of the teacher.
        output_dir (`str` or `Path`): folder or fsspec URL for the shards; new, empty, or of the same run. Read it
            again with [`load_source`].
        language (`str`, *optional*): of the rows whose column `language` says none. None: English, or detected row by
            row by a multilingual teacher. A row in a language that the teacher does not know is left out.
        batch_size (`int`, *optional*, defaults to 16): rows per pass at most.
        token_budget (`int`, *optional*): tokens per pass at most, as far as they can be foreseen, so that a pass takes
            more short rows than long ones; see [`batches_by_length`].
        num_beams (`int`, *optional*, defaults to 1): greedy; what beam search would gain, the filter makes up for
            (9.1).
        backend (`str`, *optional*, defaults to `"transformers"`): or "ctranslate2" (extra `ct2`), which is faster on a
            CPU; see [`Ctranslate2Generator`]. The teacher is converted on first use.
        compute_type (`str`, *optional*, defaults to `"default"`): of CTranslate2: "float32", "int8", "float16", ...
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".
        return_timestamps (`bool`, *optional*, defaults to `True`): label with timestamp tokens, so that the student
            can learn them; training leaves them out as often as it likes.
        max_new_tokens (`int`, *optional*): by default as many as the teacher's decoder has room for.
        max_duration (`float`, *optional*): joins neighbouring utterances of one speaker, and splits longer recordings,
            as [`pack_utterances`] does, to rows of at most so many seconds; nothing is joined across shards. By
            default nothing is joined or split, and a row beyond the window is left out.
        max_words (`int`, *optional*): also splits rows of more words whose times are known, see [`pack_utterances`].
        rows_per_shard (`int`, *optional*, defaults to 1000): rows of the source in a shard.
        teacher_cache_dir (`str` or `Path`, *optional*): folder on a local disk that keeps the encoder's states of each
            row. A training with the same `teacher_cache_dir`, whose student shares the encoder, need not run it again.
            The encoder runs in transformers then, whatever the backend.
        errors (`RowErrors`, *optional*): takes the rows left out, those of earlier starts included; they are logged in
            any case.

    Returns:
        `Dataset`: read back from `output_dir`. All columns of the source and:
            - `whisper_transcript`: "<|0.00|> Hello.<|1.20|>", or plain text without timestamps; no other special
              tokens;
            - `duration`: seconds;
            - `truncated`: whether the length ran out before the end, so that the transcript stops mid-sentence;
            - `mean_log_prob`, `no_speech_prob`: see [`score_tokens`]; `compression_ratio`: see [`compression_ratio`];
            - `previous_transcript`: plain text of the row before, where `condition_on_prev` is true and that row was
              labelled to its end in the same shard; else null;
            - `wer`, `hits`, `substitutions`, `deletions`, `insertions`, if there is a `text` column: normalised, a
              fraction and the counts behind it; null without text.

    Raises:
        StaleRunError: if `output_dir` holds another run (names the settings that differ), or other files.
        ValueError: for 0 rows, a missing `audio` column, ids that occur twice, an unknown backend or language, or if
            no row could be labelled.

    Example:
        ```python
        >>> rows = load_source("recordings/", split="train")
        >>> labelled = pseudo_label_dataset(rows, teacher, processor, output_dir="labelled")
        >>> kept, report = filter_by_wer(labelled)
        ```
    """
    _check_request(dataset, backend, compute_type, rows_per_shard)
    if max_words is not None and max_duration is None:
        raise ValueError(
            f"`max_words` is {max_words}, but no row is split without `max_duration`: set it, or leave both."
        )
    store = ShardStore(output_dir)
    store.identity()  # refuses a folder of other files before anything is computed
    scored_as = scoring_language(teacher, language)
    settings: dict[str, Any] = {
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
        "return_timestamps": return_timestamps,
        "language": language,
        "task": task,
    }
    store.open_run(
        {"teacher": weights_fingerprint(teacher), **_source_identity(dataset)}
        | {
            "backend": backend,
            "compute_type": compute_type,
            "max_duration": max_duration,
            "max_words": max_words,
            "rows_per_shard": rows_per_shard,
            **settings,
        }
    )
    generate: Callable[..., list[TokenSequence]] = (
        partial(generate_tokens, teacher, **settings, statistics=True)
        if backend == "transformers"
        else Ctranslate2Generator(teacher, processor, compute_type=compute_type, **settings)
    )
    cache = (
        None if teacher_cache_dir is None else EncoderCache(teacher.model.encoder, teacher.dtype, teacher_cache_dir)
    )
    progress = AudioProgress(len(dataset) if isinstance(dataset, Dataset) else None, "labelling")

    def label(rows: Dataset, lost: RowErrors) -> Dataset | None:
        if max_duration is not None:
            packed = list(pack_utterances(rows, max_duration=max_duration, max_words=max_words, errors=lost))
            progress.rows_per_window = len(rows) / max(len(packed), 1)
            rows = Dataset.from_list(packed, features=PACKED_FEATURES)
        heard = rows.select_columns([name for name in ("id", "audio") if name in rows.column_names])
        languages = _row_languages(rows, teacher, language, task, lost)
        keep = None if cache is None else _keep_in(cache, heard, processor)
        found = generate_rows(
            teacher,
            processor,
            heard,
            lost,
            generate,
            batch_size=batch_size,
            token_budget=token_budget,
            progress=progress,
            keep=keep,
            languages=languages,
        )
        if cache is not None:
            cache.flush()
        return with_labels(rows, found, processor, timestamp_begin(teacher), scored_as) if found.sequences else None

    source = without_decoder(dataset)
    with closing(progress):
        for name, rows in own_blocks(source, store, rows_per_shard, progress):
            _label_shard(rows, store, name, label)
            progress.settle(len(rows))
        _wait_for_others(store, partial(blocks_missing, source, rows_per_shard))
    return _read_labels(store, RowErrors() if errors is None else errors)


def _keep_in(cache: EncoderCache, rows: Dataset, processor: WhisperProcessor) -> Callable[[int, Tensor], None]:
    settings = extractor_settings(processor)

    def keep(row: int, states: Tensor) -> None:
        cache.add(recording_key(rows[row]["audio"], settings, f"row {row}"), states)

    return keep


def _row_languages(
    rows: Dataset, teacher: WhisperForConditionalGeneration, language: str | None, task: str, lost: RowErrors
) -> dict[int, str | None] | None:
    """By row number where rows say it; without those in a language that the teacher does not know."""
    if "language" not in rows.column_names:
        return None
    told = rows.select_columns([name for name in ("id", "language") if name in rows.column_names])
    known: dict[int, str | None] = {}
    for number, row in enumerate(told):
        try:
            known[number] = resolve_language(teacher, row["language"] or language, task)
        except ValueError as error:
            lost.add(row_id(row, number), f"column 'language': {error}")
    return known


def _check_request(dataset: Dataset | IterableDataset, backend: str, compute_type: str, rows_per_shard: int) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"`backend` is {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if backend == "transformers" and compute_type != "default":
        raise ValueError(
            f"`compute_type` is {compute_type!r}, which only backend='ctranslate2' knows: transformers computes in "
            "the type of the teacher's weights. Load the teacher in another `dtype`, or leave `compute_type` out."
        )
    if rows_per_shard < 1:
        raise ValueError(f"`rows_per_shard` is {rows_per_shard}, expected at least 1.")
    columns = dataset.column_names or []
    if "audio" not in columns:
        raise ValueError(
            f"The data set has no column 'audio' to transcribe; it has {', '.join(columns) or 'no columns'}. Name the "
            "right one with `audio_column` when loading it."
        )
    if isinstance(dataset, Dataset):
        if len(dataset) == 0:
            raise ValueError("The data set has 0 rows, so there is nothing to label. Check the source and its split.")
        check_ids(dataset)


def _source_identity(dataset: Dataset | IterableDataset) -> dict[str, Any]:
    """What can be known of the rows before they are read."""
    if isinstance(dataset, IterableDataset):
        return {"files": dataset.num_shards, "columns": dataset.column_names}
    if "id" not in dataset.column_names:
        return {"rows": len(dataset), "ids": None}
    digest = hashlib.sha256()
    for batch in dataset.select_columns(["id"]).iter(batch_size=10_000):
        digest.update("\n".join(map(str, batch["id"])).encode())
    return {"rows": len(dataset), "ids": digest.hexdigest()[:16]}


def _label_shard(
    rows: Dataset, store: ShardStore, name: str, label: Callable[[Dataset, RowErrors], Dataset | None]
) -> None:
    begin, lost = time.perf_counter(), RowErrors()
    labelled = label(rows, lost) if len(rows) else None
    if labelled is None and len(rows) >= SYSTEMIC:
        raise ValueError(
            f"None of the {len(rows)} rows of shard {name} could be labelled. What was labelled before is kept: "
            f"start again when the cause is gone.\n{lost.summary()}"
        )

    def write(folder: Path) -> None:
        if labelled is not None:
            table = labelled.with_format("arrow")[:]
            metadata = labelled.features.arrow_schema.metadata  # from which `datasets` knows its own types again
            pq.write_table(table.replace_schema_metadata(metadata), folder / ROWS_FILE)

    info = {
        "rows": 0 if labelled is None else len(labelled),
        "source_rows": len(rows),
        "hours": 0.0 if labelled is None else sum(labelled["duration"]) / 3600,
        "seconds": time.perf_counter() - begin,
        "lost": lost.rows,
    }
    try:
        store.commit(name, write, info)
    except FileExistsError:
        logger.warning(f"shard {name} was labelled by another process meanwhile; its work is kept.")


def _wait_for_others(store: ShardStore, missing: Callable[[set[str]], int]) -> None:
    """Until all shards are there. By looking, not by a barrier of the process group, which would time out."""
    pause = 0.1
    while count := missing(store.names()):
        logger.info(f"waiting for {count} parts of other processes")
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
