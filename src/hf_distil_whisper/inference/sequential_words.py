"""What transformers' long-form `generate` has made of each window, taken as it comes by: its words, and nothing more.

Knows that loop: what it keeps until its end grows with the recording, which need not be.
"""

from types import TracebackType
from typing import Any

from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.inference.generation import timestamp_begin
from hf_distil_whisper.inference.results import Word
from hf_distil_whisper.inference.word_timestamps import (
    in_order,
    join_words,
    num_positions,
    prefix_language,
    time_tokens,
)


class HeardWindows:
    """Times the words of each window while `generate` runs inside it, and lets go of the window's scores.

    transformers keeps in every segment all that its search returned, with temperature fallback the scores of the whole
    vocabulary for every token: 20 MB a window, gigabytes an hour. `_retrieve_segment` is where segments are made.

    Args:
        model (`WhisperForConditionalGeneration`): that generates; left as it is.
        processor (`WhisperProcessor`): of the model.
        num_samples (`int`): of the recording, at 16 kHz.
        with_words (`bool`): whether words are wanted; without them nothing of the encoder is kept.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, num_samples: int, with_words: bool
    ):
        self._model, self._processor, self._num_samples = model, processor, num_samples
        self._with_words = with_words
        self._words: list[Word] = []
        self._states: Tensor | None = None

    def __enter__(self) -> "HeardWindows":
        self._retrieve = self._model._retrieve_segment
        self._model._retrieve_segment = self._take
        self._handle = self._model.get_encoder().register_forward_hook(self._keep) if self._with_words else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._model._retrieve_segment  # of this model; the class keeps its own
        if self._handle is not None:
            self._handle.remove()

    @property
    def words(self) -> list[Word]:
        """The words of all segments; what a window wrote behind its last segment is left out."""
        return in_order(self._words)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The states of the window at hand, which is encoded again with temperature fallback."""
        self._states = output.last_hidden_state

    def _take(self, *, seek_outputs: list[Any], time_offset: Tensor, prev_idx: int, **rest: Any) -> tuple[list, int]:
        rows = [row if isinstance(row, Tensor) else row["sequences"] for row in seek_outputs]
        segments, frames = self._retrieve(seek_outputs=rows, time_offset=time_offset, prev_idx=prev_idx, **rest)
        if self._states is not None and segments:
            self._words += self._words_of(segments, self._states, float(time_offset[prev_idx]))
        return segments, frames

    def _words_of(self, segments: list[dict], states: Tensor, start: float) -> list[Word]:
        """The words of the segments of a window that begins at `start` seconds."""
        begin, end = timestamp_begin(self._model), self._model.generation_config.eos_token_id
        row = segments[0]["result"].tolist()
        first = segments[0]["idxs"][0]
        tokens = row[first : row.index(end, first)] if end in row[first:] else row[first:]
        samples = self._num_samples - round(start * SAMPLING_RATE)
        timed = time_tokens(self._model, states, row[:first], tokens, num_positions(self._processor, samples))
        kept = [one for part in segments for one in timed[part["idxs"][0] - first : part["idxs"][1] - first]]
        language = prefix_language(self._model, row[:first])
        return join_words(kept, self._processor.tokenizer, begin, language, start)
