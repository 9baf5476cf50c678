"""Word times of a recording that transformers' long-form `generate` transcribes window by window.

Knows that loop: it says where each window starts before it, and each of its segments holds all that was written in
the window. The encoder's states are taken as they come by, so that no window is encoded twice.
"""

from bisect import bisect_right
from collections.abc import Callable
from itertools import groupby
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
    """Keeps where windows start and what the encoder makes of them, while `generate` runs inside it.

    Args:
        model (`WhisperForConditionalGeneration`): that generates; left as it is.
    """

    def __init__(self, model: WhisperForConditionalGeneration):
        self._model = model
        self._starts: list[int] = []
        self._states: list[Tensor] = []

    def __enter__(self) -> "HeardWindows":
        self._handle = self._model.get_encoder().register_forward_hook(self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def before_each(self, then: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """For `monitor_progress`, which is called before each window; without it nothing is kept.

        Args:
            then (`Callable[[Tensor], None]`): called with the same progress.
        """

        def start(progress: Tensor) -> None:
            self._starts.append(int(progress[0, 0]))
            then(progress)

        return start

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The last states of each window, which is encoded again with temperature fallback."""
        if self._starts:  # else a language is being detected
            del self._states[len(self._starts) - 1 :]
            self._states.append(output.last_hidden_state)

    def words(self, segments: list[dict], processor: WhisperProcessor, num_samples: int) -> list[Word]:
        """The words of the segments that `generate` returned.

        Args:
            segments (`list[dict]`): of the recording; what a window wrote behind its last segment is left out.
            processor (`WhisperProcessor`): of the model.
            num_samples (`int`): of the recording, at 16 kHz.
        """
        begin, end = timestamp_begin(self._model), self._model.generation_config.eos_token_id
        rate = processor.feature_extractor.hop_length
        words: list[Word] = []
        for _, group in groupby(segments, key=lambda segment: id(segment["result"])):
            parts = list(group)
            result = parts[0]["result"]
            row = (result if isinstance(result, Tensor) else result["sequences"]).tolist()
            first = parts[0]["idxs"][0]
            tokens = row[first : row.index(end, first)] if end in row[first:] else row[first:]
            # Skipped windows leave no segment: the start tells which one these come from.
            frame = round(float(parts[0]["start"]) * SAMPLING_RATE / rate)
            number = bisect_right(self._starts, frame) - 1
            offset = self._starts[number] * rate
            timed = time_tokens(
                self._model, self._states[number], row[:first], tokens, num_positions(processor, num_samples - offset)
            )
            kept = [one for part in parts for one in timed[part["idxs"][0] - first : part["idxs"][1] - first]]
            language = prefix_language(self._model, row[:first])
            words += join_words(kept, processor.tokenizer, begin, language, offset / SAMPLING_RATE)
        return in_order(words)
