"""Scoring: counts that are jiwer's, row by row and in sum, whatever stands in the rows."""

import io
import json
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import soundfile
from datasets import Dataset
from whisper_normalizer.english import EnglishTextNormalizer

from hf_distil_whisper.cli.main import main
from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation import evaluate as evaluation
from hf_distil_whisper.evaluation.evaluate import (
    COUNTS,
    KINDS,
    EvaluationResult,
    NonSpeech,
    NothingReadError,
    TranscribedRow,
    evaluate_model,
    evaluate_shared,
    merge_results,
    score,
)
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.metrics import WordErrors, get_normalizer
from talking_models import multilingual_whisper, talking_whisper
from toy_files import spoil, write_toy_corpus, write_toy_model
from toy_models import toy_audio, toy_processor
from toy_results import scored, transcribed

CASES = [
    ("The cat sat on the mat.", "the cat sat on mat"),
    ("Mr. Quilter's colour, isn't it?", "mister quilters color is not it"),
    ("It costs twenty-one dollars", "it costs $21"),
    ("She said: hello hello", "she said hello"),
    ("one two three", "1 2 3"),
    ("nothing was said", ""),
    ("Naïve café", "naive cafe au lait"),
    ("  spaces   everywhere ", "spaces everywhere"),
    ("yes", "no no no no"),
]


def counted(output: jiwer.WordOutput | jiwer.CharacterOutput) -> WordErrors:
    return WordErrors(output.hits, output.substitutions, output.deletions, output.insertions)


def test_counts_are_those_of_jiwer_behind_the_published_normaliser() -> None:
    """A slip in what is aligned with what shifts every table by some tenths, and nobody sees it."""
    result = scored(CASES)
    plain = tuple(list(side) for side in zip(*CASES, strict=True))
    published = EnglishTextNormalizer()
    normalized = tuple([published(text).strip() for text in side] for side in plain)
    assert [row["normalized_reference"] for row in result.rows] == normalized[0]
    assert [row["normalized_prediction"] for row in result.rows] == normalized[1]
    assert result.errors == counted(jiwer.process_words(*normalized))
    assert result.character_errors == counted(jiwer.process_characters(*normalized))
    assert result.orthographic_errors == counted(jiwer.process_words(*plain))
    assert result.orthographic_character_errors == counted(jiwer.process_characters(*plain))
    for row, reference, prediction in zip(result.rows, *normalized, strict=True):
        assert row["wer"] == pytest.approx(jiwer.wer(reference, prediction))


def test_counts_are_as_worked_out_by_hand() -> None:
    """Case and the full stop are errors as written only; a mean of rates lets a short row weigh as much as a long."""
    result = scored([("The cat sat.", "the cat sad down")])
    assert result.errors == WordErrors(hits=2, substitutions=1, insertions=1)
    assert result.orthographic_errors == WordErrors(hits=1, substitutions=2, insertions=1)
    assert result.character_errors == WordErrors(hits=10, substitutions=1, insertions=5)
    assert result.cer == 6 / 11
    assert result.orthographic_character_errors.num_words == len("The cat sat.")
    result = scored([("the quick brown fox", "The quick, brown cat!"), ("jumps", "jumps over")])
    assert result.errors == WordErrors(hits=4, substitutions=1, deletions=0, insertions=1)
    assert (result.wer, result.rtf) == (2 / 5, 1.0 / 4.0)
    assert [row["wer"] for row in result.rows] == [0.25, 1.0]
    assert result.rows[0]["normalized_prediction"] == "the quick brown cat"


def test_rows_add_up_to_the_result_without_those_that_have_no_reference() -> None:
    """A table whose columns do not sum to the printed rate is worth nothing; nothing said is no rate of errors."""
    result = scored([*CASES, ("", "uh"), (None, None), ("?!", "what")])
    words, silent = result.rows[: len(CASES)], result.rows[len(CASES) :]
    for prefix, name in COUNTS.items():
        counts = [[row[prefix + kind] for kind in KINDS] for row in words]
        assert WordErrors(*map(sum, zip(*counts, strict=True))) == getattr(result, name)
    assert result.empty_references == 2
    assert [errors for _, errors in result.utterance_errors()] == [
        WordErrors(*(row[kind] for kind in KINDS)) for row in words
    ]
    assert {row[prefix + kind] for row in silent for prefix in COUNTS for kind in KINDS} == {None}
    assert [row["wer"] for row in silent] == [None] * 3


def test_a_missing_hypothesis_lacks_every_word() -> None:
    """Left out, the rows on which a recogniser gave up would improve its rate."""
    result = scored([("the fox", None), ("jumps", "")])
    assert result.errors == result.orthographic_errors == WordErrors(deletions=3)
    assert (result.rows[0]["prediction"], result.rows[0]["normalized_prediction"]) == (None, "")


def test_without_spaces_all_counts_are_of_characters() -> None:
    """One wrong character would be a WER of 100 %, and a space an error."""
    result = scored([("今天 天气很好。", "今天天汽很好")], "zh")
    assert result.unit == "character"
    assert result.errors == result.character_errors == WordErrors(hits=5, substitutions=1)
    assert result.orthographic_errors == WordErrors(hits=5, substitutions=1, deletions=1)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "The cat sat down here. " * 3, 6),
        # Split at white space, a loop of a whole minute is one word. Of 20 runs of five characters, 6 are distinct.
        ("zh", "今天天气很好。" * 4, 20 - 6),
        ("en", "今天天气很好。" * 4, 0),
    ],
)
def test_repeated_runs_are_of_normalised_words_or_of_characters_without_spaces(
    language: str, text: str, expected: int
) -> None:
    """Table 8's measure of hallucination: one loop in an hour hardly moves the WER."""
    result = scored([("今天", text), (None, "今天天气 很好")], language)
    assert [row["repeated_5grams"] for row in result.rows] == [expected, 0]
    assert result.repeated_5grams == expected


def test_parts_of_a_set_merge_into_its_result() -> None:
    """Rates averaged over processes weigh a short share like a long one; floats added in another order differ."""
    rows = [replace(row, duration=0.1 * (n + 1)) for n, row in enumerate(transcribed([*CASES, ("", "uh")]))]
    errors = RowErrors([("x", "gone"), ("y", "gone too")])
    whole = score(rows, errors, 3.0, language="en")
    parts = [
        score(rows[:3], RowErrors(errors.rows[:1]), 1.0, language="en"),
        score(rows[3:], RowErrors(errors.rows[1:]), 2.0, language="en"),
    ]
    assert merge_results(parts) == whole
    with pytest.raises(ValueError, match="got no part"):
        merge_results([])
    with pytest.raises(ValueError, match="same unit"):
        merge_results([whole, scored([("今天", "今天")], "zh")])


def test_normaliser_is_that_of_the_language_unless_given() -> None:
    """Digit strings are one word to the English normaliser."""
    digits = [("one two three", "one two four")]
    assert scored(digits).wer == 1.0
    assert scored(digits, normalizer=get_normalizer("basic")).wer == pytest.approx(1 / 3)


def test_words_where_nothing_is_spoken_are_counted_by_themselves() -> None:
    """A model that writes "you" on every silent clip has no word errors; a missing reference says nothing about it."""
    pairs = [("a b", "a"), ("", "Thank you."), (" ", ""), (None, "you"), ("...", "you")]
    result = score([replace(row, duration=15.0) for row in transcribed(pairs)], RowErrors(), 1.0, language="en")
    assert result.errors == WordErrors(hits=1, deletions=1)
    assert result.non_speech == NonSpeech(rows=2, seconds=30.0, words=2, rows_with_words=1)
    assert (result.non_speech.words_per_minute, result.non_speech.share) == (4.0, 0.5)
    assert result.empty_references == 2
    assert scored([("", "今天")], "zh").non_speech.words == 2
    assert scored([("a", "a")]).non_speech.words_per_minute == 0.0


def test_languages_in_one_set_are_each_normalised_and_counted_alike() -> None:
    """In English "um" is a filler, in German a word; words of one language and characters of another do not add up."""
    rows = [
        replace(row, language=code)
        for row, code in zip(transcribed([("um zehn", "zehn")] * 2), ("de", "en"), strict=True)
    ]
    assert score(rows, RowErrors(), 1.0).errors == WordErrors(hits=2, deletions=1)
    mixed = [*rows, replace(rows[0], language="ja")]
    with pytest.raises(ValueError, match=r"different units \(de in words, en in words, ja in characters\)"):
        score(mixed, RowErrors(), 1.0)
    assert score(mixed, RowErrors(), 1.0, unit="character").unit == "character"
    korean = [("저는 학교에 갈 수 있습니다", "저는 학교에 갈수있습니다")]
    assert scored(korean, "ko").wer == 0.6
    assert score(transcribed(korean), RowErrors(), 1.0, language="ko", unit="character").wer == 0.0
    with pytest.raises(ValueError, match="`unit` is 'syllable'"):
        score(rows, RowErrors(), 1.0, unit="syllable")


def test_each_row_is_transcribed_and_scored_in_its_language() -> None:
    """Detected in every window, a clip of a second is of any language, and its rate under another normaliser."""
    model, codes = multilingual_whisper(4), ["de", "Hindi", "klingon", None]
    tagged = [row | {"language": code} for row, code in zip(rows(["a", "b", "c", "d"]), codes, strict=True)]
    result = evaluate_model(model, tagged, toy_processor(), max_new_tokens=9)
    assert [row["id"] for row in result.rows] == ["row-0", "row-1"]
    assert [name for name, _ in result.row_errors] == ["row-2", "row-3"]
    alone = [
        evaluate_model(model, [row], toy_processor(), language=code, max_new_tokens=9).rows[0]["prediction"]
        for row, code in zip(rows(["a", "b"]), ("de", "hi"), strict=True)
    ]
    assert [row["prediction"] for row in result.rows] == alone
    english = [row | {"language": code} for row, code in zip(rows(["a", "b"]), ("en", "de"), strict=True)]
    for options in ({}, {"generate": partial(generate_tokens, MODEL, max_new_tokens=2)}):
        result = evaluate_model(MODEL, english, toy_processor(), **options)
        assert [row["id"] for row in result.rows] == ["row-0"]
        assert [name for name, _ in result.row_errors] == ["row-1"]
    for evaluate in (evaluate_model, evaluate_long_form):
        with pytest.raises(ValueError, match="`language` is missing"):
            evaluate(model, rows(["a"]), toy_processor())
    evaluate_model(model, rows(["a"]), toy_processor(), normalizer=get_normalizer("basic"), max_new_tokens=2)


SECONDS = (2, 5, 1, 3)
MODEL = talking_whisper(4)


def rows(texts: list[str | None]) -> list[dict]:
    return [
        {"id": f"row-{index}", "audio": toy_audio(SECONDS[index], seed=index), "text": text}
        for index, text in enumerate(texts)
    ]


def test_model_scored_on_its_own_transcripts_makes_no_error() -> None:
    """Predictions beside the wrong references look like a bad model; time over padding is no real-time factor."""
    texts = [one.text for one in transcribe(MODEL, toy_processor(), [row["audio"] for row in rows([""] * 4)])]
    result = evaluate_model(MODEL, rows(texts), toy_processor(), batch_size=3)
    assert len(set(texts)) == 4
    assert [row["prediction"] for row in result.rows] == texts
    assert [row["id"] for row in result.rows] == ["row-0", "row-1", "row-2", "row-3"]
    assert result.wer == 0.0
    assert result.errors.hits == sum(len(get_normalizer("en")(text).split()) for text in texts) > 4
    assert result.audio_seconds == sum(SECONDS)
    assert 0 < result.seconds == pytest.approx(result.rtf * 11)
    # The command evaluates data sets, the library also plain rows.
    stored = [{**row, "audio": {"bytes": encode_flac(row["audio"]), "path": None}} for row in rows(texts)]
    results = [evaluate_model(MODEL, data, toy_processor()) for data in (stored, Dataset.from_list(stored))]
    assert results[0].rows == results[1].rows


def test_model_stays_as_it_is() -> None:
    """An evaluation between two checkpoints must not change what the second one holds."""
    model = multilingual_whisper(4)
    before = model.generation_config.to_dict(), model.config.to_dict()
    evaluate_model(model, rows(["the"] * 4), toy_processor(), language="en", max_new_tokens=4)
    assert (model.generation_config.to_dict(), model.config.to_dict()) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": toy_audio(1), "sentence": "x"}, r"no column 'text'; it has audio, sentence.*text_column"),
        ({"audio": "nowhere.wav", "text": "the"}, r"No row could be read[\s\S]*nowhere\.wav"),
        (None, "0 rows"),
    ],
)
def test_what_cannot_be_scored_is_named(row: dict | None, message: str) -> None:
    """With what is there, and the flag that renames it."""
    with pytest.raises(ValueError, match=message):
        evaluate_model(MODEL, [row] if row else [], toy_processor())


def test_odd_recordings_have_a_text_and_their_duration_and_unreadable_ones_are_listed() -> None:
    """A broken file scored as an empty transcript makes the model look worse, a cut one makes it look better."""
    mono = np.interp(np.arange(44_100 * 2) / 44_100, np.arange(32_000) / 16_000, toy_audio(2)).astype(np.float32)
    stereo = io.BytesIO()
    soundfile.write(stereo, np.stack([mono, mono], axis=1), 44_100, format="WAV")
    odd = {
        "silence": (np.zeros(32_000, dtype=np.float32), "the fox"),
        "click": (toy_audio(0.01), "the"),  # shorter than a frame
        "stereo": ({"bytes": stereo.getvalue(), "path": None}, "the"),  # two channels, one after the other
        "nothing said": (np.zeros(16_000, dtype=np.float32), ""),
        "unknown": (toy_audio(1), None),
        "empty": (np.zeros(0, dtype=np.float32), "the"),  # no sample at all is a broken recording, not silence
        "gone": ("nowhere.wav", "the"),
        "long": (toy_audio(31), "the"),
    }
    data = [{"id": name, "audio": audio, "text": text} for name, (audio, text) in odd.items()]
    result = evaluate_model(MODEL, data, toy_processor())
    assert sorted(row for row, _ in result.row_errors) == ["empty", "gone", "long"]
    assert [row["id"] for row in result.rows] == list(odd)[:5]
    assert [row["duration"] for row in result.rows] == pytest.approx([2.0, 0.01, 2.0, 1.0, 1.0], abs=1e-3)
    assert all(isinstance(row["prediction"], str) for row in result.rows)
    assert (result.errors.num_words, result.empty_references, result.non_speech.rows) == (4, 1, 1)
    assert np.isfinite([result.wer, result.rtf]).all()


ROOT = Path(__file__).parents[2]
TIMES = {"rtf", "seconds", "wall_seconds"}


def evaluate_toy(dataset: Dataset) -> EvaluationResult:
    """Transcribes every row as "the"; "bad" cannot be read."""
    texts = {row_id(row, index): row["text"] for index, row in enumerate(dataset)}
    rows = [TranscribedRow(name, text, "the", 1.1, False) for name, text in texts.items() if text != "bad"]
    errors = RowErrors([(name, "broken") for name, text in texts.items() if text == "bad"])
    return score(rows, errors, 1.0, language="en")


def in_three_processes(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> tuple[EvaluationResult, int]:
    """What the last of three processes returns, whose shares are put together by hand, and how many had a result."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares: list = []
    monkeypatch.setattr(evaluation, "gather_object", lambda share: shares.extend(share) or list(shares))
    for rank in range(3):
        state = SimpleNamespace(process_index=rank, num_processes=3)
        monkeypatch.setattr(evaluation, "PartialState", lambda state=state, **_: state)
        with nullcontext() if rank == 2 else suppress(NothingReadError):  # no row was read so far
            joined = evaluate_shared(dataset, evaluate_toy)
    return joined, sum(result is not None for result, _ in shares)


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["the", "a", "the fox", "bad", "the", "jumps"]},
        {"text": ["bad", "bad", "bad", "the"]},  # a share unread
        {"text": ["the"]},  # fewer rows than processes
        {"text": ["bad", "the", "", "over"], "id": list("abcd")},  # a missing reference
        # Named by its index in the part of a process, a row would get another noise than in a single process.
        {"text": ["x", "y", "z"], "id": ["a", None, "c"]},
    ],
)
def test_shares_together_are_the_whole(monkeypatch: pytest.MonkeyPatch, columns: dict) -> None:
    dataset = Dataset.from_dict(columns)
    whole = evaluate_shared(dataset, evaluate_toy)
    joined, shares = in_three_processes(monkeypatch, dataset)
    assert joined.seconds == shares
    assert joined.wall_seconds is not None
    assert replace(joined, seconds=1.0, wall_seconds=whole.wall_seconds) == whole
    names = columns.get("id") or [str(index) for index in range(len(dataset))]
    expected = [name or "1" for name, text in zip(names, columns["text"], strict=True) if text != "bad"]
    assert [row["id"] for row in joined.rows] == expected


def test_an_unreadable_set_lists_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.from_dict({"text": ["bad", "bad"]})
    with pytest.raises(NothingReadError, match=r"0: broken[\s\S]*1: broken"):
        evaluate_shared(dataset, evaluate_toy)
    with pytest.raises(NothingReadError, match=r"0: broken[\s\S]*1: broken"):
        in_three_processes(monkeypatch, dataset)


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would transcribe all rows: the same result at the price of many machines."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(evaluation, "PartialState", lambda **_: SimpleNamespace(process_index=0, num_processes=1))
    with pytest.raises(RuntimeError, match="2 processes were started"):
        evaluate_shared(Dataset.from_dict({"text": ["the", "a"]}), evaluate_toy)


@pytest.mark.slow
def test_evaluate_in_two_processes_gives_what_it_gives_in_one(tmp_path: Path) -> None:
    """Rows transcribed twice, lost or in another order; a process that waits for ever for one without rows."""
    corpus = write_toy_corpus(tmp_path / "corpus", train=3, test=7)
    spoil(corpus, 7)
    write_toy_corpus(tmp_path / "one", train=1, test=1)
    argv = ["evaluate", "--model_name_or_path", write_toy_model(tmp_path / "student", decoder_layers=2)]
    argv += ["--teacher_model_name_or_path", write_toy_model(tmp_path / "teacher"), "--language", "en"]
    argv += ["--eval_datasets.read.path", corpus]
    argv += ["--ood_datasets.one.path", str(tmp_path / "one"), "--long_form_datasets.long.path", corpus]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0", "-m", "hf_distil_whisper.cli.main", *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    launch += ["--output_dir", str(tmp_path / "two")]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\nin distribution:") == 1
    assert "In all processes together, 2 rows left out" in done.stderr
    assert main([*argv, "--output_dir", str(tmp_path / "alone")]) == 0
    two, expected = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "alone"))
    assert list(two) == ["read", "one", "long"]
    for name, by_model in expected.items():
        for model, row in by_model.items():
            assert row | dict.fromkeys(TIMES) == two[name][model] | dict.fromkeys(TIMES)
            assert set(row) == set(two[name][model])
            files = [str(tmp_path / folder / f"{name}.{model}.parquet") for folder in ("two", "alone")]
            shared, alone = (Dataset.from_parquet(file, cache_dir=str(tmp_path / "cache")).to_list() for file in files)
            assert shared == alone
    assert two["read"]["model"]["rows"] == 5
