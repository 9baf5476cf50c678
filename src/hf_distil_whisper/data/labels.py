"""From transcripts to decoder inputs and labels: timestamps, previous text as prompt, masks.

A sequence is `<|startofprev|> previous <|startoftranscript|> language task text <|endoftext|>` (paper, section 3;
Radford et al., figure 1).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

from hf_distil_whisper.metrics import language_code

IGNORE_INDEX = -100
"""The label of positions without a loss, as in `torch.nn.CrossEntropyLoss`."""

TIME_STEP = 0.02
"""Seconds from one timestamp token to the next."""

_TIMESTAMP = re.compile(r"<\|(\d+\.\d+)\|>")
_OPEN_END = re.compile(r"<\|\d+\.\d+\|>\s*<\|\d+\.\d+\|>\s*$")
_SPECIAL = re.compile(r"<\|(?!\d+\.\d+\|>)[^<>|]*\|>")
# Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese: Whisper writes no space before a segment of these.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_CLOSING = frozenset(".,;:!?%)]}\u2026\u2019\u201d\u00bb-")


class LabelError(ValueError):
    """A transcript that cannot become a label, such as one longer than the decoder. It costs the row."""


class Labels(NamedTuple):
    """`labels[i]` is the target of `decoder_input_ids[i]`, or -100 in the prompt: both have the same length."""

    decoder_input_ids: list[int]
    labels: list[int]


def strip_special_tokens(transcript: str) -> str:
    """Removes start, language, task and end tokens and a prompt; the text and its timestamp tokens stay.

    Example:
        ```python
        >>> strip_special_tokens("<|startoftranscript|><|en|><|transcribe|><|0.00|> Hello.<|1.20|><|endoftext|>")
        "<|0.00|> Hello.<|1.20|>"
        ```
    """
    text = transcript.rpartition("<|startoftranscript|>")[2].partition("<|endoftext|>")[0]
    return _SPECIAL.sub("", text)


def strip_timestamps(transcript: str) -> str:
    """The text without timestamp tokens, its segments joined by one space where the script has spaces.

    Example:
        ```python
        >>> strip_timestamps("<|0.00|> Hello. <|1.20|><|1.40|> World.<|2.00|>")
        " Hello. World."
        ```
    """
    joined = ""
    for text in _TIMESTAMP.split(transcript)[::2]:  # texts and times alternate, a text first
        if not joined or not text.strip():
            joined += text
        elif joined[-1].isspace() or text[0].isspace() or _wants_space(joined[-1], text[0]):
            joined = joined.rstrip() + " " + text.lstrip()
        else:
            joined += text
    return joined


def plain_text(transcript: str) -> str:
    """The spoken text alone, without special tokens, timestamps and surrounding spaces."""
    return strip_timestamps(strip_special_tokens(transcript)).strip()


def ends_open(transcript: str) -> bool:
    """Whether a transcript ends with a segment that only begins: Whisper saw more speech than it wrote down.

    Example:
        ```python
        >>> ends_open("<|0.00|> Have you heard him?<|23.96|><|23.96|>")
        True
        ```
    """
    return _OPEN_END.search(strip_special_tokens(transcript)) is not None


def make_labels(
    tokenizer: WhisperTokenizer,
    transcript: str,
    *,
    timestamps: bool,
    previous: str | Sequence[int] | None = None,
    language: str | None = None,
    task: str = "transcribe",
    max_length: int = 448,
    truncated: bool = False,
) -> Labels:
    """Builds the decoder input of a sample and its labels.

    Args:
        tokenizer (`WhisperTokenizer`): English-only or multilingual.
        transcript (`str`): text with or without timestamp and special tokens. Whisper starts a text with a space (not
            in Chinese, Japanese, Thai, ...): it is added where it is missing.
        timestamps (`bool`): whether to keep the timestamps, rounded to 0.02 s. Otherwise, and where the transcript has
            none, `<|notimestamps|>` follows the prefix: no sample announces timestamps without having them.
        previous (`str` or `Sequence[int]`, *optional*): the previous text, or its token ids. Special tokens in it are
            dropped, timestamps too unless `timestamps` is set. Only its end is used, at most `max_length // 2 - 1`
            tokens and no more than fit beside the label.
        language (`str`, *optional*): a code or name such as `"de"`, for multilingual models. Without it the language
            and task tokens of the transcript stay, if it has any, and English-only models get none.
        task (`str`, *optional*, defaults to `"transcribe"`): `"transcribe"` or `"translate"`; used with a language.
        max_length (`int`, *optional*, defaults to 448): positions of the decoder.
        truncated (`bool`, *optional*, defaults to `False`): whether the transcript stops short of its end, as a
            generation does at its limit. The label then has no `<|endoftext|>`, nor has one with an open end
            ([`ends_open`]).

    Returns:
        `Labels`: `decoder_input_ids` and `labels`, of the same length; -100 on everything before
        `<|startoftranscript|>`.

    Raises:
        LabelError: if the label is longer than `max_length` or has a timestamp beyond 30 s. It costs the row.
        ValueError: for an unknown language or task, or a tokenizer that is not Whisper's.

    Example:
        ```python
        >>> make_labels(tokenizer, " Hello.", timestamps=False, previous=" Well,").labels
        [-100, -100, -100, 50362, 18435, 13, 50256]
        ```
    """
    no_timestamps = _token_id(tokenizer, "<|notimestamps|>")
    body = strip_special_tokens(transcript)
    timestamps = timestamps and _TIMESTAMP.search(body) is not None
    # <|startoftranscript|>, and <|de|><|transcribe|> for a multilingual model
    sequence = [_token_id(tokenizer, token) for token in _prefix(transcript, language, task)]
    if timestamps:
        # <|0.00|> Hello.<|1.20|>, without <|notimestamps|>
        sequence += _timed_ids(tokenizer, body, no_timestamps + 1)
    else:
        sequence += [no_timestamps, *_text_ids(tokenizer, strip_timestamps(body))]
    if not (truncated or ends_open(body)):
        sequence.append(_token_id(tokenizer, "<|endoftext|>"))
    length = len(sequence) - 1  # the last token is a label only, and the first one an input only
    if length > max_length:
        raise LabelError(
            f"the label has {length} tokens, more than the {max_length} positions of the decoder (text: "
            f"{body[:40]!r}...). Cut the recording into shorter ones."
        )
    # As much of the prompt's end as `generate` takes, half of the positions, and less beside a long label: an optional
    # prompt must not make a row too long.
    prompt_length = min(max_length // 2 - 1, max_length - length - 1)
    prompt = [] if previous is None else prompt_tokens(tokenizer, previous, prompt_length, timestamps=timestamps)
    # decoder_input_ids  <|startofprev|> previous <|startoftranscript|> <|notimestamps|> text
    # labels             -100            -100     <|notimestamps|>      text             <|endoftext|>
    # The token after each input; the one after the prompt, <|startoftranscript|>, is not learnt either. Given labels
    # alone, transformers would make the inputs from them: with the masked prompt as padding, which no model reads.
    return Labels((prompt + sequence)[:-1], [IGNORE_INDEX] * len(prompt) + sequence[1:])


def prompt_tokens(
    tokenizer: WhisperTokenizer, previous: str | Sequence[int], max_length: int, *, timestamps: bool = False
) -> list[int]:
    """`<|startofprev|>` and at most the last `max_length` tokens of a previous text; nothing if it is empty."""
    if isinstance(previous, str):
        tokens = _text_ids(tokenizer, plain_text(previous))
    else:
        end_of_text, no_timestamps = _token_id(tokenizer, "<|endoftext|>"), _token_id(tokenizer, "<|notimestamps|>")
        # The vocabulary ends with <|endoftext|>, the other special tokens, <|notimestamps|>, and the timestamps.
        tokens = [token for token in previous if token < end_of_text or (timestamps and token > no_timestamps)]
    if not tokens or max_length < 1:
        return []
    return [_token_id(tokenizer, "<|startofprev|>"), *tokens[-max_length:]]


def language_token(language: str) -> str:
    """`"de"`, `"German"`, `"de-AT"` → `"<|de|>"`, see [`language_code`].

    Raises:
        ValueError: for a language that Whisper does not know.
    """
    code = language_code(language)
    if code not in LANGUAGES:
        raise ValueError(
            f"`language`: Whisper knows no {language!r}; expected a code or name such as 'en' or 'german'."
        )
    return f"<|{code}|>"


def _prefix(transcript: str, language: str | None, task: str) -> list[str]:
    prefix = ["<|startoftranscript|>"]
    if task not in TASK_IDS:
        raise ValueError(f"`task`: expected one of {', '.join(TASK_IDS)}, got {task!r}.")
    if language is not None:
        return [*prefix, language_token(language), f"<|{task}|>"]
    return prefix + [f"<|{name}|>" for name in _names_in(transcript)]


def needs_language(tokenizer: WhisperTokenizer) -> bool:
    """Whether labels start with a language: those of OpenAI's multilingual vocabularies do."""
    # The English-only vocabularies hold the language tokens too, but have one text token less before <|endoftext|>.
    return tokenizer.convert_tokens_to_ids("<|endoftext|>") == 50257


def language_in(transcript: str) -> str | None:
    """The code of the language token that a transcript starts with; None if there is none."""
    return next((name for name in _names_in(transcript) if name in LANGUAGES), None)


def _names_in(transcript: str) -> list[str]:
    """Language and task in labels of the reference scripts: <|startoftranscript|><|de|><|transcribe|>..."""
    tokens = _SPECIAL.findall(transcript.rpartition("<|startoftranscript|>")[2])
    return [token[2:-2] for token in tokens[:2] if token[2:-2] in LANGUAGES or token[2:-2] in TASK_IDS]


def _timed_ids(tokenizer: WhisperTokenizer, body: str, first_timestamp: int) -> list[int]:
    ids = []
    for number, part in enumerate(_TIMESTAMP.split(body)):
        if number % 2 == 0:  # texts and times alternate, a text first
            ids += _text_ids(tokenizer, part)
            continue
        step = round(float(part) / TIME_STEP)
        if step > 1500:
            raise LabelError(f"timestamp <|{part}|> lies beyond the 30 s of a window.")
        ids.append(first_timestamp + step)
    return ids


def _text_ids(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    stripped = text.strip()
    if not stripped:
        return []
    if text[0].isspace() or _wants_space("", stripped[0]):
        stripped = " " + stripped
    return tokenizer(stripped, add_special_tokens=False).input_ids


def _wants_space(left: str, right: str) -> bool:
    """Whether Whisper writes a space between these two characters; `left` may be empty."""
    if _WITHOUT_SPACES.match(right) or (left and _WITHOUT_SPACES.match(left)):
        return False
    return right not in _CLOSING


def _token_id(tokenizer: WhisperTokenizer, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or (token_id == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ValueError(
            f"the tokenizer has no {token}: expected the tokenizer of a Whisper, got {type(tokenizer).__name__}."
        )
    return token_id
