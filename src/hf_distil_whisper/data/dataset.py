"""Rows of audio and transcripts as samples of a `DataLoader`: log-mel on the fly, labels drawn anew in each epoch.

Nothing is cached: the log-mel of 30 s takes 1.5 MB and 10 ms, so that storing it costs more than computing it. Joins
`audio` and `labels`; knows no model.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.array_store import (
    extractor_settings,
    recording_key,
)
from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    audio_duration,
    load_audio,
)
from hf_distil_whisper.data.features import log_mel
from hf_distil_whisper.data.labels import (
    DrawnVariant,
    LabelError,
    draw_variant,
    language_token,
    make_labels,
    plain_text,
)
from hf_distil_whisper.data.mixture import Mixture
from hf_distil_whisper.data.sources import (
    RowErrors,
    mean_duration,
    weighted_mean,
    without_decoder,
)


class SampleMaker:
    """Makes samples of rows with `audio` and a transcript.

    Args:
        processor (`WhisperProcessor`): of the student.
        transcript_column (`str`): the text to learn.
        language (`str`, *optional*): for multilingual models; see [`make_labels`].
        language_column (`str`, *optional*): names the language of each row; where it is null, `language` holds.
        task (`str`, *optional*, defaults to `"transcribe"`): or `"translate"`.
        max_label_length (`int`, *optional*, defaults to 448): positions of the decoder.

    Raises:
        ValueError: for an unknown language or task.
    """

    def __init__(
        self,
        processor: WhisperProcessor,
        transcript_column: str,
        *,
        language: str | None = None,
        language_column: str | None = None,
        task: str = "transcribe",
        max_label_length: int = 448,
    ):
        self.processor, self.transcript_column = processor, transcript_column
        self._language, self._language_column = language, language_column
        self._label = partial(make_labels, processor.tokenizer, task=task, max_length=max_label_length)
        # An unknown language or task fails here, and not in a worker for each row.
        self._label("", timestamps=False, language=language)

    def labels(self, row: Mapping[str, Any], variant: DrawnVariant) -> dict[str, list[int]]:
        """`decoder_input_ids` and `labels` of a row, lists of one length.

        Raises:
            LabelError: where there is no transcript, or none that fits; it costs the row.
        """
        transcript = row[self.transcript_column]
        if transcript is None:
            raise LabelError(
                f"no text in {self.transcript_column!r}; expected a transcript. Label the row or leave it out."
            )
        labels = self._label(
            transcript,
            timestamps=variant.timestamps,
            previous=_previous(row) if variant.use_prompt else None,
            truncated=bool(row.get("truncated")),
            language=self._language_of(row),
        )
        return {"decoder_input_ids": labels.decoder_input_ids, "labels": labels.labels}

    def reference(self, row: Mapping[str, Any]) -> str:
        """What a transcript of the row is compared with: its text, or else its label."""
        return row["text"] if row.get("text") is not None else plain_text(row[self.transcript_column])

    def features(self, audio: Any, name: str) -> torch.Tensor:
        """Log-mel of a recording, (mel bins, frames) in float32.

        Args:
            audio (`Any`): as [`load_audio`] takes it.
            name (`str`): of the row, for messages.

        Raises:
            AudioError: where it cannot be read or is longer than the window; it costs the row.
        """
        return log_mel(self.processor.feature_extractor, [self.recording(audio, name)])[0]

    def recording(self, audio: Any, name: str) -> np.ndarray:
        """The samples behind [`features`], which raises the same."""
        samples = load_audio(audio, name=name)
        check_length(name, len(samples) / SAMPLING_RATE, self.processor)
        return samples

    def _language_of(self, row: Mapping[str, Any]) -> str | None:
        own = None if self._language_column is None else row.get(self._language_column)
        if own is None:
            return self._language
        try:
            language_token(own)
        except ValueError as error:
            raise LabelError(f"column {self._language_column!r}: {error}") from error
        return own


def row_id(row: Mapping[str, Any], index: int) -> str:
    """The row's `id`, or its number where it has none."""
    return str(index) if row.get("id") is None else str(row["id"])


def check_length(name: str, seconds: float, processor: WhisperProcessor) -> None:
    """Raises an `AudioError` for a recording longer than the window."""
    window = processor.feature_extractor.n_samples / SAMPLING_RATE
    if seconds > window:
        raise AudioError(
            f"{name}: {seconds:.2f} s, longer than the window of {window:g} s: the text would say more than the "
            "model hears. Split the recording first."
        )


def _previous(row: Mapping[str, Any]) -> str | list[int] | None:
    """The text before, only where the row itself says it: the row before may be of another speaker or document."""
    condition = row.get("condition_on_prev")
    if isinstance(condition, list):
        return condition
    if "condition_on_prev" in row and not condition:
        return None
    return row.get("previous_transcript")


logger = logging.get_logger(__name__)

MANY_EPOCHS = 16
"""In so many a row is drawn as nearly everything that it can be drawn as."""
LABEL_COLUMNS = ("id", "text", "condition_on_prev", "previous_transcript", "truncated", "duration", "language")


class SpeechDataset(torch.utils.data.Dataset):
    """Samples for training and validation from rows of recordings with transcripts.

    Which variant of a sample is drawn (with timestamps, with the previous text as prompt) depends on the seed, the
    epoch and the row alone. Epoch and lost rows lie in shared memory, so that workers that live on see a new epoch.

    Args:
        dataset (`datasets.Dataset`): with `audio` and a transcript, as from `load_source` or the labelling. Used where
            there: `id`, `text`, `truncated`, and the text before as `previous_transcript` or as list of token ids in
            `condition_on_prev`. Clean it with [`check_rows`] first.
        processor (`WhisperProcessor`): of the student.
        transcript_column (`str`, *optional*, defaults to `"whisper_transcript"`): the text to learn.
        timestamp_probability (`float`, *optional*, defaults to 0.5): share of samples with timestamps, of those that
            have any.
        condition_on_prev_probability (`float`, *optional*, defaults to 0.2): share of samples with a prompt, of those
            that have a text before.
        language (`str`, *optional*): for multilingual models; see [`make_labels`].
        language_column (`str`, *optional*): names the language of each row, for multilingual models; where it is null,
            `language` holds.
        task (`str`, *optional*, defaults to `"transcribe"`): or `"translate"`.
        max_label_length (`int`, *optional*, defaults to 448): positions of the decoder
            (`config.max_target_positions`).
        seed (`int`, *optional*, defaults to 42): of the draws.
        train (`bool`, *optional*, defaults to `True`): `False` for validation: never a prompt or timestamps, and each
            item holds the `reference` text.
        mixture ([`Mixture`], *optional*): how often the rows of each source are drawn, where `dataset` joins several
            ([`join_sources`]). The trainer draws them so.

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
        *,
        transcript_column: str = "whisper_transcript",
        timestamp_probability: float = 0.5,
        condition_on_prev_probability: float = 0.2,
        language: str | None = None,
        language_column: str | None = None,
        task: str = "transcribe",
        max_label_length: int = 448,
        seed: int = 42,
        train: bool = True,
        mixture: Mixture | None = None,
    ):
        _check_columns(dataset, transcript_column, language_column)
        if mixture is not None and sum(mixture.sizes) != len(dataset):
            raise ValueError(f"`mixture` is of {sum(mixture.sizes)} rows, the data set has {len(dataset)}.")
        for name, value in (
            ("timestamp_probability", timestamp_probability),
            ("condition_on_prev_probability", condition_on_prev_probability),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}`: expected a probability between 0 and 1, got {value}.")
        self._samples = SampleMaker(
            processor,
            transcript_column,
            language=language,
            language_column=language_column,
            task=task,
            max_label_length=max_label_length,
        )
        self._extractor_settings = extractor_settings(processor)
        self.transcript_column = transcript_column
        self._draw = partial(
            draw_variant,
            timestamp_probability=timestamp_probability,
            condition_on_prev_probability=condition_on_prev_probability,
        )
        self.seed, self.train, self.mixture = seed, train, mixture
        # Two views, so that a label alone does not read the audio.
        self._audio = without_decoder(dataset).select_columns(["audio"])
        self._texts = dataset.select_columns(_label_columns(dataset, transcript_column, language_column))
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._lost = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._lost)

    @property
    def epoch(self) -> int:
        """Whose draws the items are."""
        return int(self._epoch)

    def text_lengths(self) -> np.ndarray:
        """Characters of each row's transcript: about in the ratio of its tokens, and read at once."""
        table = self._texts.with_format("arrow")
        column = pa.chunked_array([part[self.transcript_column] for part in table.iter(batch_size=10_000)])
        return pc.fill_null(pc.utf8_length(column), 0).to_numpy()

    def mean_duration(self) -> float | None:
        """Seconds of a recording in the mean over an epoch, where rows count as often as they are drawn."""
        one = (len(self),)
        sizes, draws = (one, one) if self.mixture is None else (self.mixture.sizes, self.mixture.draws)
        means, start = [], 0
        for size, drawn in zip(sizes, draws, strict=True):
            rows = range(start, start + size)
            mean = mean_duration(self._texts.select(rows)) or mean_duration(self._audio.select(rows))
            means.append((mean, drawn))
            start += size
        return weighted_mean(means)

    def set_epoch(self, epoch: int) -> None:
        """Makes the draws those of this epoch. Data loaders of the Trainer call it."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample.

        A row that fails to decode is replaced by the next good one, logged, and counted in [`row_errors`].

        Returns:
            `dict`: `input_features` (mel bins, frames) in float32, `decoder_input_ids` and `labels` (lists of one
            length), `index` of the row that was used, and `reference` in validation.
        """
        return next(
            item | {"input_features": features}
            for item in self._label_items(index)
            if (features := self._features(item["index"])) is not None
        )

    def label_item(self, index: int) -> dict[str, Any]:
        """The same without `input_features`, for runs that keep the encoder's output."""
        return next(self._label_items(index))

    def variants(self, index: int, epochs: int | None = None) -> list[dict[str, Any]]:
        """What a row can be drawn as, as [`label_item`] gives it, each once; nothing for a row without usable labels.

        Args:
            index (`int`): of the row.
            epochs (`int`, *optional*): only what the first so many draw; all that can be drawn by default, or of more
                than `MANY_EPOCHS`.
        """
        if not self.train:
            choices = [DrawnVariant(False, False)]
        elif epochs is None or epochs > MANY_EPOCHS:
            shares = self._draw.keywords["timestamp_probability"], self._draw.keywords["condition_on_prev_probability"]
            stamps, prompts = (
                [drawn for drawn in (False, True) if (share if drawn else 1 - share) > 0] for share in shares
            )
            choices = [DrawnVariant(stamp, prompt) for stamp in stamps for prompt in prompts]
        else:
            choices = list(dict.fromkeys(self._draw(self.seed, epoch, index) for epoch in range(epochs)))
        try:
            items = [self._variant(index, choice) for choice in choices]
        except LabelError as error:
            self._lose(index, error)
            return []
        return list({(*item["decoder_input_ids"],): item for item in items}.values())

    def audio_key(self, index: int) -> bytes:
        """Stands for what a row's features are made of: its recording and the settings of the extractor."""
        return recording_key(self._audio[index]["audio"], self._extractor_settings, f"row {index}")

    def row_errors(self) -> RowErrors:
        """The rows that were replaced so far, in this process and in the workers, with their reasons."""
        errors = RowErrors()
        for index in torch.nonzero(self._lost).flatten().tolist():
            try:
                self._make_labels(index)
                self._samples.recording(self._audio[index]["audio"], self._row_id(index))
            except (AudioError, LabelError) as error:
                errors.add(self._row_id(index), error)
        return errors

    def _label_items(self, index: int) -> Iterator[dict[str, Any]]:
        """Labels of the row, then of those after it, for as long as rows turn out to be bad."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        for offset in range(len(self)):
            row = (index + offset) % len(self)
            if self._lost[row]:
                continue
            try:
                yield self._make_labels(row)
            except LabelError as error:
                self._lose(row, error)
        raise ValueError(f"none of {len(self)} rows can be used.\n{self.row_errors().summary()}")

    def _make_labels(self, index: int) -> dict[str, Any]:
        drawn = self._draw(self.seed, self.epoch, index) if self.train else DrawnVariant(False, False)
        return self._variant(index, drawn)

    def _variant(self, index: int, variant: DrawnVariant) -> dict[str, Any]:
        row = self._texts[index]
        item: dict[str, Any] = {**self._samples.labels(row, variant), "index": index}
        if not self.train:
            item["reference"] = self._samples.reference(row)
        return item

    def _features(self, index: int) -> torch.Tensor | None:
        try:
            return self._samples.features(self._audio[index]["audio"], self._row_id(index))
        except AudioError as error:
            self._lose(index, error)
            return None

    def _lose(self, index: int, error: Exception) -> None:
        self._lost[index] = True
        logger.warning(f"row {self._row_id(index)} is replaced by the next one: {error}")

    def _row_id(self, index: int) -> str:
        return row_id(self._texts[index], index)


def check_rows(
    dataset: Dataset,
    processor: WhisperProcessor,
    *,
    transcript_column: str = "whisper_transcript",
    language: str | None = None,
    language_column: str | None = None,
    task: str = "transcribe",
    max_label_length: int = 448,
) -> tuple[Dataset, RowErrors]:
    """Leaves out the rows that cannot be trained on, before the training and without decoding their audio.

    Args:
        dataset (`datasets.Dataset`): as for [`SpeechDataset`].
        processor (`WhisperProcessor`): of the student.
        transcript_column (`str`, *optional*, defaults to `"whisper_transcript"`): the text to learn.
        language (`str`, *optional*): as for [`make_labels`].
        language_column (`str`, *optional*): as for [`SpeechDataset`].
        task (`str`, *optional*, defaults to `"transcribe"`): as for [`make_labels`].
        max_label_length (`int`, *optional*, defaults to 448): positions of the decoder.

    Returns:
        `tuple[Dataset, RowErrors]`: the good rows in their order, and the others with what is wrong: no transcript, a
        label longer than the decoder, audio that is missing, empty or longer than the window. Neither case nor script
        counts.

    Raises:
        ValueError: for 0 rows, a missing column, or if no row is left.
    """
    _check_columns(dataset, transcript_column, language_column)
    texts = dataset.select_columns(_label_columns(dataset, transcript_column, language_column))
    samples = SampleMaker(
        processor,
        transcript_column,
        language=language,
        language_column=language_column,
        task=task,
        max_label_length=max_label_length,
    )
    errors, good = RowErrors(), []
    audio = without_decoder(dataset).select_columns(["audio"])
    embedded = _embedded(audio)
    for index, row in enumerate(texts):
        name = row_id(row, index)
        try:
            # The duration of labelled rows is measured; that of a file says nothing about whether it is there.
            seconds = row.get("duration") if embedded[index] else None
            if seconds is None:
                seconds = audio_duration(audio[index]["audio"], name=name)
            check_length(name, seconds, processor)
            # With its timestamps a label is longest.
            samples.labels(row, DrawnVariant(timestamps=True, use_prompt=False))
        except (AudioError, LabelError) as error:
            errors.add(name, error)
        else:
            good.append(index)
    if not good:
        raise ValueError(f"none of {len(dataset)} rows can be used.\n{errors.summary()}")
    return (dataset.select(good) if errors else dataset), errors


def _check_columns(dataset: Dataset, transcript_column: str, language_column: str | None) -> None:
    if not len(dataset):
        raise ValueError("the data set has 0 rows; expected at least one. Check its source and its filter.")
    options = {"audio_column": "audio", "transcript_column": transcript_column, "language_column": language_column}
    for option, column in options.items():
        if column is not None and column not in dataset.column_names:
            raise ValueError(f"no column {column!r} (`{option}`); there are {', '.join(dataset.column_names)}.")


def _label_columns(dataset: Dataset, transcript_column: str, language_column: str | None) -> list[str]:
    names = dict.fromkeys((transcript_column, *LABEL_COLUMNS, language_column))
    return [name for name in names if name is not None and name in dataset.column_names]


def _embedded(audio: Dataset) -> list[bool]:
    """Whether each row holds the bytes of its file. Reads only their lengths."""
    found: list[bool] = []
    for batch in audio.with_format("arrow").iter(batch_size=1000):
        column = batch["audio"]
        stored = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        if not stored or pa.types.is_null(column.type.field("bytes").type):
            return [False] * len(audio)
        found += [bool(size) for size in pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()]
    return found
