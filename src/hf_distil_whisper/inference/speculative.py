"""Speculative decoding in batches: a student drafts tokens, its teacher verifies them and keeps its own text.

[`create_assistant`] makes the assistant (paper, section 8.5), [`assistant_arguments`] plugs it into the pipeline.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
    WhisperTimeStampLogitsProcessor,
)

from hf_distil_whisper.checkpoints import START_TOKEN, load_model
from hf_distil_whisper.inference.decoder import (
    FORBIDDEN,
    Assistant,
    KVCacheDecoder,
    TimestampRules,
    WhisperLogitsRules,
    greedy_decode,
)
from hf_distil_whisper.inference.encoder import encode

MAX_DRAFT_LENGTH = 16
"""What a good assistant gains by longer drafts is less than what a single rejection costs."""

PRIOR_ACCEPTED, PRIOR_TESTED = 9, 10
"""Counted before the first draft: a student agrees with its teacher about nine tokens in ten."""


def create_assistant(
    student: WhisperForConditionalGeneration | str | Path, teacher: WhisperForConditionalGeneration
) -> WhisperForCausalLM:
    """Makes the assistant with which `teacher` transcribes faster, with exactly the same text.

    The assistant shares the student's decoder and head in memory and reads the teacher's encoder hidden states: it
    adds no weights and no second encoder pass. It shares their mode too: both are in eval mode afterwards.

    Args:
        student (`WhisperForConditionalGeneration`, `str` or `Path`): distilled from `teacher` with the encoder frozen;
            a Hub name or folder is loaded in the teacher's dtype and onto its device, without keeping its encoder.
        teacher (`WhisperForConditionalGeneration`): the model to speed up.

    Returns:
        `WhisperForCausalLM`: for `transcribe(..., assistant=...)`, for the pipeline by [`assistant_arguments`], or for
        `teacher.generate(..., assistant_model=...)` of transformers, which takes one recording at a time.

    Raises:
        FileNotFoundError: if there is no student of this name.
        ValueError: if the student's encoder is not the teacher's, or the vocabularies, dtypes or devices differ.

    Example:
        ```python
        >>> assistant = create_assistant("me/distil-small", teacher)
        >>> transcribe(teacher, processor, "speech.wav", assistant=assistant)[0].text
        ```
    """
    if isinstance(student, str | Path):
        student = load_model(student, dtype=teacher.dtype).to(teacher.device)
    check_assistant(student, teacher)
    weights, expected = student.get_encoder().state_dict(), teacher.get_encoder().state_dict()
    if weights.keys() != expected.keys() or any(not torch.equal(weights[name], expected[name]) for name in weights):
        raise ValueError(
            "The student's encoder is not the teacher's, so its decoder cannot read the teacher's encoder hidden "
            "states and its drafts would be noise. Only a student distilled from this teacher with "
            "`freeze_encoder=True` and all encoder layers can share it. A whole smaller Whisper of the same "
            "vocabulary may assist too, with its own encoder: pass the model, `transcribe(..., assistant=model)`."
        )
    with torch.device("meta"):  # no memory for weights that are replaced right away
        assistant = WhisperForCausalLM(copy.deepcopy(student.config))
    assistant.model.decoder = student.model.decoder
    assistant.proj_out = student.proj_out
    # A copy, since transformers' assisted generation modifies it, and passes the teacher's lengths and suppressed
    # tokens with every draft. Those of the student would apply too, at wrong positions, with a warning per draft.
    config = copy.deepcopy(student.generation_config)
    config.max_length = config.suppress_tokens = config.begin_suppress_tokens = None
    assistant.generation_config = config
    return assistant.eval()


def assistant_arguments(assistant: Assistant) -> dict[str, Any]:
    """Arguments for `pipeline("automatic-speech-recognition", ...)` that make an assistant draft in it.

    Its `assistant_model` takes one recording at a time, and its default of five beams silently switches
    the assistant off. With these arguments it works in batches, and the search is greedy.

    Args:
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`): see [`create_assistant`].

    Example:
        ```python
        >>> recognise = pipeline("automatic-speech-recognition", model=teacher, **assistant_arguments(assistant))
        ```
    """
    return {"generate_kwargs": {"num_beams": 1, "custom_generate": decode_in_generate(assistant)}}


@dataclass(frozen=True)
class DraftCounts:
    """How many tokens were drafted and accepted, for one recording or several.

    Args:
        tokens (`int`): generated, `<|endoftext|>` included.
        drafted (`int`): tokens drafted by the assistant.
        accepted (`int`): drafted tokens that the main model accepted.
        tested (`int`): drafted tokens up to and with the first rejected one of each draft.
        checks (`int`): forward passes of the main model; alone it would have needed `tokens`.
    """

    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    tested: int = 0
    checks: int = 0

    def __add__(self, other: "DraftCounts") -> "DraftCounts":
        return DraftCounts(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    @property
    def acceptance_rate(self) -> float:
        """Fraction of the drafted tokens that the main model accepted; NaN if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    @property
    def checks_saved(self) -> float:
        """Fraction of the main model's forward passes that were saved; NaN if nothing was generated."""
        return 1 - self.checks / self.tokens if self.tokens else float("nan")


@torch.inference_mode()
def speculative_decode(
    model: WhisperForConditionalGeneration,
    assistant: Assistant,
    encoder_hidden_states: Tensor,
    prefix: Tensor,
    rules: WhisperLogitsRules,
    *,
    input_features: Tensor | None = None,
    draft_length: int | None = None,
    **limits: int,
) -> tuple[Tensor, list[DraftCounts]]:
    """The tokens of [`greedy_decode`] in fewer forward passes of the main model, and the counts of each row.

    Arguments as in [`greedy_decode`], `limits` among them; `input_features` (batch, mel bins, frames) are for an
    assistant with its own encoder. The main model verifies each drafted token, so the text is its own. As with any
    change of batch size or attention kernel, two tokens of equal logits up to rounding may be swapped.
    """
    # transformers' own assisted generation takes one row, since rows accept different numbers of tokens, and has
    # broken with its releases (transformers#29869, #31183). Here each row has a position of its own in either cache.
    check_assistant(assistant, model)
    attention = {str(one.config._attn_implementation) for one in (model, assistant)}
    if len(prefix) > 1 and "flash_attention_2" in attention:
        raise ValueError(
            f"The {len(prefix)} rows of a batch are at different positions, which takes an attention mask, and "
            "flash_attention_2 supports none. Load the models with attn_implementation='sdpa', or use a batch size "
            "of 1."
        )
    draft_lengths = DraftLength(_relative_cost(model, assistant), draft_length)
    assistant_states = encoder_hidden_states
    if isinstance(assistant, WhisperForConditionalGeneration):  # a whole Whisper, with its own encoder
        if input_features is None:
            raise ValueError("An assistant with its own encoder needs `input_features`, got only hidden states.")
        assistant_states = encode(assistant, input_features)
    batch = _DraftBatch(prefix, rules, draft_length or MAX_DRAFT_LENGTH, **limits)
    main = KVCacheDecoder(model, encoder_hidden_states, batch.sequences.shape[1])
    drafter = KVCacheDecoder(assistant, assistant_states, batch.sequences.shape[1])
    while len(batch.rows):
        # One token less than the shortest row may still get: the main model adds one to every draft.
        num_drafted = batch.draft(drafter, min(draft_lengths.choose(), batch.remaining_tokens - 1))
        draft_lengths.update(*batch.verify(main, num_drafted))
        indices = batch.drop_finished()
        if indices is not None:
            main.select_rows(indices)
            drafter.select_rows(indices)
    return batch.result()


class _DraftBatch:
    """Sequences, lengths and counts of all rows, and which rows are still in the decoders' batches."""

    def __init__(
        self,
        prefix: Tensor,
        rules: WhisperLogitsRules,
        max_draft_length: int,
        *,
        eos_token_id: int,
        max_new_tokens: int,
        min_new_tokens: int = 0,
    ):
        self.prefix_length, self.rules, self.eos_token_id = prefix.shape[1], rules, eos_token_id
        self.max_length = self.prefix_length + max_new_tokens
        self.min_length = self.prefix_length + min_new_tokens
        # A row that is almost full is drafted along with the others, beyond `max_length`.
        self.sequences = prefix.new_full((len(prefix), self.max_length + max_draft_length), eos_token_id)
        self.sequences[:, : self.prefix_length] = prefix
        self.lengths = prefix.new_full((len(prefix),), self.prefix_length)
        self.finished = torch.zeros_like(self.lengths, dtype=torch.bool)
        self.counts = prefix.new_zeros(len(prefix), len(fields(DraftCounts)))
        self.rows = torch.arange(len(prefix), device=prefix.device)

    @property
    def remaining_tokens(self) -> int:
        """Tokens that the shortest unfinished row may still get."""
        return self.max_length - int(self.lengths[~self.finished].min())

    def draft(self, drafter: KVCacheDecoder, count: int) -> int:
        """Appends up to `count` tokens of the assistant to each row; returns how many."""
        lengths = self.lengths[self.rows]  # (rows,)
        # The assistant has not read the last token, nor the one before it if its whole draft was accepted.
        num_unread = 2 if drafter.is_prefilled else self.prefix_length
        for drafted in range(count):
            tokens = self._next_tokens(drafter, lengths + drafted, num_unread, 1)  # (rows, 1)
            self._write(lengths + drafted, tokens)
            if bool((tokens == self.eos_token_id).all()):
                return drafted + 1
            num_unread = 1
        return count

    def verify(self, main: KVCacheDecoder, num_drafted: int) -> tuple[int, int]:
        """Appends the main model's tokens; returns how many drafted ones were accepted, and tested."""
        lengths, unfinished = self.lengths[self.rows], ~self.finished[self.rows]
        drafts = self._read(lengths, num_drafted)  # (rows, drafted)
        # One forward pass gives the main model's tokens at all drafted positions and at the next: (rows, drafted + 1).
        tokens = self._next_tokens(main, lengths, 1 if main.is_prefilled else self.prefix_length, num_drafted + 1)
        offered = _length_through_first(drafts == self.eos_token_id)  # behind its end, a draft has no meaning
        # The product is 1 up to the first token that differs, and 0 from there on.
        agreed = (tokens[:, :num_drafted] == drafts).long().cumprod(dim=1).sum(dim=1)  # (rows,)
        accepted = torch.minimum(agreed, offered)
        # One token of the main model follows the accepted ones: it replaces the first rejected token.
        valid = torch.arange(num_drafted + 1, device=tokens.device) <= accepted[:, None]
        ends = (tokens == self.eos_token_id) & valid
        appended = torch.minimum(torch.minimum(_length_through_first(ends), accepted + 1), self.max_length - lengths)
        self._write(lengths, tokens)
        tested = accepted + (accepted < offered)
        # In the order of DraftCounts' fields; finished rows are computed along and count nothing.
        counts = torch.stack([appended, offered, accepted, tested, unfinished.long()], dim=1) * unfinished[:, None]
        self.counts[self.rows] += counts
        self.lengths[self.rows] = lengths + counts[:, 0]
        self.finished[self.rows] |= ends.any(dim=1) | (lengths + appended >= self.max_length)
        return int(counts[:, 2].sum()), int(counts[:, 3].sum())

    def drop_finished(self) -> Tensor | None:
        """Once half of the rows have ended: the indices of the others within the batch. Else None."""
        unfinished = torch.nonzero(~self.finished[self.rows]).squeeze(1)
        if 2 * len(unfinished) > len(self.rows):
            return None
        self.rows = self.rows[unfinished]
        return unfinished

    def result(self) -> tuple[Tensor, list[DraftCounts]]:
        """The sequences (batch, longest), padded with `eos_token_id`, and the counts of each row."""
        positions = torch.arange(int(self.lengths.max()), device=self.lengths.device)
        sequences = self.sequences[:, : len(positions)]
        sequences = sequences.masked_fill(positions >= self.lengths[:, None], self.eos_token_id)
        return sequences, [DraftCounts(*row) for row in self.counts.tolist()]

    def _next_tokens(self, decoder: KVCacheDecoder, lengths: Tensor, num_unread: int, count: int) -> Tensor:
        """A decoder's most probable allowed tokens at `count` positions from `lengths` on, (rows, count)."""
        input_ids = self._read(lengths - num_unread, num_unread + count - 1)
        logits = decoder.forward(input_ids, lengths - num_unread, count)  # (rows, count, vocab)
        positions = lengths[:, None] + torch.arange(count, device=lengths.device)
        too_early = positions < self.min_length
        if bool(too_early.any()):
            logits[..., self.eos_token_id].masked_fill_(too_early, FORBIDDEN)
        generated = self.sequences[self.rows, : int(positions.max())]
        return self.rules.apply(generated, lengths, logits).argmax(dim=-1)

    def _read(self, start: Tensor, count: int) -> Tensor:
        return self.sequences[self.rows[:, None], start[:, None] + torch.arange(count, device=start.device)]

    def _write(self, start: Tensor, tokens: Tensor) -> None:
        positions = start[:, None] + torch.arange(tokens.shape[1], device=start.device)
        self.sequences[self.rows[:, None], positions] = tokens


def _length_through_first(marked: Tensor) -> Tensor:
    """For each row of (batch, length): the length up to and with the first marked entry; all if there is none."""
    sentinel = marked.new_ones(len(marked), 1)
    first = torch.cat([marked, sentinel], dim=1).long().argmax(dim=1)
    return (first + 1).clamp(max=marked.shape[1])


class DraftLength:
    """Chooses the length of the next draft by the acceptance rate so far, or always `fixed`."""

    def __init__(self, relative_cost: float, fixed: int | None = None):
        if fixed is not None and fixed < 1:
            raise ValueError(f"`draft_length` is {fixed}, expected at least 1, or None: chosen by the acceptance.")
        self.relative_cost, self.fixed = relative_cost, fixed
        self.accepted, self.tested = PRIOR_ACCEPTED, PRIOR_TESTED

    def update(self, accepted: int, tested: int) -> None:
        """Adds the counts of a batch of drafts: tokens accepted, and those plus the first rejected one of each row."""
        self.accepted += accepted
        self.tested += tested

    def choose(self) -> int:
        """Tokens to draft next."""
        return self.fixed or best_draft_length(self.accepted / self.tested, self.relative_cost)


def best_draft_length(acceptance: float, relative_cost: float, max_length: int = MAX_DRAFT_LENGTH) -> int:
    """The draft length with the most tokens per unit of time: the n that maximises (1 - α^(n+1)) / ((1 - α)(n·c + 1)).

    α is the probability that the main model agrees with one more token, c the time of the assistant's step in units of
    the main model's (Leviathan et al., Fast Inference from Transformers via Speculative Decoding, theorem 3.8).
    """
    return max(range(1, max_length + 1), key=lambda n: tokens_per_check(acceptance, n) / (n * relative_cost + 1))


def tokens_per_check(acceptance: float, draft_length: int) -> float:
    """Expected tokens per forward pass of the main model, (1 - α^(n+1)) / (1 - α) (Leviathan et al., equation 1)."""
    if acceptance == 1:
        return draft_length + 1.0
    return (1 - acceptance ** (draft_length + 1)) / (1 - acceptance)


def _relative_cost(model: WhisperForConditionalGeneration, assistant: Assistant) -> float:
    """Time of the assistant's step over the model's, by the memory that each reads: steps are bound by bandwidth."""

    def values_read(one: Assistant) -> int:
        layers = sum(weight.numel() for weight in one.get_decoder().layers.parameters())
        cross_kv = 2 * one.config.decoder_layers * one.config.max_source_positions * one.config.d_model
        return layers + cross_kv + one.proj_out.weight.numel()

    return values_read(assistant) / values_read(model)


def check_assistant(assistant: Assistant, model: WhisperForConditionalGeneration) -> None:
    """Raises a `ValueError` for another vocabulary, dtype, device, or other input than the model's encoder has."""
    config, expected = assistant.config, model.config
    if config.vocab_size != expected.vocab_size:
        raise ValueError(
            f"The assistant has {config.vocab_size} tokens, the model {expected.vocab_size}: its drafts would mean "
            "other words. Take a student of this model, or a smaller Whisper of the same vocabulary."
        )
    if config.decoder_start_token_id != expected.decoder_start_token_id:
        raise ValueError(
            f"{START_TOKEN} is token {config.decoder_start_token_id} of the assistant, but "
            f"{expected.decoder_start_token_id} of the model: their vocabularies differ. Take a student of this "
            "model, or a smaller Whisper of the same vocabulary."
        )
    if (assistant.dtype, assistant.device) != (model.dtype, model.device):
        raise ValueError(
            f"The assistant is {assistant.dtype} on {assistant.device}, the model {model.dtype} on {model.device}: "
            "load both in one dtype and move both to one device."
        )
    has_encoder = isinstance(assistant, WhisperForConditionalGeneration)
    for name, unit in (("num_mel_bins", "mel bins"), ("max_source_positions", "encoder positions")):
        if has_encoder and getattr(config, name) != getattr(expected, name):
            raise ValueError(
                f"The assistant takes {getattr(config, name)} {unit}, the model {getattr(expected, name)}, but both "
                "get the same features. Take an assistant of the model's family."
            )
    if not has_encoder and config.d_model != expected.d_model:
        raise ValueError(
            f"The assistant reads encoder hidden states of width {config.d_model}, the model's have "
            f"{expected.d_model}: make it with `create_assistant(student, model)`."
        )


def added_parameters(assistant: Assistant, model: WhisperForConditionalGeneration) -> int:
    """Number of weights that an assistant adds to those of the model (Table 9); shared ones count nothing."""
    shared = {id(weight) for weight in model.parameters()}
    return sum(weight.numel() for weight in assistant.parameters() if id(weight) not in shared)


def decode_in_generate(
    assistant: Assistant | None = None,
    draft_length: int | None = None,
    on_drafts: Callable[[list[DraftCounts]], None] | None = None,
) -> Callable[..., Tensor]:
    """Greedy or speculative decoding for `model.generate(custom_generate=...)`; see [`speculative_decode`].

    `on_drafts` is called with the counts of each batch of windows.
    """

    def custom_generate(
        model: WhisperForConditionalGeneration,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        generation_config: GenerationConfig,
        inputs_tensor: Tensor,
        encoder_outputs: Any,
        **kwargs: Any,
    ) -> Tensor:
        # Whisper's `generate` calls this once per batch of windows, with its processors and lengths prepared.
        config = generation_config
        if config.num_beams != 1 or config.do_sample or config.return_dict_in_generate:
            raise ValueError(
                f"This search is greedy and returns tokens, got num_beams={config.num_beams}, "
                f"do_sample={config.do_sample} and return_dict_in_generate={config.return_dict_in_generate}: set "
                "num_beams=1, and leave out temperatures, log-probability thresholds and scores."
            )
        encoder_hidden_states, prefix_length = encoder_outputs[0], input_ids.shape[1]
        limits = {
            "eos_token_id": int(config.eos_token_id),
            "max_new_tokens": config.max_length - prefix_length,
            "min_new_tokens": max((config.min_length or 0) - prefix_length, config.min_new_tokens or 0, 0),
        }
        vocab_size, device = model.config.vocab_size, encoder_hidden_states.device
        rules = rules_from_processors(logits_processor, prefix_length, vocab_size, device)
        if assistant is None:
            return greedy_decode(model, encoder_hidden_states, input_ids, rules, **limits)
        sequences, counts = speculative_decode(
            model, assistant, encoder_hidden_states, input_ids, rules, input_features=inputs_tensor,
            draft_length=draft_length, **limits,
        )  # fmt: skip
        if on_drafts is not None:
            on_drafts(counts)
        return sequences

    return custom_generate


def rules_from_processors(
    processors: LogitsProcessorList, prefix_length: int, vocab_size: int, device: torch.device
) -> WhisperLogitsRules:
    """The logits processors that transformers has prepared for a Whisper; others are refused, not dropped silently."""
    suppress_tokens: list[int] = []
    begin_suppress_tokens: list[int] = []
    timestamps = None
    for processor in processors:
        if isinstance(processor, SuppressTokensLogitsProcessor):
            suppress_tokens += processor.suppress_tokens.tolist()
        elif isinstance(processor, SuppressTokensAtBeginLogitsProcessor):
            begin_suppress_tokens += processor.begin_suppress_tokens.tolist()
        elif isinstance(processor, WhisperTimeStampLogitsProcessor):
            timestamps = TimestampRules(
                processor.timestamp_begin, processor.eos_token_id, processor.max_initial_timestamp_index
            )
        # Minimum lengths are read from the generation config instead.
        elif type(processor).__name__ not in ("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor"):
            raise ValueError(
                f"This search supports Whisper's suppressed tokens and timestamps, and got {type(processor).__name__} "
                "too: leave out the setting of `generate` that it stands for, or the `custom_generate`."
            )
    return WhisperLogitsRules(suppress_tokens, begin_suppress_tokens, prefix_length, vocab_size, device, timestamps)
