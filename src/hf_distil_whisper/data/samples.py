"""From one row to one sample: the label of a variant, and the log-mel features of its recording.

Knows one row at a time; which row, and which variant of it, is decided by `speech_dataset`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import WhisperProcessor

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, load_audio
from hf_distil_whisper.data.features import log_mel
from hf_distil_whisper.data.labels import DrawnVariant, LabelError, language_token, make_labels, plain_text


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
