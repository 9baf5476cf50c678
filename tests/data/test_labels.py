"""Decoder inputs and labels, token by token."""

from functools import lru_cache, partial
from pathlib import Path

import pytest
from transformers import GPT2Tokenizer, WhisperTokenizer

from hf_distil_whisper.data.labels import (
    IGNORE_INDEX,
    LabelError,
    language_token,
    make_labels,
    plain_text,
    strip_special_tokens,
    strip_timestamps,
)
from toy_models import toy_processor

WHISPER_FILES = Path(__file__).parents[2].parent / "shared" / "whisper-files"
TIMED = "<|0.00|> Hello there.<|1.20|><|1.40|> Again?<|2.00|>"
PROMPT = "Well, he said"


@lru_cache
def tokenizer(name: str) -> WhisperTokenizer:
    """`toy` is English-only, as is whisper-tiny.en; whisper-tiny is multilingual."""
    if name == "toy":
        return toy_processor().tokenizer
    if not (WHISPER_FILES / name).is_dir():
        pytest.skip(f"../shared/whisper-files/{name} with the official vocabulary is missing")
    return WhisperTokenizer.from_pretrained(WHISPER_FILES / name)


def tokens(name: str, ids: list[int]) -> str:
    """The ids written out, special tokens and all."""
    assert all(token >= 0 for token in ids)
    special, words = tokenizer(name).convert_ids_to_tokens, tokenizer(name).decode
    return "".join(special(token) if token >= first_special(name) else words([token]) for token in ids)


def first_special(name: str) -> int:
    return tokenizer(name).convert_tokens_to_ids("<|endoftext|>")


def read_and_learnt(name: str, transcript: str, **options: object) -> tuple[str, str]:
    """What the decoder reads, and of what it shall say the part with a loss."""
    labels = make_labels(tokenizer(name), transcript, **{"timestamps": False, **options})
    assert len(labels.decoder_input_ids) == len(labels.labels)
    learnt = [token for token in labels.labels if token != IGNORE_INDEX]
    return tokens(name, labels.decoder_input_ids), tokens(name, learnt)


all_tokenizers = pytest.mark.parametrize("name", ["toy", "whisper-tiny.en", "whisper-tiny"])


@pytest.mark.parametrize("name", ["toy", "whisper-tiny.en"])
def test_english_only_sequences_have_neither_language_nor_task(name: str):
    """An English-only model has never read them: each sample would start with noise."""
    read, learnt = read_and_learnt(name, " Hello.")
    assert read == "<|startoftranscript|><|notimestamps|> Hello."
    assert learnt == "<|notimestamps|> Hello.<|endoftext|>"


def test_multilingual_sequences_name_language_and_task():
    """Without them the model detects the language while it trains, and `generate` then forces tokens it never saw."""
    for language in ("de", "German", "DE", "de-AT"):
        read, learnt = read_and_learnt("whisper-tiny", " Hallo.", language=language, task="translate")
        assert read == "<|startoftranscript|><|de|><|translate|><|notimestamps|> Hallo."
        assert learnt == "<|de|><|translate|><|notimestamps|> Hallo.<|endoftext|>"


def test_language_and_task_of_a_labelled_transcript_stay_unless_others_are_given():
    """The reference scripts' transcripts hold them; dropped, a mixed data set would lose its languages."""
    labelled = "<|startoftranscript|><|fr|><|transcribe|><|notimestamps|> Oui.<|endoftext|>"
    read, _ = read_and_learnt("whisper-tiny", labelled)
    assert read == "<|startoftranscript|><|fr|><|transcribe|><|notimestamps|> Oui."
    read, _ = read_and_learnt("whisper-tiny", labelled, language="en")
    assert read == "<|startoftranscript|><|en|><|transcribe|><|notimestamps|> Oui."


@all_tokenizers
def test_timestamps_are_included_or_dropped_as_drawn(name: str):
    """Behind `<|notimestamps|>`, or missing without it, they teach the model to contradict the prefix."""
    read, learnt = read_and_learnt(name, TIMED, timestamps=True)
    assert read == "<|startoftranscript|>" + TIMED
    assert learnt == TIMED + "<|endoftext|>"
    read, learnt = read_and_learnt(name, TIMED, timestamps=False)
    assert read == "<|startoftranscript|><|notimestamps|> Hello there. Again?"
    assert learnt == "<|notimestamps|> Hello there. Again?<|endoftext|>"


@all_tokenizers
def test_plain_transcripts_never_claim_timestamps(name: str):
    """Without `<|notimestamps|>` the model would learn to leave timestamps out when it is asked for them."""
    assert read_and_learnt(name, "Hello.", timestamps=True) == read_and_learnt(name, "Hello.", timestamps=False)
    assert "<|notimestamps|>" in read_and_learnt(name, "<|en|> 1.20", timestamps=True)[0]
    assert read_and_learnt(name, "", timestamps=True)[0] == "<|startoftranscript|><|notimestamps|>"


def test_timestamps_are_rounded_to_the_step_of_their_tokens_and_end_at_30_seconds():
    """A time between two tokens would be spelt in letters, and one beyond them be an id outside the vocabulary."""
    _, learnt = read_and_learnt("toy", "<|0.013|> Hi.<|30.00|>", timestamps=True)
    assert learnt == "<|0.02|> Hi.<|30.00|><|endoftext|>"
    with pytest.raises(LabelError, match=r"<\|30.02\|> lies beyond the 30 s"):
        make_labels(tokenizer("toy"), "<|0.00|> Hi.<|30.02|>", timestamps=True)


@pytest.mark.parametrize(
    ("transcript", "text"),
    [
        (TIMED, " Hello there. Again?"),
        ("<|0.00|> Hello. <|1.20|><|1.40|> World.<|2.00|>", " Hello. World."),
        ("<|0.00|>Hello.<|1.20|><|1.40|>World.<|2.00|>", "Hello. World."),
        ("<|0.00|> Hello<|1.20|> <|1.40|>, world<|2.00|>", " Hello , world"),
        ("<|0.00|> Hello<|1.20|><|1.40|>, world<|2.00|>", " Hello, world"),
        ("<|0.00|>今天天气<|1.20|><|1.40|>很好。<|2.00|>", "今天天气很好。"),
        ("<|0.00|>สวัสดี<|1.20|><|1.40|>ครับ<|2.00|>", "สวัสดีครับ"),
        ("No timestamps  at all.", "No timestamps  at all."),
        ("<|0.00|><|2.00|>", ""),
    ],
)
def test_text_is_joined_without_double_or_missing_spaces(transcript: str, text: str):
    """'Hello.World' and 'Hello.  World' are other tokens than the teacher ever writes."""
    assert strip_timestamps(transcript) == text


def test_special_tokens_and_prompts_are_stripped_and_timestamps_are_not():
    """Special tokens inside the text would end it early, or start a second sequence in the middle of a label."""
    whole = "<|startofprev|> Before<|startoftranscript|><|en|><|transcribe|>" + TIMED + "<|endoftext|><|endoftext|>"
    assert strip_special_tokens(whole) == TIMED
    assert strip_special_tokens(" a <|nospeech|>b") == " a b"
    assert plain_text(whole) == "Hello there. Again?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello", " Hello"),
        ("  Hello ", " Hello"),
        ("你好", "你好"),
        ("「はい」", "「はい」"),
        ("สวัสดี", "สวัสดี"),
        ("नमस्ते", " नमस्ते"),
    ],
)
def test_a_text_starts_with_a_space_where_the_script_has_spaces(text: str, expected: str):
    """Whisper says ' Hello': a label without the space contradicts the teacher in the first token of each sample."""
    ids = make_labels(tokenizer("toy"), text, timestamps=False).labels[1:-1]
    assert tokenizer("toy").decode(ids) == expected


@all_tokenizers
def test_prompts_are_read_and_not_learnt(name: str):
    """A prompt that is not masked teaches the student to repeat the text before."""
    labels = make_labels(tokenizer(name), " Yes.", timestamps=False, previous=PROMPT)
    read = tokens(name, labels.decoder_input_ids)
    assert read == "<|startofprev|> Well, he said<|startoftranscript|><|notimestamps|> Yes."
    start = labels.decoder_input_ids.index(tokenizer(name).convert_tokens_to_ids("<|startoftranscript|>"))
    assert labels.labels[:start] == [IGNORE_INDEX] * start
    assert tokens(name, labels.labels[start:]) == "<|notimestamps|> Yes.<|endoftext|>"


@pytest.mark.parametrize("name", ["toy", "whisper-tiny"])
def test_a_prompt_of_token_ids_is_cleaned(name: str):
    """The reference prepends `<|startofprev|>` twice and falls back to sequences with two starts."""
    whole = "<|startofprev|><|startoftranscript|><|en|><|transcribe|>" + TIMED + "<|endoftext|>"
    ids = tokenizer(name)(whole, add_special_tokens=False).input_ids
    for timestamps, prompt in ((True, TIMED), (False, " Hello there. Again?")):
        read, learnt = read_and_learnt(name, TIMED, timestamps=timestamps, previous=ids)
        assert read.count("<|startofprev|>") == read.count("<|startoftranscript|>") == 1
        assert read.startswith("<|startofprev|>" + prompt + "<|startoftranscript|>")
        assert learnt.startswith("<|0.00|>" if timestamps else "<|notimestamps|>")
    read, _ = read_and_learnt(name, TIMED, previous="<|startoftranscript|>" + TIMED)
    assert read.startswith("<|startofprev|> Hello there. Again?<|startoftranscript|>")


@pytest.mark.parametrize("previous", ["", "  ", "<|0.00|><|1.00|>", []])
def test_a_prompt_of_nothing_is_no_prompt(previous: object):
    """The reference then masks nothing and trains the model to say `<|startoftranscript|>`."""
    assert read_and_learnt("toy", "Hi.", previous=previous) == read_and_learnt("toy", "Hi.")
    ids = [first_special("toy"), first_special("toy") + 1]
    assert read_and_learnt("toy", "Hi.", previous=ids) == read_and_learnt("toy", "Hi.")


def test_a_long_prompt_keeps_its_tail():
    """The reference's slice from 0 keeps all of it where it is longest, and the sample is dropped as too long."""
    previous = list(range(250)) * 2
    for max_length in (448, 40, 8):
        labels = make_labels(tokenizer("toy"), "Hi.", timestamps=False, previous=previous, max_length=max_length)
        start = labels.decoder_input_ids.index(first_special("toy") + 1)
        assert len(labels.decoder_input_ids) <= max_length
        assert start <= max_length // 2
        assert labels.decoder_input_ids[1:start] == previous[-(start - 1) :]
    assert len(make_labels(tokenizer("toy"), "", timestamps=False, previous=previous).decoder_input_ids) == 224 + 2


def test_a_prompt_gives_way_to_a_long_label():
    """A sample whose label fits must not be dropped because its optional prompt does not."""
    transcript = "x" * 400
    alone = make_labels(tokenizer("toy"), transcript, timestamps=False)
    prompted = make_labels(tokenizer("toy"), transcript, timestamps=False, previous=[1] * 300)
    assert len(alone.labels) < 448
    assert len(prompted.labels) == 448
    assert [token for token in prompted.labels if token != IGNORE_INDEX] == alone.labels


def test_a_label_as_long_as_the_decoder_fits_and_a_longer_one_costs_the_row():
    """Position 449 does not exist: on a GPU that is an assertion of the device without a row to it."""
    make = partial(make_labels, tokenizer("toy"), "x" * 100, timestamps=False)
    length = len(make().labels)
    assert make(max_length=length, previous="a").labels[0] != IGNORE_INDEX
    with pytest.raises(LabelError, match=rf"{length} tokens, more than the {length - 1} positions .*xxx"):
        make(max_length=length - 1)


def test_no_end_is_taught_after_a_transcript_that_was_cut_off():
    """With an end token behind it, a generation that hit its limit teaches to stop in mid-sentence."""
    labels = make_labels(tokenizer("toy"), " and then the", timestamps=False, truncated=True)
    assert first_special("toy") not in labels.labels
    assert tokens("toy", labels.labels) == "<|notimestamps|> and then the"
    assert labels.decoder_input_ids[1:] == labels.labels[:-1]
    assert tokens("toy", labels.decoder_input_ids[:1]) == "<|startoftranscript|>"


def test_unknown_languages_tasks_and_tokenizers_are_refused():
    """The id of an unknown token is that of `<|endoftext|>`: the label would end before it starts."""
    with pytest.raises(ValueError, match="`language`: Whisper knows no 'klingon'"):
        make_labels(tokenizer("toy"), "a", timestamps=False, language="klingon")
    with pytest.raises(ValueError, match="`task`: expected one of translate, transcribe, got 'sing'"):
        make_labels(tokenizer("toy"), "a", timestamps=False, task="sing")
    other = GPT2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
    with pytest.raises(ValueError, match="expected the tokenizer of a Whisper, got GPT2Tokenizer"):
        make_labels(other, "a", timestamps=False)
    assert language_token("Chinese") == "<|zh|>"
