"""Short-form evaluation: counts that can be checked by hand, rows in order, nothing scored that cannot be."""

import pytest
from datasets import Dataset

from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import (
    Heard,
    evaluate_model,
    score,
)
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.metrics import (
    WordErrors,
    get_normalizer,
    word_errors,
)
from talking_models import multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor

SECONDS = (2, 5, 1, 3)


def rows(texts: list[str | None]) -> list[dict]:
    return [
        {"id": f"row-{index}", "audio": toy_audio(SECONDS[index], seed=index), "text": text}
        for index, text in enumerate(texts)
    ]


def heard(reference: str | None, prediction: str) -> Heard:
    return Heard("a", reference, prediction, duration=2.0, truncated=False)


def test_model_scored_on_its_own_transcripts_makes_no_error() -> None:
    """Predictions beside the wrong references, after sorting by length, look like a bad model."""
    model, processor = talking_whisper(4), toy_processor()
    texts = [one.text for one in transcribe(model, processor, [row["audio"] for row in rows(["", "", "", ""])])]
    result = evaluate_model(model, rows(texts), processor, batch_size=3)
    assert len(set(texts)) == 4
    assert [row["prediction"] for row in result.rows] == texts
    assert [row["id"] for row in result.rows] == ["row-0", "row-1", "row-2", "row-3"]
    assert result.wer == 0.0
    assert result.errors.hits == sum(len(get_normalizer("en")(text).split()) for text in texts) > 4


def test_errors_are_counted_over_all_words() -> None:
    """A mean of the rows' rates lets one short sentence weigh as much as a long one."""
    result = score(
        [heard("the quick brown fox", "The quick, brown cat!"), heard("jumps", "jumps over")],
        RowErrors(),
        seconds=1.0,
        language="en",
    )
    assert result.errors == WordErrors(hits=4, substitutions=1, deletions=0, insertions=1)
    assert result.wer == 2 / 5
    assert [row["wer"] for row in result.rows] == [0.25, 1.0]
    assert result.rows[0]["normalized_prediction"] == "the quick brown cat"
    assert result.rtf == 1.0 / 4.0


def test_rows_without_words_to_find_are_left_out_and_counted() -> None:
    """An empty reference turns every heard word into an error per nothing."""
    pairs = [heard("the fox", "the fox"), heard("", "thank you"), heard(None, "hello"), heard("?!", "")]
    result = score(pairs, RowErrors(), seconds=1.0, language="en")
    assert (result.errors, result.empty_references) == (WordErrors(hits=2), 3)
    assert [row["wer"] for row in result.rows] == [0.0, None, None, None]


def test_normaliser_is_that_of_the_language_unless_given() -> None:
    """Digit strings are one word to the English normaliser; Chinese has no words to count."""
    digits = [heard("one two three", "one two four")]
    assert score(digits, RowErrors(), 1.0, language="en").wer == 1.0
    basic = score(digits, RowErrors(), 1.0, language="en", normalizer=get_normalizer("basic"))
    assert basic.wer == pytest.approx(1 / 3)
    chinese = score([heard("今天天气很好", "今天天汽很好")], RowErrors(), 1.0, language="zh")
    assert chinese.wer == pytest.approx(1 / 6)


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
    assert (
        from_list.errors
        == from_dataset.errors
        == word_errors(
            [row["text"] for row in plain], [row["prediction"] for row in from_list.rows], get_normalizer("en")
        )
    )


def test_time_is_that_of_the_model_and_of_the_audio() -> None:
    """A real-time factor per row, or over a padded window, is off by the length of the padding."""
    result = evaluate_model(talking_whisper(4), rows(["the"] * 4), toy_processor())
    assert result.audio_seconds == sum(SECONDS)
    assert 0 < result.seconds == pytest.approx(result.rtf * 11)


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
