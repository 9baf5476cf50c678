"""Which tokens a Whisper may write next: suppressed ones, and the order of timestamps.

One object for what transformers spreads over three processors. Those see one position of rows of one length; here each
row has a length of its own and several positions are judged at once, as speculative decoding needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

FORBIDDEN = float("-inf")


@dataclass(frozen=True)
class TimestampRules:
    """Whisper's grammar of timestamps: they come first, in pairs, and never go back.

    Args:
        first (`int`): id of `<|0.00|>`; all ids from there on are times.
        end (`int`): id of `<|endoftext|>`; text tokens lie below it.
        latest_start (`int`, *optional*): steps of 0.02 s after which no transcript may start.
    """

    first: int
    end: int
    latest_start: int | None = None


class TokenRules(LogitsProcessor):
    """Sets the scores of forbidden tokens to minus infinity.

    Args:
        always (`Sequence[int]`): forbidden everywhere.
        at_begin (`Sequence[int]`): forbidden at the first position behind the prefix.
        begin (`int`): length of the prefix, the same for all rows.
        vocab_size (`int`): tokens of the model.
        device (`torch.device`): of the scores.
        timestamps ([`TimestampRules`], *optional*): their grammar; None where none are asked for (`always` holds
            them then).
    """

    def __init__(
        self,
        always: Sequence[int],
        at_begin: Sequence[int],
        begin: int,
        vocab_size: int,
        device: torch.device,
        timestamps: TimestampRules | None = None,
    ):
        forbidden = [*always] if timestamps is None else [*always, timestamps.first - 1]  # `<|notimestamps|>`
        self.always = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.always[forbidden] = True
        self.at_begin = torch.zeros_like(self.always)
        self.at_begin[list(at_begin)] = True
        self.begin, self.timestamps = begin, timestamps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The rules for the one position behind rows of one length, as `generate` asks for it.

        Args:
            input_ids (`Tensor`): (batch, length), prefix and what has been written.
            scores (`Tensor`): (batch, vocab).
        """
        lengths = torch.full((len(input_ids),), input_ids.shape[1], device=input_ids.device)
        return self.apply(input_ids, lengths, scores.unsqueeze(1)).squeeze(1)

    def apply(self, sequences: Tensor, lengths: Tensor, scores: Tensor) -> Tensor:
        """The rules for several positions of rows of different length.

        Args:
            sequences (`Tensor`): (batch, any length): prefix and what has been written; drafts are in their places.
            lengths (`Tensor`): (batch,), at least the prefix: where each row's first score belongs.
            scores (`Tensor`): (batch, positions, vocab) in float32; left as they are.

        Returns:
            `Tensor`: (batch, positions, vocab).
        """
        written = lengths[:, None] + torch.arange(scores.shape[1], device=lengths.device) - self.begin
        scores = scores.masked_fill(self.always, FORBIDDEN)
        first = written == 0
        if bool(first.any()):
            scores[first] = scores[first].masked_fill(self.at_begin, FORBIDDEN)
        if self.timestamps is None:
            return scores
        return _order_timestamps(self.timestamps, sequences, self.begin, written, scores)


def _order_timestamps(rules: TimestampRules, sequences: Tensor, begin: int, written: Tensor, scores: Tensor) -> Tensor:
    """Whisper's grammar, as in transformers' `WhisperTimeStampLogitsProcessor`, at (batch, positions) `written`."""
    tail = sequences[:, begin:]
    latest, before = _token_at(tail, written - 1), _token_at(tail, written - 2)
    is_time = (written >= 1) & (latest >= rules.first)
    closes = is_time & ((written < 2) | (before >= rules.first))  # a pair is whole: text has to follow
    opens = is_time & ~closes  # text has ended: its pair or the end has to follow
    scores[..., rules.first :].masked_fill_(closes[..., None], FORBIDDEN)
    scores[..., : rules.end].masked_fill_(opens[..., None], FORBIDDEN)

    lowest = _last_time(rules, tail, written) + (~opens).long()  # no time twice, but for a pair's two halves
    times = torch.arange(rules.first, scores.shape[-1], device=scores.device)
    scores[..., rules.first :].masked_fill_(times < lowest[..., None], FORBIDDEN)

    first = (written == 0)[..., None]
    scores[..., : rules.first].masked_fill_(first, FORBIDDEN)
    if rules.latest_start is not None:
        scores[..., rules.first + rules.latest_start + 1 :].masked_fill_(first, FORBIDDEN)

    # Where a time as such is more probable than any one word, it has to be a time.
    likely = scores[..., rules.first :].logsumexp(dim=-1) > scores[..., : rules.first].amax(dim=-1)
    scores[..., : rules.first].masked_fill_(likely[..., None], FORBIDDEN)
    return scores


def _token_at(tail: Tensor, index: Tensor) -> Tensor:
    """The tokens (batch, positions) at an index; any where it lies before the start."""
    return tail.gather(1, index.clamp(0, max(tail.shape[1] - 1, 0))) if tail.shape[1] else index


def _last_time(rules: TimestampRules, tail: Tensor, written: Tensor) -> Tensor:
    """The last timestamp before each position, (batch, positions); one below the first where there is none."""
    if tail.shape[1] == 0:
        return torch.full_like(written, rules.first - 1)
    places = torch.arange(tail.shape[1], device=tail.device).expand_as(tail)
    last = places.masked_fill(tail < rules.first, -1).cummax(dim=1).values
    place = _token_at(last, written - 1).masked_fill(written == 0, -1)
    return _token_at(tail, place).masked_fill(place < 0, rules.first - 1)
