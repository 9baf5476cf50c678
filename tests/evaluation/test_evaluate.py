"""Scoring: counts that are jiwer's, row by row and in sum, whatever stands in the rows."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import soundfile
from datasets import Dataset
from pyarrow.parquet import write_table
from whisper_normalizer.english import EnglishTextNormalizer

from hf_distil_whisper.cli.main import main
from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation import evaluate as evaluation
from hf_distil_whisper.evaluation.evaluate import (
    COUNTS,
    KINDS,
    ROW_FEATURES,
    EvaluationResult,
    NothingReadError,
    TranscribedRow,
    evaluate_model,
    evaluate_shared,
    merge_results,
    score,
)
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.metrics import WordErrors, get_normalizer, word_errors
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
    assert result.empty_references == 3
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


@pytest.mark.parametrize(("language", "expected"), [("zh", 20 - 6), ("en", 0)])
def test_without_spaces_repeated_runs_are_of_characters(language: str, expected: int) -> None:
    """Split at white space, a loop of a whole minute is one word. Of 20 runs of five characters, 6 are distinct."""
    result = scored([("今天", "今天天气很好。" * 4), (None, "今天天气 很好")], language)
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


@pytest.mark.parametrize("pairs", [CASES, [(None, None), ("", "uh")]], ids=["scored", "silent"])
def test_the_table_has_the_same_columns_and_types_for_every_set(tmp_path: Path, pairs: list) -> None:
    """A set without references would give columns of nulls, which no reader joins with those of another set."""
    result = scored(pairs)
    write_table(result.table().data.table, tmp_path / "rows.parquet")
    read = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert read.features == ROW_FEATURES
    assert read.to_list() == result.rows


def test_a_set_of_which_nothing_could_be_read_says_why() -> None:
    with pytest.raises(NothingReadError, match=r"No row could be read[\s\S]*bad-0: broken") as caught:
        scored([], unread=1)
    assert list(caught.value.row_errors) == [("bad-0", "broken")]


def test_a_result_needs_only_what_a_rate_needs() -> None:
    """Reports and cards build results of their own from stored counts."""
    result = EvaluationResult(WordErrors(hits=9, substitutions=1), [], seconds=1.0, audio_seconds=4.0)
    assert (result.wer, result.cer, result.rtf, result.unit) == (0.1, 0.0, 0.25, "word")


def test_normaliser_is_that_of_the_language_unless_given() -> None:
    """Digit strings are one word to the English normaliser."""
    digits = [("one two three", "one two four")]
    assert scored(digits).wer == 1.0
    assert scored(digits, normalizer=get_normalizer("basic")).wer == pytest.approx(1 / 3)


SECONDS = (2, 5, 1, 3)


def rows(texts: list[str | None]) -> list[dict]:
    return [
        {"id": f"row-{index}", "audio": toy_audio(SECONDS[index], seed=index), "text": text}
        for index, text in enumerate(texts)
    ]


def test_model_scored_on_its_own_transcripts_makes_no_error() -> None:
    """Predictions beside the wrong references look like a bad model; time over padding is no real-time factor."""
    model, processor = talking_whisper(4), toy_processor()
    texts = [one.text for one in transcribe(model, processor, [row["audio"] for row in rows(["", "", "", ""])])]
    result = evaluate_model(model, rows(texts), processor, batch_size=3)
    assert len(set(texts)) == 4
    assert [row["prediction"] for row in result.rows] == texts
    assert [row["id"] for row in result.rows] == ["row-0", "row-1", "row-2", "row-3"]
    assert result.wer == 0.0
    assert result.errors.hits == sum(len(get_normalizer("en")(text).split()) for text in texts) > 4
    assert result.audio_seconds == sum(SECONDS)
    assert 0 < result.seconds == pytest.approx(result.rtf * 11)


def test_unreadable_and_too_long_rows_are_listed_and_not_scored() -> None:
    """A broken file scored as an empty transcript makes the model look worse, a cut one makes it look better."""
    model, processor = talking_whisper(4), toy_processor()
    data = [*rows(["the"] * 2), {"id": "gone", "audio": "nowhere.wav", "text": "the"}]
    data.append({"id": "long", "audio": toy_audio(31), "text": "the"})
    result = evaluate_model(model, data, processor)
    assert {row for row, _ in result.row_errors} == {"gone", "long"}
    assert len(result.rows) == 2
    assert result.audio_seconds == 7.0
    with pytest.raises(ValueError, match=r"No row could be read[\s\S]*nowhere\.wav"):
        evaluate_model(model, data[2:3], processor)


def test_dataset_and_list_of_rows_give_the_same() -> None:
    """The command evaluates data sets, the library also plain rows."""
    model, processor = talking_whisper(4), toy_processor()
    plain = rows(["the fox", "jumps", "over", "the"])
    stored = [{**row, "audio": {"bytes": encode_flac(row["audio"]), "path": None}} for row in plain]
    from_list, from_dataset = (evaluate_model(model, data, processor) for data in (stored, Dataset.from_list(stored)))
    assert from_list.rows == from_dataset.rows
    pairs = [row["text"] for row in plain], [row["prediction"] for row in from_list.rows]
    assert from_list.errors == from_dataset.errors == word_errors(*pairs, get_normalizer("en"))


def test_model_stays_as_it_is() -> None:
    """An evaluation between two checkpoints must not change what the second one holds."""
    model = multilingual_whisper(4)
    before = model.generation_config.to_dict(), model.config.to_dict()
    evaluate_model(model, rows(["the"] * 4), toy_processor(), language="en", max_new_tokens=4)
    assert (model.generation_config.to_dict(), model.config.to_dict()) == before


def test_missing_columns_and_rows_are_named() -> None:
    """With what is there, and the flag that renames it."""
    model, processor = talking_whisper(), toy_processor()
    with pytest.raises(ValueError, match=r"no column 'text'; it has id, audio, sentence.*text_column"):
        evaluate_model(model, [{"id": "a", "audio": toy_audio(1), "sentence": "x"}], processor)
    with pytest.raises(ValueError, match="0 rows"):
        evaluate_model(model, [], processor)


ROOT = Path(__file__).parents[2]
TIMES = {"rtf", "seconds", "wall_seconds"}


def text_rows(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts})


def evaluate_toy(dataset: Dataset) -> EvaluationResult:
    """Transcribes every row as "the"; "bad" cannot be read."""
    texts = {row.get("id", str(index)): row["text"] for index, row in enumerate(dataset)}
    rows = [TranscribedRow(name, text, "the", 1.1, False) for name, text in texts.items() if text != "bad"]
    errors = RowErrors([(name, "broken") for name, text in texts.items() if text == "bad"])
    return score(rows, errors, 1.0, language="en")


@pytest.mark.parametrize(
    "texts",
    [
        ["the", "a", "the fox", "bad", "the", "jumps"],
        ["bad", "bad", "bad", "the"],
        ["the"],
        ["bad", "the", "", "over"],
    ],
    ids=["even", "a share unread", "fewer rows than processes", "a missing reference"],
)
def test_shares_together_are_the_whole(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    """The processes in turn, their shares put together by hand, as `gather_object` does."""
    whole = evaluate_shared(text_rows(texts), evaluate_toy)
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares: list = []
    for rank in range(3):
        state = SimpleNamespace(process_index=rank, num_processes=3)
        monkeypatch.setattr(evaluation, "PartialState", lambda state=state, **_: state)
        monkeypatch.setattr(evaluation, "gather_object", lambda share: shares.extend(share) or list(shares))
        try:
            joined = evaluate_shared(text_rows(texts), evaluate_toy)
        except NothingReadError:
            assert rank < 2  # no row was read so far
    assert joined.rows == whole.rows
    assert [row["id"] for row in joined.rows] == [str(n) for n, text in enumerate(texts) if text != "bad"]
    assert list(joined.row_errors) == list(whole.row_errors)
    for name in ("errors", "character_errors", "orthographic_errors", "audio_seconds", "empty_references", "unit"):
        assert getattr(joined, name) == getattr(whole, name)
    assert joined.seconds == sum(result is not None for result, _ in shares)
    assert joined.wall_seconds is not None


def test_an_unreadable_set_lists_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NothingReadError, match=r"0: broken[\s\S]*1: broken"):
        evaluate_shared(text_rows(["bad", "bad"]), evaluate_toy)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(evaluation, "PartialState", lambda **_: SimpleNamespace(process_index=0, num_processes=2))
    other = (None, RowErrors([("1", "broken")]))
    monkeypatch.setattr(evaluation, "gather_object", lambda share: [*share, other])
    with pytest.raises(NothingReadError, match=r"0: broken[\s\S]*1: broken"):
        evaluate_shared(text_rows(["bad", "bad"]), evaluate_toy)


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would transcribe all rows: the same result at the price of many machines."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(evaluation, "PartialState", lambda **_: SimpleNamespace(process_index=0, num_processes=1))
    with pytest.raises(RuntimeError, match="2 processes were started"):
        evaluate_shared(text_rows(["the", "a"]), evaluate_toy)


def test_a_row_without_an_id_is_named_by_its_index_in_the_whole_set() -> None:
    """Named by its index in the part of a process, it would get another noise than in a single process."""
    named = evaluation._with_ids(Dataset.from_dict({"id": ["a", None, "c"], "text": ["x", "y", "z"]}))
    assert list(named["id"]) == ["a", "1", "c"]
    assert list(named["text"]) == ["x", "y", "z"]


def start_two(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """The command in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0", "-m", "hf_distil_whisper.cli.main", *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300, check=False)


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
    done = start_two([*argv, "--output_dir", str(tmp_path / "two")])
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


def test_silence_clicks_and_stereo_have_a_text_and_the_duration_of_the_recording() -> None:
    """Silence divides by zero, a click is shorter than a frame, two channels would be read one after the other."""
    mono = np.interp(np.arange(44_100 * 2) / 44_100, np.arange(32_000) / 16_000, toy_audio(2)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, np.stack([mono, mono], axis=1), 44_100, format="WAV")
    rows = [
        {"id": "silence", "audio": np.zeros(32_000, dtype=np.float32), "text": "the fox"},
        {"id": "click", "audio": toy_audio(0.01), "text": "the"},
        {"id": "stereo", "audio": {"bytes": file.getvalue(), "path": None}, "text": "the"},
        {"id": "nothing said", "audio": np.zeros(16_000, dtype=np.float32), "text": ""},
        {"id": "unknown", "audio": toy_audio(1), "text": None},
        {"id": "empty", "audio": np.zeros(0, dtype=np.float32), "text": "the"},
    ]
    result = evaluate_model(talking_whisper(4), rows, toy_processor())
    assert [row for row, _ in result.row_errors] == ["empty"]  # no sample at all is a broken recording, not silence
    assert [row["duration"] for row in result.rows] == pytest.approx([2.0, 0.01, 2.0, 1.0, 1.0], abs=1e-3)
    assert all(isinstance(row["prediction"], str) for row in result.rows)
    assert (result.errors.num_words, result.empty_references) == (4, 2)
    assert np.isfinite([result.wer, result.rtf]).all()
