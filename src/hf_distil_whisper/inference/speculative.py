"""Speculative decoding of a batch: the assistant drafts some tokens, the main model checks them all in one pass.

Every row accepts what it can by itself and goes on from there, with a position of its own in the caches. The paper
(appendix D.3) and transformers discard a draft in all rows where it fails in one, and lose time from a batch of 16 on.
Knows nothing of Whisper's prefix; `token_rules` says what may be written.
"""

from dataclasses import fields

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.inference.cached_decoder import Assistant, CachedDecoder
from hf_distil_whisper.inference.drafts import LONGEST_DRAFT, DraftCounts, DraftLength
from hf_distil_whisper.inference.encoder_cache import encode
from hf_distil_whisper.inference.token_rules import FORBIDDEN, TokenRules


@torch.inference_mode()
def speculative_search(
    model: WhisperForConditionalGeneration,
    assistant: Assistant,
    encoder_states: Tensor,
    prefix: Tensor,
    rules: TokenRules,
    *,
    end: int,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    input_features: Tensor | None = None,
    draft_length: int | None = None,
) -> tuple[Tensor, list[DraftCounts]]:
    """Appends the main model's most probable allowed token until every window has ended, in fewer of its passes.

    The tokens are those of [`greedy_search`]: the main model judges every one of them. As with any change of batch
    size or of attention kernel, two tokens of equal score up to rounding may change places.

    Args:
        model (`WhisperForConditionalGeneration`): whose text it is, in eval mode.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`): drafts, in eval mode.
        encoder_states (`Tensor`): (batch, frames, width), the main model's.
        prefix (`Tensor`): (batch, prefix) token ids.
        rules ([`TokenRules`]): for draft and check.
        end (`int`): the token that ends a window, and fills its row afterwards.
        max_new_tokens (`int`): tokens behind the prefix at most, `end` included.
        min_new_tokens (`int`, *optional*, defaults to 0): no `end` before.
        input_features (`Tensor`, *optional*): log-mel of shape (batch, mel bins, frames), for an assistant with an
            encoder of its own.
        draft_length (`int`, *optional*): tokens of each draft; by default chosen by how many are accepted.

    Returns:
        `tuple[Tensor, list[DraftCounts]]`: (batch, prefix + new tokens), and the counts of each row.

    Raises:
        ValueError: for an assistant of another vocabulary, dtype or width, or with an encoder of its own and no
            features; for several rows with flash attention, which takes no mask; for a draft length below 1.
    """
    check_assistant(assistant, model)
    if len(prefix) > 1 and "flash_attention_2" in (_attention(model), _attention(assistant)):
        raise ValueError(
            f"A mask tells {len(prefix)} rows of different length apart, and flash_attention_2 takes none. Load the "
            "models with attn_implementation='sdpa', or take a batch size of 1."
        )
    lengths = DraftLength(_step_cost(model, assistant), draft_length)
    capacity = prefix.shape[1] + max_new_tokens
    spare = capacity + (draft_length or LONGEST_DRAFT)  # a row near its end is drafted along with the others
    main = CachedDecoder(model, encoder_states, spare)
    heard = _heard_by(assistant, input_features) if has_encoder(assistant) else encoder_states
    drafter = CachedDecoder(assistant, heard, spare)
    batch = _Batch(prefix, rules, end, capacity, spare, min_new_tokens)
    while len(batch.rows):
        drafted = batch.draft(drafter, min(lengths.choose(), batch.room - 1))
        lengths.observe(*batch.check(main, drafted))
        kept = batch.drop_finished()
        if kept is not None:
            main.keep(kept)
            drafter.keep(kept)
    return batch.result()


class _Batch:
    """What is being written: tokens, lengths and counts of all windows, and which of them the decoders still hold."""

    def __init__(self, prefix: Tensor, rules: TokenRules, end: int, capacity: int, spare: int, min_new_tokens: int):
        self.begin, self.rules, self.end = prefix.shape[1], rules, end
        self.capacity, self.may_end = capacity, prefix.shape[1] + min_new_tokens
        self.sequences = prefix.new_full((len(prefix), spare), end)
        self.sequences[:, : self.begin] = prefix
        self.lengths = prefix.new_full((len(prefix),), self.begin)
        self.finished = torch.zeros_like(self.lengths, dtype=torch.bool)
        self.counts = prefix.new_zeros(len(prefix), len(fields(DraftCounts)))
        self.rows = torch.arange(len(prefix), device=prefix.device)

    @property
    def room(self) -> int:
        """Tokens that the shortest unfinished window may still get."""
        return self.capacity - int(self.lengths[~self.finished].min())

    def draft(self, drafter: "CachedDecoder", count: int) -> int:
        """Writes up to `count` tokens behind each window by the assistant; returns how many."""
        lengths = self.lengths[self.rows]
        # The assistant has not read the last two tokens where its whole draft was accepted, else only the last one.
        unread = 2 if drafter.started else self.begin
        for drafted in range(count):
            tokens = self._choose(drafter, lengths + drafted, unread, 1)
            self._write(lengths + drafted, tokens)
            if bool((tokens == self.end).all()):
                return drafted + 1
            unread = 1
        return count

    def check(self, main: "CachedDecoder", drafted: int) -> tuple[int, int]:
        """Keeps what the main model would have written; returns how many drafts were accepted, and tested."""
        lengths, going = self.lengths[self.rows], ~self.finished[self.rows]
        drafts = self._read(lengths, drafted)
        tokens = self._choose(main, lengths, 1 if main.started else self.begin, drafted + 1)
        offered = _places_to(drafts == self.end)  # behind its end a draft says nothing
        agreed = (tokens[:, :drafted] == drafts).long().cumprod(dim=1).sum(dim=1)
        accepted = torch.minimum(agreed, offered)
        own = torch.arange(drafted + 1, device=tokens.device) <= accepted[:, None]  # one more than was accepted
        ends = (tokens == self.end) & own
        fresh = torch.minimum(torch.minimum(_places_to(ends), accepted + 1), self.capacity - lengths)
        self._write(lengths, tokens)
        found = torch.stack([fresh, offered, accepted, accepted + (accepted < offered), going.long()], dim=1)
        found = found * going[:, None]  # a finished window is carried along, and nothing of it counts
        self.counts[self.rows] += found
        self.lengths[self.rows] = lengths + found[:, 0]
        self.finished[self.rows] |= ends.any(dim=1) | (lengths + fresh >= self.capacity)
        return int(found[:, 2].sum()), int(found[:, 3].sum())

    def drop_finished(self) -> Tensor | None:
        """Which of the windows at hand go on, (kept,), as soon as half of them have ended; else None."""
        going = torch.nonzero(~self.finished[self.rows]).squeeze(1)
        if 2 * len(going) > len(self.rows):
            return None
        self.rows = self.rows[going]
        return going

    def result(self) -> tuple[Tensor, list[DraftCounts]]:
        """The sequences (batch, longest), with `end` behind each, and the counts of each window."""
        places = torch.arange(int(self.lengths.max()), device=self.lengths.device)
        sequences = self.sequences[:, : len(places)].masked_fill(places >= self.lengths[:, None], self.end)
        return sequences, [DraftCounts(*row) for row in self.counts.tolist()]

    def _choose(self, decoder: "CachedDecoder", lengths: Tensor, unread: int, count: int) -> Tensor:
        """A decoder's most probable allowed tokens at `count` places from `lengths` on, (batch, count)."""
        scores = decoder.scores(self._read(lengths - unread, unread + count - 1), lengths - unread, count)
        places = lengths[:, None] + torch.arange(count, device=lengths.device)
        early = places < self.may_end
        if bool(early.any()):
            scores[..., self.end].masked_fill_(early, FORBIDDEN)
        seen = self.sequences[self.rows, : int(places.max())]
        return self.rules.apply(seen, lengths, scores).argmax(dim=-1)

    def _read(self, begin: Tensor, count: int) -> Tensor:
        return self.sequences[self.rows[:, None], begin[:, None] + torch.arange(count, device=begin.device)]

    def _write(self, begin: Tensor, tokens: Tensor) -> None:
        places = begin[:, None] + torch.arange(tokens.shape[1], device=begin.device)
        self.sequences[self.rows[:, None], places] = tokens


def _places_to(marked: Tensor) -> Tensor:
    """For each row of (batch, places): places up to and with the first that is marked; all where none is."""
    none = marked.new_ones(len(marked), 1)
    first = torch.cat([marked, none], dim=1).long().argmax(dim=1)
    return (first + 1).clamp(max=marked.shape[1])


def has_encoder(assistant: Assistant) -> bool:
    """Whether an assistant hears by itself, so that its own encoder has to run."""
    return isinstance(assistant, WhisperForConditionalGeneration)


def _heard_by(assistant: WhisperForConditionalGeneration, input_features: Tensor | None) -> Tensor:
    if input_features is None:
        raise ValueError("An assistant with an encoder of its own needs `input_features`, but only states came.")
    return encode(assistant, input_features)


def _attention(model: Assistant) -> str:
    return str(model.config._attn_implementation)


def check_assistant(assistant: Assistant, model: WhisperForConditionalGeneration) -> None:
    """Makes sure that an assistant writes the model's tokens, and can read or hear what it hears.

    Args:
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`): what drafts.
        model (`WhisperForConditionalGeneration`): what checks.

    Raises:
        ValueError: for another vocabulary, dtype, device, number of mel bins, or width without an encoder of its own.
    """
    ours, theirs = assistant.config, model.config
    if ours.vocab_size != theirs.vocab_size:
        raise ValueError(
            f"The assistant has {ours.vocab_size} tokens, the model {theirs.vocab_size}: its drafts would mean other "
            "words. Take a student of this very model, or a smaller Whisper of the same vocabulary."
        )
    if (assistant.dtype, assistant.device) != (model.dtype, model.device):
        raise ValueError(
            f"The assistant is {assistant.dtype} on {assistant.device}, the model {model.dtype} on {model.device}: "
            "load both in one dtype and move both to one device."
        )
    if has_encoder(assistant) and ours.num_mel_bins != theirs.num_mel_bins:
        raise ValueError(
            f"The assistant hears {ours.num_mel_bins} mel bins, the model {theirs.num_mel_bins}: both get the same "
            "features. Take an assistant of the model's family."
        )
    if not has_encoder(assistant) and ours.d_model != theirs.d_model:
        raise ValueError(
            f"The assistant reads encoder states of width {ours.d_model}, the model's have {theirs.d_model}: make it "
            "with `create_assistant(student, model)`."
        )


def _step_cost(model: WhisperForConditionalGeneration, assistant: Assistant) -> float:
    """The assistant's step in units of a pass of the model, by what each reads: weights, and keys and values."""
    return _read_per_step(assistant) / _read_per_step(model)


def _read_per_step(model: Assistant) -> int:
    config = model.config
    layers = sum(weight.numel() for weight in model.get_decoder().layers.parameters())
    heard = 2 * config.decoder_layers * config.max_source_positions * config.d_model
    return layers + heard + model.proj_out.weight.numel()
