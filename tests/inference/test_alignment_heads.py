"""Heads found by measurement, on toys whose times are known and on the embedded teacher."""

from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
    save_checkpoint,
)
from hf_distil_whisper.data.audio import load_audio
from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import (
    RowErrors,
    load_source,
)
from hf_distil_whisper.evaluation.word_times import (
    compare_word_times,
    pair_words,
)
from hf_distil_whisper.inference import alignment_heads as module
from hf_distil_whisper.inference.alignment_heads import (
    find_alignment_heads,
    find_own_heads,
    read_rows,
    teacher_heads,
)
from hf_distil_whisper.inference.ctranslate2 import export_ctranslate2
from hf_distil_whisper.inference.output import Word
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.inference.word_timestamps import set_alignment_heads
from hf_distil_whisper.student import create_student
from talking_models import talking_whisper
from toy_models import QUICKSTART, toy_processor, toy_rows


@pytest.fixture(scope="module")
def embedded() -> tuple[WhisperForConditionalGeneration, WhisperProcessor, list[dict]]:
    """The embedded teacher with eight recordings; no test changes them."""
    rows = load_source(QUICKSTART / "corpus", split="validation").select(range(8))
    return load_model(QUICKSTART / "teacher"), load_processor(QUICKSTART / "teacher"), list(rows)


def test_a_model_finds_its_own_heads_with_error_0() -> None:
    """Heads named by the wrong layer, or times of the wrong token, would not give the known times back."""
    model = talking_whisper(4)
    set_alignment_heads(model, [[2, 1]])
    search = find_alignment_heads(model, model, toy_processor(), toy_rows(3, 6.0), RowErrors())
    assert (search.heads, search.median_error) == ([(2, 1)], 0.0)
    assert len(search.single) == 8
    assert search.num_recordings <= 3 < search.num_times
    assert model.generation_config.alignment_heads == [[2, 1]]


def test_heads_are_added_as_long_as_the_error_falls() -> None:
    """The mean of two heads is none of a single one: a search that stops at the best head misses it."""
    model = talking_whisper(4)
    set_alignment_heads(model, [[0, 0], [3, 1]])
    search = find_alignment_heads(model, model, toy_processor(), toy_rows(3, 6.0), RowErrors())
    assert len(search.heads) > 1
    assert search.median_error <= search.single[0][1]
    assert search.heads[0] == search.single[0][0]


def test_known_times_of_segments_worked_by_hand() -> None:
    """Text 1 2 from 0 to 1 s, text 3 from 1.5 to 2 s: its start is known too, that of the recording is not."""
    begin = 100
    tokens = [begin, 1, 2, begin + 50, begin + 75, 3, begin + 100]
    assert module._segment_bounds(tokens, begin) == {2: [1.0], 4: [1.5], 5: [2.0]}
    assert module._segment_bounds([1, 2], begin) == {}


def test_attention_on_its_path_counts_within_a_tenth_of_a_second() -> None:
    weights = np.zeros((2, 2, 40))
    weights[0, 0, 3] = weights[0, 1, 30] = 1  # on the path
    weights[1, 0, 24] = weights[1, 1, 5] = 0.5  # one position more than 0.1 s behind it; and before it
    assert module._path_mass(weights, np.array([[0, 20], [0, 20]])).tolist() == [1.0, 0.25]


def test_silence_and_other_vocabularies_are_refused() -> None:
    """A head chosen on nothing is any head."""
    model, processor, rows = talking_whisper(4), toy_processor(), toy_rows(2)
    set_alignment_heads(model, [[0, 0]])
    silent = talking_whisper(4)
    silent.generation_config.suppress_tokens = list(range(processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")))
    for heads in ([[0, 0]], None):
        silent.generation_config.alignment_heads = heads
        with pytest.raises(ValueError, match="in none of the recordings the teacher wrote words"):
            find_alignment_heads(model, silent, processor, rows, RowErrors())
    other = talking_whisper(4, vocab_size=model.config.vocab_size + 8)
    with pytest.raises(ValueError, match="tokens, the teacher"):
        find_alignment_heads(model, other, processor, rows, RowErrors())


def test_a_bad_row_costs_the_row() -> None:
    model, errors = talking_whisper(4), RowErrors()
    set_alignment_heads(model, [[2, 1]])
    rows = [*toy_rows(2, 6.0), {"id": "broken", "audio": b"no audio"}]
    assert find_alignment_heads(model, model, toy_processor(), rows, errors).heads == [(2, 1)]
    assert [row for row, _ in errors] == ["broken"]


def test_a_teacher_without_heads_gets_those_that_it_was_trained_for(embedded: tuple) -> None:
    """The embedded teacher was led to look at the word to come by four heads, at the word just read by two others."""
    teacher, processor, _ = embedded
    speech = load_source(QUICKSTART / "corpus", split="validation").sort("speaker").select(range(24))
    # Of several sentences each: between them lie the times that tell one kind of heads from the other.
    windows = list(pack_utterances(speech, gap=0.3, max_duration=20.0))
    readings = list(read_rows(teacher, processor, windows, RowErrors()).values())
    found = find_own_heads(teacher, readings)
    assert len(found) > 1
    assert set(found) <= {(2, 0), (4, 0), (7, 0), (7, 1)}
    assert teacher_heads(teacher, readings) == [(2, 0), (4, 0), (7, 0), (7, 1)]


def test_a_student_tells_the_teachers_times_in_every_runtime(embedded: tuple, tmp_path: Path) -> None:
    """Heads that another runtime reads another way, or a checkpoint loses, are the teacher's old trap."""
    teacher, processor, rows = embedded
    student = create_student(
        teacher, decoder_layers=6
    )  # a smaller one is silent in faster-whisper before its training
    search = find_alignment_heads(student, teacher, processor, rows, RowErrors())
    set_alignment_heads(student, search.heads)
    errors = compare_word_times(student, teacher, processor, rows, RowErrors())
    assert errors.percentile(50) <= 0.1
    assert errors.num_common > 0.8 * errors.num_words
    save_checkpoint(student, processor, tmp_path / "student")
    audio = load_audio(rows[0]["audio"])
    words = transcribe(load_model(tmp_path / "student"), processor, audio, return_timestamps="word")[0].words
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / "student"))
    found = recognise({"raw": audio, "sampling_rate": 16_000}, return_timestamps="word")["chunks"]
    assert [(*one["timestamp"], one["text"].strip()) for one in found] == [
        (word.start, word.end, word.text) for word in words
    ]
    import faster_whisper

    export_ctranslate2(student, processor, tmp_path / "exported")
    runtime = faster_whisper.WhisperModel(str(tmp_path / "exported"), compute_type="float32", cpu_threads=1)
    segments, _ = runtime.transcribe(audio, language="en", beam_size=1, word_timestamps=True)
    timed = [Word(one.start, one.end, one.word, one.probability) for part in segments for one in part.words]
    # Its windows are cut, and their long last words shortened, in its own way, so not the same to the frame.
    errors = pair_words(words, timed)
    assert errors.num_common >= len(words) - 2
    assert errors.percentile(50) <= 0.1
