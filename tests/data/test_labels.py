"""Decoder inputs and labels, token by token."""

from functools import lru_cache, partial
from itertools import groupby

import pytest
from transformers import GPT2Tokenizer, WhisperTokenizer

from hf_distil_whisper.data.labels import (
    IGNORE_INDEX,
    LabelError,
    Labels,
    make_labels,
    plain_text,
    strip_special_tokens,
    strip_timestamps,
)
from official_models import WHISPER_FILES
from toy_models import toy_processor

TIMED = "<|0.00|> Hello there.<|1.20|><|1.40|> Again?<|2.00|>"
FRENCH = "<|startoftranscript|><|fr|><|transcribe|><|notimestamps|> Oui.<|endoftext|>"
START, UNTIMED, END = "<|startoftranscript|>", "<|startoftranscript|><|notimestamps|>", "<|endoftext|>"
ENGLISH, ALL = ("toy", "whisper-tiny.en"), ("toy", "whisper-tiny.en", "whisper-tiny")


@lru_cache
def tokenizer(name: str) -> WhisperTokenizer:
    """`toy` is English-only, as is whisper-tiny.en; whisper-tiny is multilingual."""
    if name == "toy":
        return toy_processor().tokenizer
    if not (WHISPER_FILES / name).is_dir():
        pytest.skip(f"../shared/whisper-files/{name} with the official vocabulary is missing")
    return WhisperTokenizer.from_pretrained(WHISPER_FILES / name)


def labelled(transcript: str, name: str = "toy", timestamps: bool = False, **options: object) -> Labels:
    return make_labels(tokenizer(name), transcript, timestamps=timestamps, **options)


def sequence(labels: Labels, name: str = "toy") -> str:
    """What is read and the last label, written out; all behind `<|startoftranscript|>` is learnt, and nothing else."""
    ids, words = labels.decoder_input_ids, tokenizer(name)
    start, end = words.convert_tokens_to_ids([START, END])
    assert labels.labels == [IGNORE_INDEX] * ids.index(start) + ids[ids.index(start) + 1 :] + labels.labels[-1:]
    parts = [(is_special, list(part)) for is_special, part in groupby([*ids, labels.labels[-1]], lambda x: x >= end)]
    return "".join(
        "".join(words.convert_ids_to_tokens(part)) if is_special else words.decode(part) for is_special, part in parts
    )


MULTILINGUAL = f"{START}<|de|><|translate|><|notimestamps|> Hallo.{END}"
SEQUENCES = [
    # An English-only model has never read language and task: each sample would start with noise. Without them, a
    # multilingual one detects the language in training, and `generate` then forces tokens it never saw.
    (ENGLISH, " Hello.", {}, f"{UNTIMED} Hello.{END}"),
    (["whisper-tiny"], " Hallo.", {"language": "de-AT", "task": "translate"}, MULTILINGUAL),
    # Dropped from transcripts of the reference scripts, a mixed data set would lose its languages.
    (["whisper-tiny"], FRENCH, {}, FRENCH),
    (["whisper-tiny"], FRENCH, {"language": "English"}, FRENCH.replace("fr", "en")),
    # Timestamps behind <|notimestamps|>, or missing without it, teach the model to contradict the prefix.
    (ALL, TIMED, {"timestamps": True}, f"{START}{TIMED}{END}"),
    (ALL, TIMED, {}, f"{UNTIMED} Hello there. Again?{END}"),
    (ALL, "At 1.20", {"timestamps": True}, f"{UNTIMED} At 1.20{END}"),
    (["toy"], "", {"timestamps": True}, f"{UNTIMED}{END}"),
    # A time between two tokens would be spelt in letters.
    (["toy"], "<|0.013|> Hi.<|30.00|>", {"timestamps": True}, f"{START}<|0.02|> Hi.<|30.00|>{END}"),
    # With an end behind it, a generation that hit its limit teaches to stop in mid-sentence.
    (["toy"], " and then the", {"truncated": True}, f"{UNTIMED} and then the"),
    (ALL, "Yes.", {"previous": "Well, he said"}, f"<|startofprev|> Well, he said{UNTIMED} Yes.{END}"),
    (["toy"], "Yes.", {"previous": START + TIMED}, f"<|startofprev|> Hello there. Again?{UNTIMED} Yes.{END}"),
    # Of a prompt of nothing the reference scripts mask nothing, and teach to say <|startoftranscript|>.
    *((["toy"], "Yes.", {"previous": text}, f"{UNTIMED} Yes.{END}") for text in ("  ", "<|0.00|><|1.00|>", [])),
    # Whisper says " Hello": without the space, the first token of each sample contradicts the teacher.
    (["toy"], "  Hello ", {}, f"{UNTIMED} Hello{END}"),
    (["toy"], "नमस्ते", {}, f"{UNTIMED} नमस्ते{END}"),
    *((["toy"], text, {}, UNTIMED + text + END) for text in ("你好", "「はい」", "สวัสดี")),
]


@pytest.mark.parametrize(
    ("name", "transcript", "options", "expected"), [(name, *case) for names, *case in SEQUENCES for name in names]
)
def test_sequences_hold_prompt_prefix_text_and_end_and_prompts_are_not_learnt(
    name: str, transcript: str, options: dict, expected: str
):
    """A prompt that is not masked teaches the student to repeat the text before."""
    assert sequence(labelled(transcript, name, **options), name) == expected


@pytest.mark.parametrize("name", ["toy", "whisper-tiny"])
def test_a_prompt_of_token_ids_is_cleaned(name: str):
    """The reference prepends `<|startofprev|>` twice and falls back to sequences with two starts."""
    whole = f"<|startofprev|>{START}<|en|><|transcribe|>{TIMED}{END}"
    ids = tokenizer(name)(whole, add_special_tokens=False).input_ids
    timed, plain = (sequence(labelled(TIMED, name, timestamps, previous=ids), name) for timestamps in (True, False))
    assert timed == f"<|startofprev|>{TIMED}{START}{TIMED}{END}"
    assert plain == f"<|startofprev|> Hello there. Again?{UNTIMED} Hello there. Again?{END}"
    assert sequence(labelled("Hi.", name, previous=ids[:2]), name) == f"{UNTIMED} Hi.{END}"


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
    whole = f"<|startofprev|> Before{START}<|en|><|transcribe|>{TIMED}{END}{END}"
    assert strip_special_tokens(whole) == TIMED
    assert strip_special_tokens(" a <|nospeech|>b") == " a b"
    assert plain_text(whole) == "Hello there. Again?"


@pytest.mark.parametrize(("max_length", "expected"), [(448, 224), (40, 20), (8, 2)])
def test_a_long_prompt_keeps_its_tail(max_length: int, expected: int):
    """The reference's slice from 0 keeps all of it where it is longest, and the sample is dropped as too long."""
    previous = list(range(250)) * 2
    ids = labelled("Hi.", previous=previous, max_length=max_length).decoder_input_ids
    start = ids.index(tokenizer("toy").convert_tokens_to_ids(START))
    assert (start, len(ids) <= max_length) == (expected, True)
    assert ids[1:start] == previous[1 - start :]


def test_a_prompt_gives_way_to_a_long_label():
    """A sample whose label fits must not be dropped because its optional prompt does not."""
    alone, prompted = labelled("x" * 400), labelled("x" * 400, previous=[1] * 300)
    assert len(alone.labels) < 448
    assert len(prompted.labels) == 448
    assert [token for token in prompted.labels if token != IGNORE_INDEX] == alone.labels


def test_a_label_as_long_as_the_decoder_fits_and_a_longer_one_costs_the_row():
    """Position 449 does not exist: on a GPU that is an assertion of the device without a row to it."""
    make = partial(labelled, "x" * 100)
    length = len(make().labels)
    assert make(max_length=length, previous="a").labels[0] != IGNORE_INDEX
    with pytest.raises(LabelError, match=rf"{length} tokens, more than the {length - 1} positions .*xxx"):
        make(max_length=length - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transcript": "<|0.00|> Hi.<|30.02|>", "timestamps": True}, r"<\|30.02\|> lies beyond the 30 s"),
        ({"language": "klingon"}, "`language`: Whisper knows no 'klingon'"),
        ({"task": "sing"}, "`task`: expected one of translate, transcribe, got 'sing'"),
        (
            {"tokenizer": GPT2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])},
            "expected the tokenizer of a Whisper, got GPT2Tokenizer",
        ),
    ],
)
def test_what_has_no_token_is_refused(options: dict, message: str):
    """The id of an unknown token is that of `<|endoftext|>`: the label would end before it starts."""
    with pytest.raises(ValueError, match=message):
        make_labels(**{"tokenizer": tokenizer("toy"), "transcript": "a", "timestamps": False, **options})
