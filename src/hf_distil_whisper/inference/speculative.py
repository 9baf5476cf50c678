"""Speculative decoding of a batch: the assistant drafts some tokens, the main model checks them all in one pass.

Every row accepts what it can by itself and goes on from there, with a position of its own in the caches. The paper
(appendix D.3) and transformers discard a draft in all rows where it fails in one, and lose time from a batch of 16 on.
Knows nothing of Whisper's prefix; `token_rules` says what may be written.
"""

from dataclasses import fields

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
)

from hf_distil_whisper.inference.drafts import LONGEST_DRAFT, DraftCounts, DraftLength
from hf_distil_whisper.inference.token_rules import FORBIDDEN, TokenRules

Assistant = WhisperForCausalLM | WhisperForConditionalGeneration
"""A decoder that reads the main model's encoder states, or a whole Whisper that hears by itself."""


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
    assistant_states: Tensor | None = None,
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
        assistant_states (`Tensor`, *optional*): (batch, frames, width), of an assistant with an encoder of its own.
        draft_length (`int`, *optional*): tokens of each draft; by default chosen by how many are accepted.

    Returns:
        `tuple[Tensor, list[DraftCounts]]`: (batch, prefix + new tokens), and the counts of each row.

    Raises:
        ValueError: for an assistant of another vocabulary, dtype or width, with flash attention, which takes no mask,
            or for a draft length below 1.
    """
    check_assistant(assistant, model)
    lengths = DraftLength(_step_cost(model, assistant), draft_length)
    capacity = prefix.shape[1] + max_new_tokens
    spare = capacity + (draft_length or LONGEST_DRAFT)  # a row near its end is drafted along with the others
    main = _CachedDecoder(model, encoder_states, spare)
    drafter = _CachedDecoder(assistant, encoder_states if assistant_states is None else assistant_states, spare)
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

    def draft(self, drafter: "_CachedDecoder", count: int) -> int:
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

    def check(self, main: "_CachedDecoder", drafted: int) -> tuple[int, int]:
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

    def _choose(self, decoder: "_CachedDecoder", lengths: Tensor, unread: int, count: int) -> Tensor:
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


class _CachedDecoder:
    """A decoder and its head, with what they remember of each window."""

    def __init__(self, model: Assistant, encoder_states: Tensor, capacity: int):
        if model.config._attn_implementation == "flash_attention_2":
            raise ValueError(
                "Speculative decoding masks what a window has not accepted, and flash_attention_2 takes no mask. Load "
                "both models with attn_implementation='sdpa'."
            )
        self.decoder, self.head = model.get_decoder(), model.proj_out
        self.states = encoder_states
        self.places = _Places()
        own = DynamicCache()
        own.layers = [_RowLayer(self.places, capacity) for _ in self.decoder.layers]
        self.cache = EncoderDecoderCache(own, DynamicCache())
        self.started = False

    def scores(self, tokens: Tensor, begin: Tensor, count: int) -> Tensor:
        """Scores (batch, count, vocab) in float32 behind the last `count` of tokens (batch, length).

        Args:
            tokens (`Tensor`): what has not been read yet, or is to be read again.
            begin (`Tensor`): (batch,), the place of each row's first token.
            count (`int`): up to the length.
        """
        positions = self.places.take(begin, tokens.shape[1])
        visible = torch.arange(self.places.longest, device=tokens.device) <= positions[..., None]
        mask = torch.zeros(visible.shape, dtype=self.states.dtype, device=tokens.device)
        mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)
        hidden = self.decoder(
            input_ids=tokens,
            attention_mask=mask.unsqueeze(1),
            position_ids=positions.clamp(max=self.decoder.max_target_positions - 1),
            encoder_hidden_states=self.states,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.started = True
        return self.head(hidden[:, -count:]).float()

    def keep(self, rows: Tensor) -> None:
        """Forgets all windows but `rows`."""
        self.cache.batch_select_indices(rows)
        self.states = self.states[rows]


class _Places:
    """Where the tokens of a pass stand in each row; all layers of a decoder look here."""

    def take(self, begin: Tensor, count: int) -> Tensor:
        """Positions (batch, count) from `begin` on; those of the coming pass."""
        self.positions = begin[:, None] + torch.arange(count, device=begin.device)
        self.longest = int(self.positions.max()) + 1
        return self.positions

    def flat(self, capacity: int) -> Tensor:
        """The positions in rows of `capacity` that lie one behind the other."""
        rows = torch.arange(len(self.positions), device=self.positions.device)
        return (rows[:, None] * capacity + self.positions).flatten()


class _RowLayer(DynamicLayer):
    """Keys and values of one layer, (batch, capacity, heads, width), written at each row's own place."""

    def __init__(self, places: _Places, capacity: int):
        super().__init__()
        self.places, self.capacity = places, capacity

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes (batch, heads, length, width); returns (batch, heads, longest, width), rows' garbage included."""
        batch, heads, _, width = key_states.shape
        if not self.is_initialized:
            self.keys = key_states.new_zeros(batch, self.capacity, heads, width)
            self.values = torch.zeros_like(self.keys)
            self.is_initialized = True
        index = self.places.flat(self.capacity)
        for kept, fresh in ((self.keys, key_states), (self.values, value_states)):
            kept.view(-1, heads, width).index_copy_(0, index, fresh.transpose(1, 2).reshape(-1, heads, width))
        longest = self.places.longest
        return self.keys[:, :longest].transpose(1, 2), self.values[:, :longest].transpose(1, 2)


def has_encoder(assistant: Assistant) -> bool:
    """Whether an assistant hears by itself, so that its own encoder has to run."""
    return isinstance(assistant, WhisperForConditionalGeneration)


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
    """The assistant's step in units of a pass of the model: what each reads, weights and a window's keys and values."""
    return _read_per_step(assistant) / _read_per_step(model)


def _read_per_step(model: Assistant) -> int:
    config = model.config
    layers = sum(weight.numel() for weight in model.get_decoder().layers.parameters())
    heard = 2 * config.decoder_layers * config.max_source_positions * config.d_model
    return layers + heard + model.proj_out.weight.numel()
