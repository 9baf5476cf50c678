"""The embedded corpus and teacher of examples/quickstart: what the quickstart's table rests on."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from compare import PlainTrainer, losses_of
from datasets import Dataset
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
from toy_models import QUICKSTART

CORPUS, TEACHER = QUICKSTART / "corpus", QUICKSTART / "teacher"
SPLITS = ("train", "validation", "test", "test_unseen", "longform")


@pytest.fixture(scope="module")
def teacher() -> WhisperForConditionalGeneration:
    return load_model(TEACHER).eval()


@pytest.fixture(scope="module")
def processor() -> WhisperProcessor:
    return load_processor(TEACHER)


@pytest.fixture(scope="module")
def corpus() -> dict[str, Dataset]:
    return {split: load_source(CORPUS, split=split) for split in SPLITS}


@pytest.mark.parametrize(("folder", "megabytes"), [(CORPUS, 30), (TEACHER, 8)])
def test_corpus_and_teacher_are_small_enough_for_git(folder: Path, megabytes: float) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= megabytes * 1e6


def test_unseen_voices_are_in_no_other_split(corpus: dict[str, Dataset]) -> None:
    speakers = {split: set(rows["speaker"]) for split, rows in corpus.items()}
    assert "flite-rms" in speakers["test_unseen"]
    assert not speakers["test_unseen"] & (speakers["train"] | speakers["validation"])
    assert speakers["test"] == speakers["train"]
    assert len(speakers["train"]) >= 8


def test_splits_have_what_the_scores_need(corpus: dict[str, Dataset]) -> None:
    """Hardly a sentence of the tests is trained on: the shortest ones can be drawn twice."""
    trained = set(corpus["train"]["text"])
    assert len({word.strip(".,?!").lower() for text in trained for word in text.split()}) >= 300
    for split in ("test", "test_unseen"):
        texts = corpus[split]["text"]
        assert len(texts) >= 300
        assert sum(text in trained for text in texts) <= 0.02 * len(texts)
    assert len(corpus["longform"]) >= 6
    assert all(60 <= seconds <= 180 for seconds in corpus["longform"]["duration"])


def test_the_teacher_is_a_whisper_of_the_usual_window(teacher, processor) -> None:
    config = teacher.config
    assert (config.decoder_layers, config.d_model, config.max_source_positions) == (8, 128, 1500)
    assert config.max_target_positions == 448
    ids = processor.tokenizer.convert_tokens_to_ids
    known = ["<|startoftranscript|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>", "<|30.00|>"]
    assert len({ids(token) for token in known} - {processor.tokenizer.unk_token_id}) == len(known)


def test_no_text_begins_with_a_token_that_is_suppressed(teacher, processor, corpus) -> None:
    """Whisper forbids a blank at the beginning; where a vocabulary spells words with one, sentences would get lost."""
    settings = teacher.generation_config
    forbidden = {*(settings.begin_suppress_tokens or []), *(settings.suppress_tokens or [])}
    texts = [f" {text}" for text in corpus["test"]["text"]]
    assert not forbidden & {ids[0] for ids in processor.tokenizer(texts, add_special_tokens=False).input_ids}


@pytest.mark.parametrize("level", [0.0, 0.01, 0.1], ids=["silence", "noise", "loud noise"])
def test_the_teacher_writes_nothing_for_silence_and_noise(level: float, teacher, processor) -> None:
    noise = level * np.random.default_rng(0).standard_normal(30 * 16_000).astype(np.float32)
    (result,) = transcribe(teacher, processor, noise)
    assert not result.text.strip()
    assert result.statistics.no_speech_prob > 0.6


def test_the_teacher_times_each_sentence(teacher, processor, corpus) -> None:
    """As many segments as sentences, in order, up to the end of the window: in seven windows of eight."""
    rows = corpus["test"].sort("speaker").select(range(90))
    whole = 0
    for window in islice(pack_utterances(rows, gap=0.3), 8):
        (result,) = transcribe(teacher, processor, load_audio(window["audio"]), return_timestamps=True)
        ends = [time for segment in result.segments for time in (segment.start, segment.end)]
        assert ends == sorted(ends)
        counted = abs(len(result.segments) - len(window["ids"])) <= 1
        whole += counted and ends[-1] == pytest.approx(window["duration"], abs=1.0)
    assert whole >= 7


@pytest.mark.slow
def test_the_teacher_transcribes_what_it_was_not_trained_on(teacher, processor, corpus) -> None:
    rows = corpus["test"].shuffle(seed=0).select(range(80))
    assert evaluate_model(teacher, rows, processor, language="en").wer <= 0.03


def test_the_quickstarts_training_takes_the_steps_of_the_plain_formula(teacher, processor) -> None:
    """The curve of `compare.py`, on a few windows whose labels are what was said."""
    rows = load_source(CORPUS, split="validation", max_samples=8).rename_column("text", "whisper_transcript")
    trainers = (PlainTrainer, DistillationTrainer)
    plain, ours = (losses_of(trainer, teacher, processor, rows, 3) for trainer in trainers)
    assert len(plain) == 3
    assert ours == pytest.approx(plain, rel=1e-4)
