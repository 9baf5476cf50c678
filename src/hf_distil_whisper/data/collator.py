"""Collates samples of a `SpeechDataset` to a batch, padded to its longest label.

With 30 s windows of about 100 tokens, padding to the 448 positions of the decoder would make three quarters of its
work padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import WhisperProcessor

from hf_distil_whisper.data.labels import IGNORE_INDEX

DECODER_POSITIONS = 448


@dataclass
class DataCollatorSpeechSeq2SeqWithPadding:
    """Stacks the features and pads the tokens of a batch.

    Args:
        processor (`WhisperProcessor`): inputs are padded with its `<|endoftext|>`; whisper-tiny.en has no pad token.
        pad_to_multiple_of (`int`, *optional*): lengths are rounded up to multiples of this, for tensor cores. A
            divisor of 448, so that no label grows beyond Whisper's decoder.

    Raises:
        ValueError: if `pad_to_multiple_of` does not divide 448.

    Example:
        ```python
        >>> collate = DataCollatorSpeechSeq2SeqWithPadding(processor)
        >>> batch = collate([samples[0], samples[1]])
        >>> batch["input_features"].shape, batch["labels"].shape == batch["decoder_input_ids"].shape
        (torch.Size([2, 80, 3000]), True)
        ```
    """

    processor: WhisperProcessor
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        multiple = self.pad_to_multiple_of
        if multiple is not None and (multiple < 1 or DECODER_POSITIONS % multiple):
            raise ValueError(
                f"`pad_to_multiple_of`: expected a divisor of {DECODER_POSITIONS} such as 8 or 64, got {multiple}."
            )

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collates the batch.

        Args:
            features (`Sequence[dict]`): each with `input_features` (mel bins, frames) or `encoder_states` (frames,
                width), and `decoder_input_ids` and `labels` of the same length. Items with `labels` alone, as a
                tokenizer makes them with `<|startoftranscript|>` in front, are shifted here. `teacher_states` (labels
                that count, layers * width) of a teacher cache are placed at their labels. Other entries are dropped.

        Returns:
            `dict[str, torch.Tensor]`: `input_features` (batch, mel bins, frames) or `encoder_states` (batch, frames,
            width), `decoder_input_ids` (batch, length), and `labels` (batch, length) with -100 on prompts and padding;
            `teacher_states` (batch, length, layers * width), 0 on prompts and padding.
        """
        source = "encoder_states" if "encoder_states" in features[0] else "input_features"
        pairs = [self._tokens(item) for item in features]
        length = max(len(labels) for _, labels in pairs)
        if self.pad_to_multiple_of is not None:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        tokenizer = self.processor.tokenizer
        batch = {
            source: torch.stack([torch.as_tensor(item[source]) for item in features]),
            # (batch, length) each: labels[:, i] are the targets of the decoder that has read inputs[:, : i + 1].
            # Right padding needs no attention mask: the decoder is causal, and labels are -100 there.
            "decoder_input_ids": _pad([ids for ids, _ in pairs], length, tokenizer.eos_token_id),
            "labels": _pad([labels for _, labels in pairs], length, IGNORE_INDEX),
        }
        if "teacher_states" in features[0]:
            states = torch.cat([item["teacher_states"] for item in features])  # (labels that count, layers * width)
            batch["teacher_states"] = states.new_zeros(*batch["labels"].shape, states.shape[1])
            batch["teacher_states"][batch["labels"] != IGNORE_INDEX] = states
        return batch

    def _tokens(self, item: dict[str, Any]) -> tuple[list[int], list[int]]:
        labels = [int(token) for token in item["labels"]]
        if "decoder_input_ids" in item:
            return [int(token) for token in item["decoder_input_ids"]], labels
        tokenizer = self.processor.tokenizer
        start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
        if start not in labels:
            labels = [start, *labels]
        # The model shifts `labels` to the right itself, behind another <|startoftranscript|>; so shift here:
        #   labels             <|startofprev|> a <|startoftranscript|> <|notimestamps|> b <|endoftext|>
        #   decoder_input_ids  <|startofprev|> a <|startoftranscript|> <|notimestamps|> b
        #   labels returned    -100 -100 <|notimestamps|> b <|endoftext|>
        prompt = labels.index(start)
        inputs = [tokenizer.eos_token_id if token == IGNORE_INDEX else token for token in labels[:-1]]
        return inputs, [IGNORE_INDEX] * prompt + labels[prompt + 1 :]


def _pad(rows: list[list[int]], length: int, value: int) -> torch.Tensor:
    batch = torch.full((len(rows), length), value, dtype=torch.long)
    for target, row in zip(batch, rows, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.long)
    return batch
