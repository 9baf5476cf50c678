"""The WER filter: normalised, right at the threshold, honest about what it dropped, and never leaving nothing."""

from pathlib import Path

import pytest
import soundfile
from datasets import Dataset, IterableDataset
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hf_distil_whisper.data.sources import load_source, write_row_index
from hf_distil_whisper.pseudo_labels.filtering import (
    NUM_WORST,
    EmptyFilterError,
    FilterTally,
    JudgedRow,
    RowRules,
    filter_by_wer,
    filter_stream_by_wer,
    passing_rows,
    wer_histogram,
)
from toy_models import toy_audio

TEN_WORDS = "the quick brown fox jumps over a very lazy dog"
LOOP = "and then we went on " * 12


def rows(pairs: list[tuple[str | None, str | None]], **columns: list) -> Dataset:
    texts, labels = map(list, zip(*pairs, strict=True))
    columns = {"language": ["en"] * len(pairs), **columns}
    return Dataset.from_dict({"text": texts, "whisper_transcript": labels, **columns})


def test_threshold_is_inclusive_and_order_is_kept() -> None:
    """Equation 7 discards what exceeds λ: exactly 10 % stays, and rows that follow one another must go on doing so."""
    one_wrong = TEN_WORDS.replace("fox", "cat")
    two_wrong = one_wrong.replace("dog", "log")
    pairs = [(TEN_WORDS, one_wrong), (TEN_WORDS, two_wrong), (TEN_WORDS, TEN_WORDS)]
    filtered, report = filter_by_wer(rows(pairs, id=["a", "b", "c"]))
    assert filtered["id"] == ["a", "c"]
    assert (report.kept, report.dropped, report.threshold) == (2, 1, 0.1)
    assert report.before.speakers is None
    assert len(filter_by_wer(rows(pairs), 0.2)[0]) == 3


def test_texts_are_normalised_and_tokens_taken_out_before_they_are_compared() -> None:
    """With case, punctuation or timestamps counted as errors, the filter drops good labels by the thousand."""
    text = "MR. SMITH'S COLOUR OKAY"
    label = "<|startoftranscript|><|0.00|> mister Smith's COLOR,<|1.20|><|1.20|> okay?<|2.00|><|endoftext|>"
    _, report = filter_by_wer(rows([(text, label)]))
    plain = "mister Smith's COLOR, okay?"
    assert report.worst_kept == [{"id": "0", "wer": 0.0, "reference": text, "prediction": plain}]


def test_each_row_is_judged_in_its_own_language() -> None:
    """Words in Thai, which has no spaces, are whole sentences: one wrong letter would drop the row."""
    thai = "สวัสดีครับยินดีที่ได้รู้จัก"
    pairs = [("colour", "color"), ("colour", "color"), (thai, thai[:-1] + "ด"), (thai, thai[:-1] + "ด")]
    languages = ["en", "de", "Thai", None]
    filtered, report = filter_by_wer(rows(pairs, language=languages, id=list("abcd")), language="de")
    assert filtered["id"] == ["a", "c"]
    assert 0 < report.worst_kept[0]["wer"] < 0.1


def test_report_counts_hours_by_threshold_and_describes_the_corpus() -> None:
    """The table is what a threshold is chosen by: hours or shares of the wrong side lead to the wrong one."""
    pairs = [(TEN_WORDS, TEN_WORDS), (TEN_WORDS, "the quick brown fox jumps"), ("the end", "thank you all")]
    filtered, report = filter_by_wer(rows(pairs, duration=[3600.0, 1800.0, 900.0], speaker=["a", "b", None]), 0.25)
    assert len(filtered) == 1
    assert (report.hours_kept, report.hours_dropped) == (1.0, 0.75)
    assert report.by_threshold[0.25] == (pytest.approx(2 / 3), 1.0)
    assert report.by_threshold[0.8] == (pytest.approx(1 / 3), 1.5)
    assert [row["wer"] for row in report.worst_dropped] == [1.5, 0.5]
    table = report.table()
    assert "25.0%    66.7%       1.000  <- used" in table
    assert "1 of 3 rows kept, 1.000 of 1.750 h" in table
    # The columns of Table 13, and what the picture of the report shows.
    assert (report.before.rows, report.before.speakers, report.before.mean_words) == (3, 2, pytest.approx(22 / 3))
    assert report.after.line() == "1 rows, 1.000 h, 1 speakers, mean 3600.0 s, 10.0 words"
    assert {bin: hours for bin, hours in enumerate(report.histogram) if hours} == {0: 1.0, 10: 0.5, 20: 0.25}


def test_hours_come_from_the_audio_without_a_duration_column(tmp_path: Path) -> None:
    """A report of 0 hours kept looks like a filter that kept nothing."""
    path = tmp_path / "speech.wav"
    soundfile.write(path, toy_audio(9), 16_000)
    audio = [{"bytes": None, "path": str(path)}, {"bytes": None, "path": str(tmp_path / "missing.wav")}]
    _, report = filter_by_wer(rows([(TEN_WORDS, TEN_WORDS)] * 2, audio=audio))
    assert report.hours_kept == pytest.approx(9 / 3600)


def test_rows_without_reference_are_kept_apart_and_counted() -> None:
    """As WER 0 they would make the report look good, as WER 1 audio without transcripts could not be used at all."""
    pairs = [(TEN_WORDS, TEN_WORDS), (None, "hello"), (None, "la la la la"), (None, None), ("", "hello"), ("", "")]
    filtered, report = filter_by_wer(rows(pairs, truncated=[False, False, True, False, False, False]))
    assert filtered["whisper_transcript"] == [TEN_WORDS, "hello", ""]
    assert (report.unjudged, report.truncated, report.dropped) == (1, 2, 3)
    assert "1 rows without a reference kept unjudged, 2 dropped as cut off" in report.table()
    assert all(row["reference"] is not None for row in report.worst_kept)
    # Audio without transcripts is where hallucinations enter the training: loops and guesses are dropped.
    labels = [(None, TEN_WORDS), (None, LOOP), (None, "thank you")]
    filtered, report = filter_by_wer(rows(labels, mean_log_prob=[-0.3, -0.1, -1.7]))
    assert filtered["whisper_transcript"] == [TEN_WORDS]
    assert (report.by_reason["repetition"], report.by_reason["log_prob"]) == (1, 1)
    assert (report.before.mean_words, report.worst_kept) == (None, [])


def test_empty_result_raises_with_the_table_and_the_best_row(caplog: pytest.LogCaptureFixture) -> None:
    """A run that goes on with nothing fails hours later in the data loader; one row of twenty teaches one sentence."""
    pairs = [(TEN_WORDS, "thank you"), (TEN_WORDS, "the quick brown fox jumps over")]
    with pytest.raises(EmptyFilterError, match=r"None of 2 rows") as error:
        filter_by_wer(rows(pairs, duration=[3600.0, 3600.0]))
    message = str(error.value)
    assert "10.0%   100.0%       0.000  <- used" in message
    assert "40.0%    50.0%       1.000" in message
    assert "'the quick brown fox jumps over'" in message
    assert "Raise the threshold" in message
    with caplog.at_level("WARNING", logger="hf_distil_whisper"):
        filter_by_wer(rows([(TEN_WORDS, TEN_WORDS), *pairs[:1] * 19]))
    assert "dropped nearly all rows" in caplog.text


@pytest.mark.parametrize(("unit", "kept"), [(None, 2), ("character", 3)])
def test_a_stream_keeps_the_rows_that_the_data_set_keeps(unit: str | None, kept: int) -> None:
    """Each row is judged as it comes: by its words, or by its own signs where there is nothing to compare with."""
    pairs = [(TEN_WORDS, TEN_WORDS), (TEN_WORDS, "thank you"), (None, "well"), (None, LOOP), (TEN_WORDS, None)]
    labelled = rows([*pairs, ("C L A R K", "Clark.")], language=["en", None, "de", None, "en", "en"])
    filtered, _ = filter_by_wer(labelled, language="en", unit=unit)
    assert list(filter_stream_by_wer(labelled.to_iterable_dataset(), language="en", unit=unit)) == list(filtered)
    assert len(filtered) == kept


def filter_stream(labelled: Dataset, **options: object) -> IterableDataset:
    return filter_stream_by_wer(labelled.to_iterable_dataset(), **options)


@pytest.mark.parametrize("filtered_by", [filter_by_wer, filter_stream])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference_column": "sentence"}, r"no column 'sentence'.*text, whisper_transcript.*reference_column"),
        ({"threshold": -1}, "`threshold` is -1"),
        ({"threshold": 10}, "`threshold` is 10, expected a fraction between 0 and 1 .*: for 10 % write 0.1"),
    ],
)
def test_columns_and_thresholds_that_cannot_be_are_named(filtered_by: object, options: dict, message: str) -> None:
    """A KeyError from inside a dataset names neither the columns nor a remedy."""
    with pytest.raises(ValueError, match=message):
        filtered_by(rows([("a", "a")]), **options)


def test_the_language_is_that_of_the_row_or_of_its_label_or_has_to_be_given() -> None:
    """English by default, a German "um" is a filler: the word that the label lacks would be no error."""
    pair = ("Um zehn Uhr dreißig gehen wir um die Ecke", "Um zehn Uhr dreißig gehen wir die Ecke")
    marked = (pair[0], f"<|startoftranscript|><|de|><|transcribe|><|notimestamps|>{pair[1]}")
    for given in (rows([pair], language=["de"]), rows([marked], language=[None])):
        with pytest.raises(EmptyFilterError):
            filter_by_wer(given)
    unknown = rows([(None, "well"), pair], language=[None, None], id=["a", "b"])
    with pytest.raises(ValueError, match="`language` is missing: row b names none"):
        filter_by_wer(unknown)
    assert len(filter_by_wer(unknown, language="en")[0]) == 2


def test_nothing_to_judge_is_named() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        filter_by_wer(rows([("a", "a")]).select([]))
    with pytest.raises(ValueError, match=r"`min_mean_log_prob`.*no column 'mean_log_prob'"):
        filter_by_wer(rows([("a", "a")]), rules=RowRules(min_mean_log_prob=-1.0))


@pytest.mark.parametrize(
    ("rules", "column", "reason"),
    [
        (RowRules(drop_truncated=True), {"truncated": [False, True]}, "truncated"),
        (RowRules(max_compression_ratio=2.4), {"whisper_transcript": [TEN_WORDS, LOOP]}, "repetition"),
        (RowRules(max_repeated_ngrams=3), {"whisper_transcript": [TEN_WORDS, LOOP]}, "repetition"),
        (RowRules(drop_all_capitals=True), {"whisper_transcript": [TEN_WORDS, TEN_WORDS.upper()]}, "capitals"),
        (RowRules(min_mean_log_prob=-1.0), {"mean_log_prob": [-0.2, -1.5]}, "log_prob"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_drops_what_the_error_rate_lets_pass(rules: RowRules, column: dict, reason: str) -> None:
    """With references that repeat the same mistake, the error rate sees nothing."""
    columns = {"whisper_transcript": [TEN_WORDS] * 2} | column
    dataset = Dataset.from_dict({"text": columns["whisper_transcript"], **columns})
    assert len(filter_by_wer(dataset, language="en")[0]) == 2
    filtered, report = filter_by_wer(dataset, language="en", rules=rules)
    assert filtered["text"] == [TEN_WORDS]
    assert report.by_reason[reason] == report.dropped == 1
    assert report.by_threshold[1.0].share_dropped == 0.5
    assert f"1 {reason}" in report.table()


SILENCE = {"no_speech_prob": 0.93, "mean_log_prob": -0.8, "duration": 4.0}


@pytest.mark.parametrize(
    ("label", "facts", "reason"),
    [
        ("you", {}, "silence"),
        ("Thank you. Thank you!", {}, "silence"),
        ("Thank you.", {"no_speech_prob": 0.1}, None),  # somebody says so
        ("Thank you.", {"no_speech_prob": None}, None),
        ("Thank you, doctor.", {}, None),
        ("Vielen Dank.", {"language": "de"}, "silence"),
        ("Vielen Dank.", {}, None),
        ("ご視聴ありがとうございました", {"language": "ja"}, "silence"),
        ("Don't forget the bell", {}, "silence"),  # a user's own
        ("I'm going to put the water in the pot.", {"mean_log_prob": -1.2}, "silence"),
        ("", {}, None),
        ("the quick brown fox", {"no_speech_prob": 0.0, "duration": 0.3}, "speed"),
        ("fox", {"no_speech_prob": 0.0, "duration": 20.0}, "speed"),
        ("P-I-T-T-S-B-U-R-G-H", {"no_speech_prob": 0.0, "duration": 20.0}, None),
        ("今天天气很好我们去公园", {"language": "zh", "duration": 2.0}, None),
        ("今天天气很好我们去公园", {"language": "zh", "duration": 0.2}, "speed"),
        ("今天天气很好", {"language": "en"}, "script"),
        ("Я люблю jazz", {"language": "ru"}, None),
        ("ja volim jazz", {"language": "sr"}, None),
        ("1 2 3", {"language": "th"}, None),
    ],
)
def test_what_is_written_where_nothing_is_spoken_is_dropped_without_a_reference(
    tmp_path: Path, label: str, facts: dict, reason: str | None
) -> None:
    """Of 80 labels of noise, whisper-base's probabilities alone let 22 pass; a phrase that is spoken has to stay."""
    (tmp_path / "more.json").write_text('{"en": ["Don\'t forget the bell!"], "any": ["♪♪"]}', encoding="utf-8")
    columns = {name: [value] * 2 for name, value in ({"language": "en"} | SILENCE | facts).items()}
    dataset = rows([(None, label), (label, label)], **columns)
    rules = RowRules(silence_phrases=tmp_path / "more.json")
    filtered, report = filter_by_wer(dataset, rules=rules)
    assert len(filtered) == (2 if reason is None else 1)  # with a reference, it is the reference that decides
    assert {name for name, count in report.by_reason.items() if count} == ({reason} if reason else set())


def test_a_file_of_phrases_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    columns = {name: [value] for name, value in SILENCE.items()}
    for content in ("[", '["you"]', '{"en": 5}'):
        (tmp_path / "phrases.json").write_text(content)
        with pytest.raises(ValueError, match=r"`silence_phrases`: .*phrases.json cannot be read, expected JSON"):
            filter_by_wer(rows([(None, "you")], **columns), rules=RowRules(silence_phrases=tmp_path / "phrases.json"))


def test_nothing_spoken_nothing_known_and_texts_without_words_are_three_things() -> None:
    """A row whose reference is "..." was dropped for every word of its label, as one in which nothing is spoken."""
    columns = {name: [value] * 4 for name, value in (SILENCE | {"no_speech_prob": 0.0}).items()}
    pairs = [("", ""), ("", "the end"), ("...", "the end"), (None, "the end")]
    filtered, report = filter_by_wer(rows(pairs, id=list("abcd"), **columns))
    assert filtered["id"] == ["a", "c", "d"]
    assert report.unjudged == 2


def test_errors_are_counted_in_characters_by_choice_and_two_scripts_of_chinese_are_named() -> None:
    """Spaces are free in Korean; a teacher that writes simplified characters fails on every traditional reference."""
    korean = rows([("저는 학교에 갈 수 있습니다", "저는 학교에 갈수있습니다")], language=["ko"])
    with pytest.raises(EmptyFilterError):
        filter_by_wer(korean)
    assert len(filter_by_wer(korean, unit="character")[0]) == 1
    chinese = rows([("我們今天去學校", "我们今天去学校"), ("我们", "我们"), ("今天", "今天")], language=["zh"] * 3)
    _, report = filter_by_wer(chinese)
    assert (report.mixed_scripts, report.dropped) == (1, 1)
    assert "1 rows compare traditional with simplified Chinese" in report.table()


def test_scripts_without_capitals_are_not_all_capitals() -> None:
    """`text.upper() == text` holds for every Chinese, Hindi and Thai sentence: the reference script dropped them."""
    texts = ["你好 世界", "नमस्ते दुनिया", "สวัสดี ชาวโลก", "OK", "1 2 3"]
    dataset = rows([(text, text) for text in texts])
    assert len(filter_by_wer(dataset, language="basic", rules=RowRules(drop_all_capitals=True))[0]) == len(texts)


def test_a_row_index_is_a_source_until_its_rows_change(tmp_path: Path) -> None:
    """It holds row indices: after a change of the source they would select other rows."""
    labels = rows([(TEN_WORDS, TEN_WORDS), (TEN_WORDS, "thank you"), ("the end", "the end")], id=["a", "b", "c"])
    labels.add_column("audio", [{"bytes": b"", "path": None}] * 3).save_to_disk(str(tmp_path / "labels"))
    filtered, _ = passing_rows(labels)
    write_row_index(tmp_path / "kept", {"name_or_path": str(tmp_path / "labels")}, 3, filtered)
    assert load_source(tmp_path / "kept")["id"] == ["a", "c"]
    assert load_source(tmp_path / "kept").select([1, 0])["id"] == ["c", "a"]
    write_row_index(tmp_path / "last", {"name_or_path": str(tmp_path / "kept")}, 2, [1])  # a choice of a choice
    assert load_source(tmp_path / "last")["id"] == ["c"]
    write_row_index(tmp_path / "kept", {"name_or_path": str(tmp_path / "labels")}, 4, filtered)
    with pytest.raises(ValueError, match=r"among 4 rows.*has 3 now.*Filter it again"):
        load_source(tmp_path / "kept")


def test_histogram_marks_the_bins_that_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bin that the threshold cuts through does not pass whole."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    wer_histogram([3.0, 2.0, 1.0, 0.5, 0.25, 0.1], 0.25, tmp_path / "hours.svg")
    axes = figures[0].axes[0]
    assert [to_hex(bar.get_facecolor()) == "#0072b2" for bar in axes.patches] == [True, *[False] * 5]
    assert [bar.get_height() for bar in axes.patches] == [3.0, 2.0, 1.0, 0.5, 0.25, 0.1]


def test_rates_on_a_border_are_in_the_upper_bin_and_the_first_of_equal_rows_are_listed() -> None:
    """3 · 0.05 is more than 0.15 in floats: the row would be in the bin below, and one of 15 % above λ = 15 %."""
    tally = FilterTally(0.15, has_speakers=False)
    rates = [round(0.05 * step, 2) for step in range(30)]
    for index, wer in enumerate([*rates, *rates[:1] * NUM_WORST, *rates[-1:] * NUM_WORST, None]):
        tally.add(JudgedRow(index, str(index), "the end", "the end", wer, None, hours=1.0))
    report = tally.report()
    assert report.histogram == [1.0 + NUM_WORST, *[1.0] * 19, 10.0 + NUM_WORST]
    assert (report.kept, report.unjudged, report.by_reason["wer"]) == (5 + NUM_WORST, 1, 26 + NUM_WORST)
    assert report.by_threshold[0.15].hours_kept == report.hours_kept == 5.0 + NUM_WORST
    assert [row["id"] for row in report.worst_kept] == ["3", "2", "1", "0", *map(str, range(30, 36))]
    assert [row["id"] for row in report.worst_dropped] == ["29", *map(str, range(40, 49))]
    assert tally.best is not None
    assert tally.best.row_index == 0
