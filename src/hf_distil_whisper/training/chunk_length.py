"""What a student learns from tells how long recordings are best cut for it: kept in its generation config.

Knows the training rows' durations; the rule is `inference.chunk_length`'s (paper, appendix D.4).
"""

from typing import Any

from torch.utils.data import Dataset
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
)

from hf_distil_whisper.data.speech_dataset import SpeechDataset
from hf_distil_whisper.data.speech_stream import SpeechStream
from hf_distil_whisper.inference.chunk_length import CHUNK_LENGTH_ENTRY, chunk_length_after
from hf_distil_whisper.training.sampling import speech_rows


class ChunkLengthCallback(TrainerCallback):
    """Writes `chunk_length_s` into the student's generation config, from where it gets into every checkpoint.

    Args:
        model (`WhisperForConditionalGeneration`): the student.
        rows ([`SpeechDataset`] or [`SpeechStream`]): to train on.
    """

    def __init__(self, model: WhisperForConditionalGeneration, rows: SpeechDataset | SpeechStream):
        self.model, self.rows = model, rows

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Goes by the mean duration of the rows as they are drawn; where that is not known, nothing is written."""
        mean = self.rows.mean_duration()
        if mean is not None:
            setattr(self.model.generation_config, CHUNK_LENGTH_ENTRY, chunk_length_after(mean))


def chunk_length_callbacks(model: WhisperForConditionalGeneration, dataset: Dataset | None) -> list[TrainerCallback]:
    """The callback, where the training rows are of a kind that tells durations."""
    rows = dataset if isinstance(dataset, SpeechStream) else speech_rows(dataset)
    return [] if rows is None else [ChunkLengthCallback(model, rows)]
