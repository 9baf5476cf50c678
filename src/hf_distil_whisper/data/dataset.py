"""Training samples from rows of audio and transcripts: log-mel features on the fly, labels drawn anew in each epoch.

Features are not cached: the log-mel of 30 s takes 1.5 MB and 10 ms, so that storing it costs more than computing it.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, audio_duration, load_audio
from hf_distil_whisper.data.features import extractor_settings, log_mel, recording_key
from hf_distil_whisper.data.labels import (
    LabelError,
    language_in,
    language_token,
    make_labels,
    needs_language,
    plain_text,
)
from hf_distil_whisper.data.mixture import Mixture
from hf_distil_whisper.data.sources import RowErrors, mean_duration, weighted_mean, without_decoder

logger = logging.get_logger(__name__)

MANY_EPOCHS = 16
"""Within so many epochs nearly every variant of a row is drawn."""
LABEL_COLUMNS = ("id", "text", "condition_on_prev", "previous_transcript", "truncated", "duration", "language")


class DrawnVariant(NamedTuple):
    """The variant of a sample to train on: with its timestamps, with the previous text as prompt."""

    timestamps: bool
    use_prompt: bool


@dataclass(frozen=True)
class LabelSettings:
    """How the transcripts of a data set become labels.

    Args:
        transcript_column (`str`, *optional*, defaults to `"whisper_transcript"`): the text to learn.
        timestamp_probability (`float`, *optional*, defaults to 0.5): share of samples with timestamps, of those that
            have any.
        condition_on_prev_probability (`float`, *optional*, defaults to 0.2): share of samples with a prompt, of those
            that have a previous text.
        language (`str`, *optional*): for multilingual models, of rows that name none themselves; see [`make_labels`].
        language_column (`str`, *optional*): column with the language of each row, for multilingual models. By default
            the column `language`, if there is one, and then the language token of the transcript.
        task (`str`, *optional*, defaults to `"transcribe"`): or `"translate"`.
        max_label_length (`int`, *optional*, defaults to 448): positions of the decoder
            (`config.max_target_positions`).

    Raises:
        ValueError: for a probability outside [0, 1].
    """

    transcript_column: str = "whisper_transcript"
    timestamp_probability: float = 0.5
    condition_on_prev_probability: float = 0.2
    language: str | None = None
    language_column: str | None = None
    task: str = "transcribe"
    max_label_length: int = 448

    def __post_init__(self) -> None:
        for name in ("timestamp_probability", "condition_on_prev_probability"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"`{name}`: expected a probability between 0 and 1, got {value}.")

    def draw_variant(self, seed: int, epoch: int, index: int) -> DrawnVariant:
        """Draws a sample's variant, anew in each epoch (paper, table 15: timestamps with p = 0.5)."""
        # A generator for each sample: the result depends neither on the order of the samples nor on the number of
        # workers or processes, and nothing else draws from it.
        first, second = np.random.default_rng((seed, epoch, index)).random(2)
        return DrawnVariant(
            bool(first < self.timestamp_probability), bool(second < self.condition_on_prev_probability)
        )

    def possible_variants(self) -> list[DrawnVariant]:
        """Every variant with a probability above 0."""

        def outcomes(probability: float) -> list[bool]:
            return [False] * (probability < 1) + [True] * (probability > 0)

        variants = itertools.product(
            outcomes(self.timestamp_probability), outcomes(self.condition_on_prev_probability)
        )
        return [DrawnVariant(*variant) for variant in variants]


class SampleMaker:
    """Makes labels and features of rows with `audio` and a transcript."""

    def __init__(self, processor: WhisperProcessor, settings: LabelSettings):
        self.processor, self.settings = processor, settings
        self.needs_language = needs_language(processor.tokenizer)
        self._make_labels = partial(
            make_labels, processor.tokenizer, task=settings.task, max_length=settings.max_label_length
        )
        # An unknown language or task fails here, and not in a worker for each row.
        self._make_labels("", timestamps=False, language=settings.language)

    def labels(self, row: Mapping[str, Any], variant: DrawnVariant) -> dict[str, list[int]]:
        """`decoder_input_ids` and `labels` of a row, lists of the same length; a `LabelError` costs the row."""
        column = self.settings.transcript_column
        if row[column] is None:
            raise LabelError(f"no text in {column!r}; expected a transcript. Label the row or leave it out.")
        labels = self._make_labels(
            row[column],
            timestamps=variant.timestamps,
            previous=_previous_text(row) if variant.use_prompt else None,
            truncated=bool(row.get("truncated")),
            language=self.language_of(row),
        )
        return {"decoder_input_ids": labels.decoder_input_ids, "labels": labels.labels}

    def features(self, audio: Any, name: str) -> torch.Tensor:
        """Log-mel features of a recording, shape (mel_bins, frames), float32; an `AudioError` costs the row."""
        return log_mel(self.processor.feature_extractor, [self.recording(audio, name)])[0]

    def recording(self, audio: Any, name: str) -> np.ndarray:
        """The samples behind [`features`], which raises the same."""
        samples = load_audio(audio, name=name)
        check_length(name, len(samples) / SAMPLING_RATE, self.processor)
        return samples

    def language_of(self, row: Mapping[str, Any]) -> str | None:
        """The language that the label of a row starts with; None without one, or where the transcript brings its own.

        Raises:
            LabelError: for an unknown language, or none where a multilingual model needs one.
        """
        column = self.settings.language_column or ("language" if self.needs_language else None)
        language = None if column is None else row.get(column)
        if language is not None:
            try:
                language_token(language)
            except ValueError as error:
                raise LabelError(f"column {column!r}: {error}") from error
            return language
        # With a language of its own, the transcript stays as it is: it is not trained as one of another language.
        if language_in(row[self.settings.transcript_column] or ""):
            return None
        if self.settings.language is None and self.needs_language:
            raise LabelError(_NO_LANGUAGE)
        return self.settings.language


_NO_LANGUAGE = (
    "`language` is missing: labels of a multilingual Whisper start with it, and neither a column 'language' nor the "
    "transcript names one. Pass `language`, 'en' for example, or name the column with `language_column`."
)


def row_id(row: Mapping[str, Any], index: int) -> str:
    """The row's `id`, or its index where it has none."""
    return str(index) if row.get("id") is None else str(row["id"])


def check_length(name: str, seconds: float, processor: WhisperProcessor) -> None:
    """Raises an `AudioError` for a recording longer than the window."""
    window = processor.feature_extractor.n_samples / SAMPLING_RATE
    if seconds > window:
        raise AudioError(
            f"{name}: {seconds:.2f} s, longer than the window of {window:g} s: the text would hold more than the "
            "features. Split the recording first."
        )


def _previous_text(row: Mapping[str, Any]) -> str | list[int] | None:
    """Only as the row itself holds it: the row before may be of another speaker or document."""
    condition = row.get("condition_on_prev")
    if isinstance(condition, list):
        return condition
    if "condition_on_prev" in row and not condition:
        return None
    return row.get("previous_transcript")


class SpeechDataset(torch.utils.data.Dataset):
    """Samples for training and validation from rows of recordings with transcripts.

    Which variant of a sample is drawn (with timestamps, with the previous text as prompt) depends on the seed, the
    epoch and the row alone.

    Args:
        dataset (`datasets.Dataset`): with `audio` and a transcript, as from [`load_source`] or
            [`pseudo_label_dataset`]. Used where they exist: `id`, `text`, `truncated`, and the previous text as
            `previous_transcript` or as list of token ids in `condition_on_prev`. Clean it with [`check_rows`] first.
        processor (`WhisperProcessor`): of the student.
        settings ([`LabelSettings`], *optional*): of the labels.
        seed (`int`, *optional*, defaults to 42): of the draws.
        train (`bool`, *optional*, defaults to `True`): `False` for validation: never a prompt or timestamps, and each
            item holds the `reference` text.
        mixture ([`Mixture`], *optional*): how often the rows of each source are drawn, where `dataset` joins several
            ([`join_sources`]). The trainer's sampler follows it.
        **label_settings: fields of [`LabelSettings`] as keywords, such as `transcript_column="text"`.

    Raises:
        ValueError: for 0 rows, a missing column, a probability outside [0, 1] or an unknown language.

    Example:
        ```python
        >>> samples = SpeechDataset(dataset, processor, transcript_column="text")
        >>> samples[0]["input_features"].shape
        torch.Size([80, 3000])
        ```
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: WhisperProcessor,
        settings: LabelSettings | None = None,
        *,
        seed: int = 42,
        train: bool = True,
        mixture: Mixture | None = None,
        **label_settings: Any,
    ):
        self.settings = dataclasses.replace(settings or LabelSettings(), **label_settings)
        if not train:  # a draw would make two validations of one model differ
            self.settings = dataclasses.replace(
                self.settings, timestamp_probability=0.0, condition_on_prev_probability=0.0
            )
        _check_columns(dataset, self.settings)
        self._samples = SampleMaker(processor, self.settings)
        if not {"language", self.settings.language_column} & set(dataset.column_names):
            # Refused here, as by the command: in training it would cost every row.
            self._samples.language_of(dataset.select_columns([self.settings.transcript_column])[0])
        if mixture is not None and sum(mixture.sizes) != len(dataset):
            raise ValueError(f"`mixture` is of {sum(mixture.sizes)} rows, the data set has {len(dataset)}.")
        self.seed, self.train, self.mixture = seed, train, mixture
        self._extractor_settings = extractor_settings(processor)
        # Two views, so that reading a label does not read the audio.
        self._audio = without_decoder(dataset).select_columns(["audio"])
        self._texts = dataset.select_columns(_label_columns(dataset, self.settings))
        # In shared memory, so that persistent workers see a new epoch and this process the rows that they skipped.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._skipped)

    @property
    def epoch(self) -> int:
        """The epoch that variants are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draws the variants of this epoch from now on. The data loaders of the Trainer call it."""
        self._epoch.fill_(epoch)

    def text_lengths(self) -> np.ndarray:
        """Characters of each row's transcript, shape (rows,): roughly proportional to its tokens, and fast to read."""
        column = self.settings.transcript_column
        batches = self._texts.with_format("arrow").iter(batch_size=10_000)
        texts = pa.chunked_array([batch[column] for batch in batches])
        return pc.fill_null(pc.utf8_length(texts), 0).to_numpy()

    def mean_duration(self) -> float | None:
        """Mean duration of a recording over an epoch in seconds; rows count as often as they are drawn."""
        whole = (len(self),)
        sizes, draws = (whole, whole) if self.mixture is None else (self.mixture.sizes, self.mixture.draws)
        means, start = [], 0
        for size, num_draws in zip(sizes, draws, strict=True):
            rows = range(start, start + size)
            mean = mean_duration(self._texts.select(rows)) or mean_duration(self._audio.select(rows))
            means.append((mean, num_draws))
            start += size
        return weighted_mean(means)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample. A row that fails to decode is replaced by the next good one, logged, and in [`row_errors`].

        Returns:
            `dict`: `input_features` (mel bins, frames) in float32, `decoder_input_ids` and `labels` (lists of the same
            length), `index` of the row that was used, and `reference` in validation.
        """
        return next(
            item | {"input_features": features}
            for item in self._label_items(index)
            if (features := self._features(item["index"])) is not None
        )

    def label_item(self, index: int) -> dict[str, Any]:
        """The same without `input_features`, for runs with cached encoder outputs."""
        return next(self._label_items(index))

    def variants(self, index: int, epochs: int | None = None) -> list[dict[str, Any]]:
        """All variants that can be drawn of a row, as [`label_item`] gives them; none for a row without usable labels.

        Args:
            index (`int`): of the row.
            epochs (`int`, *optional*): only variants of the first `epochs`; by default, and above `MANY_EPOCHS`, all.
        """
        if epochs is None or epochs > MANY_EPOCHS:
            variants = self.settings.possible_variants()
        else:
            draws = (self.settings.draw_variant(self.seed, epoch, index) for epoch in range(epochs))
            variants = list(dict.fromkeys(draws))
        try:
            items = [self._label_item(index, variant) for variant in variants]
        except LabelError as error:
            self._skip(index, error)
            return []
        # A row without timestamps or previous text has fewer distinct labels than variants.
        return list({(*item["decoder_input_ids"],): item for item in items}.values())

    def audio_key(self, index: int) -> bytes:
        """Key of a row's features: its recording and the settings of the extractor."""
        return recording_key(self._audio[index]["audio"], self._extractor_settings, f"row {index}")

    def row_errors(self) -> RowErrors:
        """The rows that were replaced so far, by this process and its workers, with the reasons."""
        errors = RowErrors()
        # Workers share only the flag; the message comes from trying again.
        for index in torch.nonzero(self._skipped).flatten().tolist():
            try:
                self._drawn_item(index)
                self._samples.recording(self._audio[index]["audio"], self._row_id(index))
            except (AudioError, LabelError) as error:
                errors.add(self._row_id(index), error)
        return errors

    def _label_items(self, index: int) -> Iterator[dict[str, Any]]:
        """Labels of the row, then of those after it, for as long as the caller finds their audio unusable."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        for offset in range(len(self)):
            row = (index + offset) % len(self)
            if self._skipped[row]:
                continue
            try:
                yield self._drawn_item(row)
            except LabelError as error:
                self._skip(row, error)
        raise ValueError(f"none of {len(self)} rows can be used.\n{self.row_errors().summary()}")

    def _drawn_item(self, index: int) -> dict[str, Any]:
        return self._label_item(index, self.settings.draw_variant(self.seed, self.epoch, index))

    def _label_item(self, index: int, variant: DrawnVariant) -> dict[str, Any]:
        row = self._texts[index]
        item: dict[str, Any] = {**self._samples.labels(row, variant), "index": index}
        if not self.train:
            # What a transcript is compared with: the text of the row, or else its label.
            text = row.get("text")
            item["reference"] = plain_text(row[self.settings.transcript_column]) if text is None else text
        return item

    def _features(self, index: int) -> torch.Tensor | None:
        try:
            return self._samples.features(self._audio[index]["audio"], self._row_id(index))
        except AudioError as error:
            self._skip(index, error)
            return None

    def _skip(self, index: int, error: Exception) -> None:
        self._skipped[index] = True
        logger.warning(f"row {self._row_id(index)} is replaced by the next one: {error}")

    def _row_id(self, index: int) -> str:
        return row_id(self._texts[index], index)


def check_rows(
    dataset: Dataset, processor: WhisperProcessor, settings: LabelSettings | None = None, **label_settings: Any
) -> tuple[Dataset, RowErrors]:
    """Leaves out the rows that cannot be trained on, before the training and without decoding their audio.

    Args:
        dataset (`datasets.Dataset`): as for [`SpeechDataset`].
        processor (`WhisperProcessor`): of the student.
        settings ([`LabelSettings`], *optional*): of the labels.
        **label_settings: fields of [`LabelSettings`] as keywords.

    Returns:
        `tuple[Dataset, RowErrors]`: the good rows in their order, and the others with the reason: no transcript, a
        label longer than the decoder, audio that is missing, empty or longer than the window. Neither case nor script
        matters.

    Raises:
        ValueError: for 0 rows, a missing column, or if no row is left.
    """
    settings = dataclasses.replace(settings or LabelSettings(), **label_settings)
    _check_columns(dataset, settings)
    samples = SampleMaker(processor, settings)
    texts = dataset.select_columns(_label_columns(dataset, settings))
    audio = without_decoder(dataset).select_columns(["audio"])
    is_embedded = _is_embedded(audio)
    errors, good = RowErrors(), []
    for index, row in enumerate(texts):
        name = row_id(row, index)
        try:
            # The duration of labelled rows was measured, but does not tell whether a file is still there.
            seconds = row.get("duration") if is_embedded[index] else None
            if seconds is None:
                seconds = audio_duration(audio[index]["audio"], name=name)
            check_length(name, seconds, processor)
            # The label is longest with its timestamps, and prompts are cut to fit.
            samples.labels(row, DrawnVariant(timestamps=True, use_prompt=False))
        except (AudioError, LabelError) as error:
            errors.add(name, error)
        else:
            good.append(index)
    if not good:
        raise ValueError(f"none of {len(dataset)} rows can be used.\n{errors.summary()}")
    return (dataset.select(good) if errors else dataset), errors


def _check_columns(dataset: Dataset, settings: LabelSettings) -> None:
    if not len(dataset):
        raise ValueError("the data set has 0 rows; expected at least one. Check its source and its filter.")
    for option, column in (
        ("audio_column", "audio"),
        ("transcript_column", settings.transcript_column),
        ("language_column", settings.language_column),
    ):
        if column is not None and column not in dataset.column_names:
            raise ValueError(f"no column {column!r} (`{option}`); there are {', '.join(dataset.column_names)}.")


def _label_columns(dataset: Dataset, settings: LabelSettings) -> list[str]:
    names = dict.fromkeys((settings.transcript_column, *LABEL_COLUMNS, settings.language_column))
    return [name for name in names if name is not None and name in dataset.column_names]


def _is_embedded(audio: Dataset) -> list[bool]:
    """Whether each row holds the bytes of its file; reads only their lengths."""
    embedded: list[bool] = []
    for batch in audio.with_format("arrow").iter(batch_size=1000):
        column = batch["audio"]
        has_bytes = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        if not has_bytes or pa.types.is_null(column.type.field("bytes").type):
            return [False] * len(audio)
        embedded += [bool(size) for size in pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()]
    return embedded
