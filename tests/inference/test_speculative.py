"""Speculative decoding: the main model's text, whatever is drafted, and no assistant that cannot help."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
    pipeline,
)

from hf_distil_whisper.inference.decoder import greedy_decode
from hf_distil_whisper.inference.encoder import encode, window_features
from hf_distil_whisper.inference.generation import logits_rules
from hf_distil_whisper.inference.output import Transcription
from hf_distil_whisper.inference.speculative import (
    DraftCounts,
    DraftLength,
    added_parameters,
    assistant_arguments,
    best_draft_length,
    create_assistant,
    decode_in_generate,
    rules_from_processors,
    speculative_decode,
    tokens_per_check,
)
from hf_distil_whisper.inference.transcribe import transcribe, transcribe_chunked
from talking_models import count_encoder_windows, talking_whisper, toy_windows
from toy_models import toy_audio, toy_processor, toy_whisper


@pytest.fixture
def teacher() -> WhisperForConditionalGeneration:
    return talking_whisper(4)


def student_of(teacher: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """The first two of the teacher's decoder layers, with the teacher's encoder."""
    student = copy.deepcopy(teacher)
    student.config.decoder_layers = 2
    student.model.decoder.layers = student.model.decoder.layers[:2]
    return student


@pytest.fixture
def assistant(teacher) -> WhisperForCausalLM:
    return create_assistant(student_of(teacher), teacher)


def texts(transcriptions: list[Transcription]) -> list[tuple]:
    return [(one.text, one.segments) for one in transcriptions]


class Decoding:
    """Greedy and speculative decoding of the same windows, by a teacher and an assistant with noise on its weights.

    The noise takes the drafts from all right (0) to all wrong.
    """

    def __init__(self, teacher: WhisperForConditionalGeneration, count: int, noise: float = 0.1):
        recordings = [toy_audio(1 + 4 * index, seed=index) for index in range(count)]
        self.teacher, student = teacher, copy.deepcopy(teacher)
        self.states = encode(teacher, window_features(teacher, toy_processor(), recordings))
        self.prefix = torch.tensor([[teacher.config.decoder_start_token_id]] * count)
        with torch.no_grad():
            for layer in student.model.decoder.layers:
                for weight in layer.parameters():
                    weight += noise * weight.std() * torch.randn_like(weight) if weight.numel() > 1 else 0
        self.assistant = create_assistant(student, teacher)

    def run(
        self, return_timestamps: bool = False, draft_length: int | None = None, **limits: int
    ) -> tuple[Tensor, Tensor, list[DraftCounts]]:
        """The tokens of greedy decoding, those of speculative decoding, and the counts."""
        limits = {"eos_token_id": self.teacher.generation_config.eos_token_id, "max_new_tokens": 50, **limits}
        rules = logits_rules(self.teacher, 1, return_timestamps)
        inputs = (self.states, self.prefix, rules)
        expected = greedy_decode(self.teacher, *inputs, **limits)
        drafted = speculative_decode(self.teacher, self.assistant, *inputs, draft_length=draft_length, **limits)
        return expected, *drafted


@pytest.mark.parametrize("return_timestamps", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("draft_length", [1, 4, None])
def test_tokens_are_those_of_the_main_model(
    teacher, return_timestamps: bool, noise: float, draft_length: int | None
) -> None:
    """Rows accept different numbers of tokens in every round: a position off by one gives another text."""
    expected, drafted, counts = Decoding(teacher, 6, noise).run(return_timestamps, draft_length)
    assert torch.equal(drafted, expected)
    generated = (expected[:, 1:] != teacher.generation_config.eos_token_id).sum(dim=1)
    assert [one.tokens for one in counts] == (generated + (generated < 50)).tolist()
    assert all(one.accepted <= one.tested <= one.drafted and one.checks <= one.tokens for one in counts)
    if noise == 0.0:
        assert all(one.accepted == one.drafted for one in counts)
    assert len({one.checks for one in counts}) > 1


@pytest.mark.parametrize(
    ("end_gain", "limits"),
    [(0.6, {"max_new_tokens": 17, "min_new_tokens": 17}), (-10.0, {"max_new_tokens": 448 - 1})],
    ids=["fixed number of tokens", "whole context"],
)
def test_as_many_tokens_are_generated_as_asked_for(end_gain: float, limits: dict) -> None:
    """Latency is compared at one number; at the end of the context, drafts reach beyond the position embeddings."""
    expected, drafted, counts = Decoding(talking_whisper(4, end_gain=end_gain), 2).run(**limits)
    assert torch.equal(drafted, expected)
    assert drafted.shape == (2, 1 + limits["max_new_tokens"])
    assert [one.tokens for one in counts] == [limits["max_new_tokens"]] * 2


def test_flash_attention_and_impossible_lengths_are_refused(teacher) -> None:
    """flash-attn supports no mask: rows would attend to rejected tokens, and get other text."""
    decoding = Decoding(teacher, 2)
    for length in (0, -1):
        with pytest.raises(ValueError, match=f"`draft_length` is {length}"):
            decoding.run(draft_length=length)
    decoding.assistant.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa"):
        decoding.run()


@pytest.mark.parametrize("seed", [0, 4])
@pytest.mark.parametrize("return_timestamps", [False, True])
def test_assisted_text_is_the_teachers_greedy_text(seed: int, return_timestamps: bool) -> None:
    """Rows differ in length, in acceptance and in when they end: a rejected draft must not touch another row."""
    teacher = talking_whisper(seed)
    assistant = create_assistant(student_of(teacher), teacher)
    audio = [toy_audio(seconds, seed=index) for index, seconds in enumerate([0.1, 29, 3, 30, 1, 12, 7])]
    options = {"return_timestamps": return_timestamps, "max_new_tokens": 60}
    alone = texts(transcribe(teacher, toy_processor(), audio, **options))
    assert texts(transcribe(teacher, toy_processor(), audio[2:5], assistant=assistant, **options)) == alone[2:5]
    assert texts(transcribe(teacher, toy_processor(), audio, assistant=assistant, batch_size=4, **options)) == alone
    assert len({text for text, _ in alone}) > 1
    assert transcribe(teacher, toy_processor(), [], assistant=assistant, batch_size=4) == []


def test_tokens_suppressed_at_the_beginning_stay_out(teacher, assistant) -> None:
    """Transformers drops `begin_suppress_tokens` in assisted mode, and the text is no longer the teacher's."""
    audio, tokenizer = toy_audio(2, seed=1), toy_processor().tokenizer
    first = transcribe(teacher, toy_processor(), audio)[0].text
    suppressed = [tokenizer(text, add_special_tokens=False).input_ids[0] for text in (first, " " + first)]
    teacher.generation_config.begin_suppress_tokens = suppressed
    alone = transcribe(teacher, toy_processor(), audio)[0]
    assert transcribe(teacher, toy_processor(), audio, assistant=assistant)[0].text == alone.text != first


def test_long_recordings_are_assisted_to_the_same_text(teacher, assistant, caplog: pytest.LogCaptureFixture) -> None:
    """In chunks, which come in batches, and in transformers' loop, which would warn of the lengths per draft."""
    teacher.generation_config.begin_suppress_tokens = [teacher.generation_config.eos_token_id]
    audio = toy_audio(40, seed=2)
    alone = transcribe(teacher, toy_processor(), audio)
    with caplog.at_level("WARNING"):
        assert texts(transcribe(teacher, toy_processor(), audio, assistant=assistant)) == texts(alone)
    assert "Both `max_new_tokens`" not in caplog.text
    assert alone[0].text
    options = {"batch_size": 3, "return_timestamps": True}
    chunked = transcribe_chunked(teacher, toy_processor(), toy_audio(70, seed=2), **options)
    assisted = transcribe_chunked(teacher, toy_processor(), toy_audio(70, seed=2), assistant=assistant, **options)
    assert texts([assisted]) == texts([chunked])
    assert assisted.statistics.drafts.tokens >= chunked.statistics.num_tokens


def test_assistant_shares_the_students_decoder_and_runs_no_encoder(teacher) -> None:
    """A copy would cost the memory, and a second encoder the time, that the assistant is to save (Table 9).

    Assisted generation modifies the assistant's generation config: it must be a copy.
    """
    student = student_of(teacher)
    before = student.generation_config.to_dict(), student.config.to_dict()
    assistant = create_assistant(student, teacher)
    shared = {id(parameter) for parameter in student.parameters()}
    assert all(id(parameter) in shared for parameter in assistant.parameters())
    assert not any(parameter.is_meta for parameter in assistant.parameters())
    by_teacher, by_student = count_encoder_windows(teacher), count_encoder_windows(student)
    transcribe(teacher, toy_processor(), toy_audio(1), assistant=assistant, max_new_tokens=5)
    assert (by_teacher(), by_student()) == (1, 0)
    transcribe(teacher, toy_processor(), toy_audio(32), assistant=assistant)
    assert (student.generation_config.to_dict(), student.config.to_dict()) == before
    assert student.config.is_encoder_decoder
    decoder = sum(weight.numel() for weight in student.model.decoder.parameters())
    assert added_parameters(assistant, teacher) == decoder
    assert added_parameters(create_assistant(teacher, teacher), teacher) == 0


def test_assistants_that_cannot_draft_are_refused(teacher, assistant) -> None:
    """Another encoder or vocabulary drafts noise: the right text, but slower. Another dtype fails deep inside.

    Transformers ignores the assistant with beams: no error, no warning, and no speed.
    """
    trained = student_of(teacher)
    with torch.no_grad():
        trained.model.encoder.layers[0].fc1.weight[0, 0] += 1e-3
    for student, message in (
        (trained, "encoder is not the teacher's"),
        (toy_whisper(encoder_layers=1), "encoder is not the teacher's"),
        (toy_whisper(vocab_size=teacher.config.vocab_size + 1), "tokens"),
        (student_of(teacher).to(torch.bfloat16), "one dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            create_assistant(student, teacher)
    with pytest.raises(ValueError, match="mel bins"):
        transcribe(teacher, toy_processor(), toy_audio(1), assistant=talking_whisper(num_mel_bins=128))
    for seconds in (1, 40):
        with pytest.raises(ValueError, match="greedy decoding"):
            transcribe(teacher, toy_processor(), toy_audio(seconds), assistant=assistant, num_beams=2)


def test_whole_whisper_assists_with_its_own_encoder(teacher) -> None:
    """Table 9: a small Whisper drafts too; the main model's hidden states are not those of its encoder."""
    other, audio = talking_whisper(1, encoder_layers=1), [toy_audio(1 + index, seed=index) for index in range(3)]
    alone = transcribe(teacher, toy_processor(), audio, max_new_tokens=40)
    encoded = count_encoder_windows(other)
    assisted = transcribe(teacher, toy_processor(), audio, assistant=other, batch_size=3, max_new_tokens=40)
    assert texts(assisted) == texts(alone)
    assert encoded() == 3


def test_draft_counts_come_with_the_transcription(teacher) -> None:
    """A text does not show whether the assistant helped."""
    assistant = create_assistant(teacher, teacher)
    short = transcribe(teacher, toy_processor(), toy_audio(2, seed=1), assistant=assistant, draft_length=3)[0]
    drafts = short.statistics.drafts
    assert drafts.acceptance_rate == 1.0
    assert drafts.tokens == short.statistics.num_tokens + (not short.statistics.truncated)
    assert drafts.checks == -(-drafts.tokens // 4)
    long = transcribe(teacher, toy_processor(), toy_audio(40), assistant=assistant)[0]
    assert long.statistics.drafts.acceptance_rate == 1.0
    assert transcribe(teacher, toy_processor(), toy_audio(1))[0].statistics.drafts is None


def test_pipeline_is_assisted_to_the_same_texts(teacher, assistant) -> None:
    """The pipeline's five beams would switch the assistant off, and its own kind takes no batches."""
    processor = toy_processor()
    parts = {"model": teacher, "tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    plain = pipeline("automatic-speech-recognition", **parts)
    assisted = pipeline("automatic-speech-recognition", **parts, **assistant_arguments(assistant))
    audio = [toy_audio(seconds, seed=index) for index, seconds in enumerate([2, 5, 1])]
    passes = []
    assistant.model.decoder.layers[0].fc1.register_forward_pre_hook(lambda *_: passes.append(1))
    options = {"max_new_tokens": 40}
    expected = [one["text"] for one in plain(audio, generate_kwargs={"num_beams": 1, **options})]
    assert not passes
    options |= assistant_arguments(assistant)["generate_kwargs"]
    assert [one["text"] for one in assisted(audio, batch_size=3, generate_kwargs=options)] == expected
    assert passes


def test_long_form_tokens_are_those_of_generate(teacher) -> None:
    """Transformers' loop with this library's search inside: the same windows, the same tokens."""
    features = (
        toy_processor()
        .feature_extractor(
            toy_audio(70, seed=3), sampling_rate=16_000, truncation=False, padding="longest", return_tensors="pt"
        )
        .input_features
    )
    options = {"return_timestamps": True, "return_segments": True, "num_beams": 1}

    def segments(**more: object) -> list[tuple]:
        output = teacher.generate(features, **options, **more)["segments"][0]
        return [(one["tokens"].tolist(), float(one["start"]), float(one["end"])) for one in output]

    assert segments(custom_generate=decode_in_generate()) == segments()


def test_processors_of_transformers_are_applied_or_refused(teacher) -> None:
    """By hand: 3 everywhere, 5 at the first position behind two. Another setting would be dropped silently."""
    processors = LogitsProcessorList(
        [SuppressTokensLogitsProcessor([3]), SuppressTokensAtBeginLogitsProcessor([5], begin_index=2)]
    )
    rules = rules_from_processors(processors, 2, 8, torch.device("cpu"))
    for length in (2, 3):
        ids, scores = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, 8)
        assert torch.equal(rules(ids, scores), processors(ids, scores))
    processors.append(NoRepeatNGramLogitsProcessor(3))
    with pytest.raises(ValueError, match="NoRepeatNGramLogitsProcessor"):
        rules_from_processors(processors, 2, 8, torch.device("cpu"))
    with pytest.raises(ValueError, match="num_beams=2"):
        teacher.generate(toy_windows(teacher, 1), num_beams=2, custom_generate=decode_in_generate())


def test_best_length_grows_with_acceptance_and_falls_with_cost() -> None:
    """Two drafted tokens of even chance give 1 + 0.5 + 0.25 a check; all that are right, as many and one more.

    At α = 0.5 and c = 0.25: 1.5 / 1.25 = 1.2 for one token, 1.75 / 1.5 = 1.17 for two.
    """
    assert [tokens_per_check(0.5, 2), tokens_per_check(1.0, 5), tokens_per_check(0.0, 5)] == [1.75, 6, 1]
    assert best_draft_length(0.5, 0.25) == 1
    lengths = [best_draft_length(share / 100, 0.1) for share in range(0, 101, 5)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (1, 16)
    assert best_draft_length(0.9, 0.05) > best_draft_length(0.9, 0.3) > best_draft_length(0.9, 0.9)


def test_length_follows_the_drafts_before() -> None:
    """A length that stays what it was at the start wastes either drafts or passes of the main model."""
    length = DraftLength(relative_cost=0.1)
    initial = length.choose()
    for _ in range(30):
        length.update(0, 1)
    assert length.choose() < initial
    for _ in range(500):
        length.update(8, 8)
    assert length.choose() > initial
    assert DraftLength(relative_cost=0.1, fixed=5).choose() == 5


def test_counts_add_up() -> None:
    """Rates of a set come from its counts, not from the average of the rates of its recordings."""
    both = DraftCounts(10, 8, 6, 7, 4) + DraftCounts(5, 2, 0, 1, 5)
    assert both == DraftCounts(15, 10, 6, 8, 9)
    assert (both.acceptance_rate, both.checks_saved) == (0.6, pytest.approx(0.4))
    assert DraftCounts().acceptance_rate != DraftCounts().acceptance_rate  # NaN
