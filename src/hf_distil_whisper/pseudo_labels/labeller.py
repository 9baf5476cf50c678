"""The teacher's transcripts as a column of a data set: pseudo-labels (paper, section 4.2), greedy by default.

Knows how the work is cut into shards, shared by processes and taken up again; what belongs into a labelled row is said
in `label_columns.py`, `filtering.py` decides which rows are good enough.
"""

import hashlib
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.checkpoints import weights_fingerprint
from hf_distil_whisper.data.content import extractor_settings, recording_key
from hf_distil_whisper.data.packing import PACKED_FEATURES, pack_utterances
from hf_distil_whisper.data.samples import row_id
from hf_distil_whisper.data.sources import ROWS_FILE, RowErrors, load_shards, without_decoder
from hf_distil_whisper.inference.backends import BACKENDS, Ctranslate2Generator
from hf_distil_whisper.inference.encoder_cache import STATES_DTYPES, EncoderCache
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    generate_tokens,
    resolve_language,
    scoring_language,
    timestamp_begin,
)
from hf_distil_whisper.inference.progress import AudioProgress
from hf_distil_whisper.inference.rows import generate_rows
from hf_distil_whisper.pseudo_labels.blocks import blocks_missing, check_ids, own_blocks
from hf_distil_whisper.pseudo_labels.label_columns import with_labels
from hf_distil_whisper.shards import ShardStore

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
    teacher_cache_dtype: str = "auto",
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
        dataset (`Dataset` or `IterableDataset`): rows with `audio` as [`load_source`] or [`stream_source`] gives it,
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
        teacher_cache_dtype (`str`, *optional*, defaults to `"auto"`): of these states: that of the teacher, or "int8";
            that of the training must be the same.
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
    _check_pieces_and_states(max_duration, max_words, teacher_cache_dir, teacher_cache_dtype)
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
    store.begin(
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
        None
        if teacher_cache_dir is None
        else EncoderCache(teacher.model.encoder, teacher.dtype, teacher_cache_dir, int8=teacher_cache_dtype == "int8")
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


def _check_pieces_and_states(
    max_duration: float | None, max_words: int | None, cache_dir: str | Path | None, cache_dtype: str
) -> None:
    """Settings that would do nothing without another one, and unknown ones."""
    if max_words is not None and max_duration is None:
        raise ValueError(
            f"`max_words` is {max_words}, but no row is split without `max_duration`: set it, or leave both."
        )
    if cache_dtype not in STATES_DTYPES:
        raise ValueError(f"`teacher_cache_dtype` is {cache_dtype!r}, expected one of {', '.join(STATES_DTYPES)}.")
    if cache_dtype == "int8" and cache_dir is None:
        raise ValueError(
            "`teacher_cache_dtype` is 'int8', but no states are kept without `teacher_cache_dir`: set both."
        )


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
