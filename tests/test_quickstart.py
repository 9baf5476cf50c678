"""The embedded corpus and teacher of examples/quickstart: what the quickstart's table rests on."""

import importlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper import (
    DistillationTrainer,
    evaluate_model,
    load_audio,
    load_model,
    load_processor,
    load_source,
    pack_utterances,
    transcribe,
)

HERE = Path(__file__).parents[1] / "examples" / "quickstart"
CORPUS, TEACHER = HERE / "corpus", HERE / "teacher"


@pytest.fixture(scope="module")
def teacher() -> WhisperForConditionalGeneration:
    return load_model(TEACHER).eval()


@pytest.fixture(scope="module")
def processor() -> WhisperProcessor:
    return load_processor(TEACHER)


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def test_corpus_and_teacher_are_small_enough_for_git() -> None:
    assert megabytes(CORPUS) <= 30
    assert megabytes(TEACHER) <= 8


def test_unseen_voices_are_in_no_other_split() -> None:
    unseen = set(load_source(CORPUS, split="test_unseen")["speaker"])
    known = set(load_source(CORPUS, split="train")["speaker"])
    assert "flite-rms" in unseen
    assert len(known) >= 8
    assert not unseen & known
    assert not unseen & set(load_source(CORPUS, split="validation")["speaker"])
    assert set(load_source(CORPUS, split="test")["speaker"]) == known


def test_splits_have_what_the_scores_need() -> None:
    assert len(load_source(CORPUS, split="test")) >= 300
    assert len(load_source(CORPUS, split="test_unseen")) >= 300
    long = load_source(CORPUS, split="longform")
    assert len(long) >= 6
    assert all(60 <= seconds <= 180 for seconds in long["duration"])
    words = {
        word.strip(".,?!").lower() for text in load_source(CORPUS, split="train")["text"] for word in text.split()
    }
    assert len(words) >= 300


def test_hardly_a_sentence_of_the_tests_is_trained_on() -> None:
    """The shortest sentences can be drawn twice."""
    trained = set(load_source(CORPUS, split="train")["text"])
    for split in ("test", "test_unseen"):
        texts = load_source(CORPUS, split=split)["text"]
        assert sum(text in trained for text in texts) <= 0.02 * len(texts)


def test_the_teacher_is_a_whisper_of_the_usual_window(teacher, processor) -> None:
    config = teacher.config
    assert (config.decoder_layers, config.d_model, config.max_source_positions) == (8, 128, 1500)
    assert config.max_target_positions == 448
    ids = processor.tokenizer.convert_tokens_to_ids
    known = ["<|startoftranscript|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>", "<|30.00|>"]
    assert len({ids(token) for token in known} - {processor.tokenizer.unk_token_id}) == len(known)


def test_no_text_begins_with_a_token_that_is_suppressed(teacher, processor) -> None:
    """Whisper forbids a blank at the beginning; where a vocabulary spells words with one, sentences would get lost."""
    settings = teacher.generation_config
    forbidden = {*(settings.begin_suppress_tokens or []), *(settings.suppress_tokens or [])}
    texts = load_source(CORPUS, split="test")["text"]
    begins = {processor.tokenizer(f" {text}", add_special_tokens=False).input_ids[0] for text in texts}
    assert not begins & forbidden


@pytest.mark.parametrize("level", [0.0, 0.01, 0.1], ids=["silence", "noise", "loud noise"])
def test_the_teacher_writes_nothing_for_silence_and_noise(level: float, teacher, processor) -> None:
    noise = level * np.random.default_rng(0).standard_normal(30 * 16_000).astype(np.float32)
    result = transcribe(teacher, processor, noise)[0]
    assert not result.text.strip()
    assert result.statistics.no_speech_prob > 0.6


def test_the_teacher_says_when_each_sentence_is_spoken(teacher, processor) -> None:
    """As many segments as sentences, in order, up to the end of the window: in seven windows of eight."""
    rows = load_source(CORPUS, split="test").sort("speaker").select(range(90))
    whole = 0
    for window in islice(pack_utterances(rows, gap=0.3), 8):
        result = transcribe(teacher, processor, load_audio(window["audio"]), return_timestamps=True)[0]
        ends = [time for segment in result.segments for time in (segment.start, segment.end)]
        assert ends == sorted(ends)
        counted = abs(len(result.segments) - len(window["ids"])) <= 1
        whole += counted and ends[-1] == pytest.approx(window["duration"], abs=1.0)
    assert whole >= 7


@pytest.mark.slow
def test_the_teacher_transcribes_what_it_was_not_trained_on(teacher, processor) -> None:
    rows = load_source(CORPUS, split="test").shuffle(seed=0).select(range(80))
    assert evaluate_model(teacher, rows, processor, language="en").wer <= 0.03


def test_the_quickstarts_training_takes_the_steps_of_the_plain_formula(
    teacher: WhisperForConditionalGeneration, processor: WhisperProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curve of `compare.py`, on a few windows whose labels are what was said."""
    monkeypatch.syspath_prepend(HERE)
    compare = importlib.import_module("compare")
    rows = load_source(CORPUS, split="validation", max_samples=8).rename_column("text", "whisper_transcript")
    plain, ours = (
        compare.losses_of(way, teacher, processor, rows, 3) for way in (compare.PlainTrainer, DistillationTrainer)
    )
    assert len(plain) == 3
    assert ours == pytest.approx(plain, rel=1e-4)
