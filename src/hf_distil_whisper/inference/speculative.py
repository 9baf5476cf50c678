"""The student as the teacher's assistant: it drafts, the teacher checks, and the text is the teacher's own.

Knows how to make a decoder-only assistant of a student in memory (paper, section 8.5); `speculative` is the search.
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

from hf_distil_whisper.checkpoints import load_model
from hf_distil_whisper.inference.decoder import (
    FORBIDDEN,
    Assistant,
    CachedDecoder,
    TimestampRules,
    TokenRules,
    greedy_search,
)
from hf_distil_whisper.inference.encoder import encode

LONGEST_DRAFT = 16
"""Tokens of a draft at most: what a sure assistant gains by more is below what a single rejection costs."""

_PRIOR_ACCEPTED, _PRIOR_TESTED = 9, 10
"""Counted before the first draft: a student agrees with its teacher about nine tokens in ten."""


@dataclass(frozen=True)
class DraftCounts:
    """What came of the drafts for one recording, or for several.

    Args:
        tokens (`int`): written, `<|endoftext|>` included.
        drafted (`int`): by the assistant.
        accepted (`int`): of those drafted, by the main model.
        tested (`int`): of those drafted, up to and with the first rejected one of each draft.
        checks (`int`): passes of the main model; it would have taken `tokens` by itself.
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
        """Share of the drafted tokens that the main model accepted; NaN where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    @property
    def checks_saved(self) -> float:
        """Share of the main model's passes that were saved; NaN where nothing was written."""
        return 1 - self.checks / self.tokens if self.tokens else float("nan")


def tokens_per_check(acceptance: float, draft_length: int) -> float:
    """Tokens that a pass of the main model is expected to yield, (1 - α^(n+1)) / (1 - α).

    Args:
        acceptance (`float`): α, probability that the main model agrees with one more token, 0 to 1.
        draft_length (`int`): n, tokens drafted.

    Source: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, equation 1.
    """
    if acceptance == 1:
        return draft_length + 1.0
    return (1 - acceptance ** (draft_length + 1)) / (1 - acceptance)


def best_draft_length(acceptance: float, cost: float, longest: int = LONGEST_DRAFT) -> int:
    """The draft length with the most tokens per unit of time.

    Args:
        acceptance (`float`): α, probability that the main model agrees with one more token.
        cost (`float`): c, time of the assistant's step in units of a pass of the main model.
        longest (`int`, *optional*, defaults to 16): tokens of a draft at most.

    Returns:
        `int`: n that maximises (1 - α^(n+1)) / ((1 - α)(n·c + 1)), from 1 to `longest`.

    Source: Leviathan et al., theorem 3.8.
    """
    return max(range(1, longest + 1), key=lambda length: tokens_per_check(acceptance, length) / (length * cost + 1))


class DraftLength:
    """Chooses the length of the next draft by how the ones before fared.

    Args:
        cost (`float`): time of the assistant's step in units of a pass of the main model.
        fixed (`int`, *optional*): always this length.

    Raises:
        ValueError: if the fixed length is no positive number.
    """

    def __init__(self, cost: float, fixed: int | None = None):
        if fixed is not None and fixed < 1:
            raise ValueError(f"`draft_length` is {fixed}, expected at least 1, or None: chosen by the acceptance.")
        self.cost, self.fixed = cost, fixed
        self.accepted, self.tested = _PRIOR_ACCEPTED, _PRIOR_TESTED

    def observe(self, accepted: int, tested: int) -> None:
        """Takes note of a draft's fate, or of those of a batch.

        Args:
            accepted (`int`): tokens that were accepted.
            tested (`int`): those, and the first one rejected.
        """
        self.accepted += accepted
        self.tested += tested

    def choose(self) -> int:
        """Tokens to draft next."""
        return self.fixed or best_draft_length(self.accepted / self.tested, self.cost)


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


def window_search(
    assistant: Assistant | None = None,
    draft_length: int | None = None,
    found: Callable[[list[DraftCounts]], None] | None = None,
) -> Callable[..., Tensor]:
    """A greedy search for `generate(custom_generate=...)`, with or without an assistant.

    Args:
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): see [`create_assistant`].
        draft_length (`int`, *optional*): tokens of each draft; by default chosen by how many are accepted.
        found (`Callable[[list[DraftCounts]], None]`, *optional*): told what came of the drafts of each window.

    Returns:
        `Callable[..., Tensor]`: what transformers calls with a batch of windows; gives (batch, prefix + new tokens).
    """

    def search(
        model: WhisperForConditionalGeneration,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        generation_config: GenerationConfig,
        inputs_tensor: Tensor,
        encoder_outputs: Any,
        **kwargs: Any,
    ) -> Tensor:
        _check_settings(generation_config)
        states, length = encoder_outputs[0], input_ids.shape[1]
        limits = {
            "end": int(generation_config.eos_token_id),
            "max_new_tokens": generation_config.max_length - length,
            "min_new_tokens": _least_tokens(generation_config, length),
        }
        rules = rules_of(logits_processor, length, model.config.vocab_size, states.device)
        if assistant is None:
            return greedy_search(model, states, input_ids, rules, **limits)
        sequences, counts = speculative_search(
            model,
            assistant,
            states,
            input_ids,
            rules,
            input_features=inputs_tensor,
            draft_length=draft_length,
            **limits,
        )
        if found is not None:
            found(counts)
        return sequences

    return search


def rules_of(processors: LogitsProcessorList, begin: int, vocab_size: int, device: torch.device) -> TokenRules:
    """The rules that transformers has prepared for a Whisper, as one object.

    Args:
        processors (`LogitsProcessorList`): of suppressed tokens and timestamps.
        begin (`int`): tokens of the prefix, a prompt included.
        vocab_size (`int`): tokens of the model.
        device (`torch.device`): of the scores.

    Raises:
        ValueError: for a processor of another kind, which would be left out without a word.
    """
    always: list[int] = []
    at_begin: list[int] = []
    timestamps = None
    for processor in processors:
        if isinstance(processor, SuppressTokensLogitsProcessor):
            always += processor.suppress_tokens.tolist()
        elif isinstance(processor, SuppressTokensAtBeginLogitsProcessor):
            at_begin += processor.begin_suppress_tokens.tolist()
        elif isinstance(processor, WhisperTimeStampLogitsProcessor):
            timestamps = TimestampRules(
                processor.timestamp_begin, processor.eos_token_id, processor.max_initial_timestamp_index
            )
        elif type(processor).__name__ not in _BY_LENGTH:
            raise ValueError(
                f"This search knows Whisper's suppressed tokens and timestamps, and got {type(processor).__name__} "
                "beside them: leave out the setting of `generate` that it stands for, or the `custom_generate`."
            )
    return TokenRules(always, at_begin, begin, vocab_size, device, timestamps)


_BY_LENGTH = ("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor")
"""Processors that are read from the generation config instead."""


def _least_tokens(config: GenerationConfig, prefix: int) -> int:
    return max((config.min_length or 0) - prefix, config.min_new_tokens or 0, 0)


def _check_settings(config: GenerationConfig) -> None:
    if config.num_beams != 1 or config.do_sample or config.return_dict_in_generate:
        raise ValueError(
            f"This search is greedy and returns tokens, but num_beams={config.num_beams}, do_sample="
            f"{config.do_sample} and return_dict_in_generate={config.return_dict_in_generate} came: set num_beams=1, "
            "and leave out temperatures, log-probability thresholds and scores."
        )


def create_assistant(
    student: WhisperForConditionalGeneration | str | Path, teacher: WhisperForConditionalGeneration
) -> WhisperForCausalLM:
    """Makes the assistant with which `teacher` transcribes faster and word for word the same.

    The assistant shares the student's decoder and head in memory and reads the teacher's encoder states, so it costs
    no weights and no second pass of an encoder. It also shares their mode: both are in eval mode afterwards.

    Args:
        student (`WhisperForConditionalGeneration`, `str` or `Path`): distilled from `teacher` with the encoder frozen;
            by name on the Hub or folder it is loaded beside the teacher, in its dtype, and its own encoder let go.
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
    _check_pair(student, teacher)
    config = copy.deepcopy(student.config)
    with torch.device("meta"):  # no memory is spent on weights that are replaced right away
        assistant = WhisperForCausalLM(config)
    assistant.model.decoder = student.model.decoder
    assistant.proj_out = student.proj_out
    # A copy, since assisted generation writes into it for good. Lengths and suppressed tokens come from the teacher
    # with every draft: those of the student would be applied on top, at wrong positions, with a warning per draft.
    settings = copy.deepcopy(student.generation_config)
    settings.max_length = settings.suppress_tokens = settings.begin_suppress_tokens = None
    assistant.generation_config = settings
    return assistant.eval()


def _check_pair(student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration) -> None:
    check_assistant(student, teacher)
    ours, theirs = student.get_encoder().state_dict(), teacher.get_encoder().state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    if not same:
        raise ValueError(
            "The student's encoder is not the teacher's, so its decoder cannot read the teacher's encoder states and "
            "its drafts would be noise. Only a student distilled from this teacher with `freeze_encoder=True` and all "
            "encoder layers can share it. A whole smaller Whisper of the same vocabulary may assist too, with its own "
            "encoder: pass the model itself, `transcribe(..., assistant=model)`."
        )


def added_parameters(assistant: Assistant, model: WhisperForConditionalGeneration) -> int:
    """Weights that an assistant brings along: its decoder and head, and an encoder of its own (Table 9).

    Args:
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`): what drafts.
        model (`WhisperForConditionalGeneration`): what checks; weights that both hold in memory count nothing.
    """
    own = {id(weight) for weight in model.parameters()}
    return sum(weight.numel() for weight in assistant.parameters() if id(weight) not in own)


def assistant_arguments(assistant: Assistant) -> dict[str, Any]:
    """Arguments for `pipeline("automatic-speech-recognition", ...)` with which an assistant drafts in it.

    The pipeline's own `assistant_model` takes one recording at a time, and its default of five beams switches the
    assistant off without a word; these work in batches, and keep the search greedy.

    Args:
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`): see [`create_assistant`].

    Example:
        ```python
        >>> recognise = pipeline("automatic-speech-recognition", model=teacher, **assistant_arguments(assistant))
        ```
    """
    return {"generate_kwargs": {"num_beams": 1, "custom_generate": window_search(assistant)}}
