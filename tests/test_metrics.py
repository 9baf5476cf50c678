"""Error counts, repeated n-grams and the normalisers."""

import pickle

import numpy as np
import pytest

from hf_distil_whisper.metrics import (
    WordErrorRate,
    WordErrors,
    bootstrap_interval,
    character_errors,
    errors_in_language,
    get_normalizer,
    language_code,
    paired_bootstrap_interval,
    paired_bootstrap_p_value,
    repeated_ngrams,
    unify_typography,
    word_errors,
)


def test_word_errors_are_counted_as_worked_out_by_hand():
    """References and hypotheses exchanged leave the WER of long texts nearly right, but not its parts."""
    errors = word_errors(["the cat sat on the mat"], ["oh well the bat sat on mat"])
    assert errors == WordErrors(hits=4, substitutions=1, deletions=1, insertions=2)
    assert errors.num_words == 6
    assert errors.wer == pytest.approx(4 / 6)
    assert (errors.ser, errors.der, errors.ier) == pytest.approx((1 / 6, 1 / 6, 2 / 6))
    # A text alone is one row: `zip` over two strings would align letters and call it WER.
    assert word_errors("a big dog", "a big cat") == word_errors(["a big dog"], ["a big cat"])


def test_counts_of_shards_add_up_to_the_counts_of_the_whole():
    """Averaging the rates of batches gives short rows the weight of long ones."""
    references, hypotheses = ["a b c d", "e", "f g"], ["a b c d", "x", "f g h"]
    parts = [word_errors(*pair) for pair in zip(references, hypotheses, strict=True)]
    assert sum(parts) == parts[0] + parts[1] + parts[2] == word_errors(references, hypotheses)
    assert sum(parts[:0], WordErrors()) == WordErrors()


def test_words_against_an_empty_reference_are_insertions():
    """A hallucination on silence would otherwise cost nothing, or raise after hours of labelling."""
    errors = word_errors(["", "a b"], ["so much", "a b"])
    assert errors == WordErrors(hits=2, insertions=2)
    assert errors.wer == 1.0
    assert word_errors([""], ["a b"]).wer == 2.0
    assert word_errors([""], [""]).wer == 0.0
    assert word_errors([], []) == WordErrors()


def test_rows_without_a_partner_or_without_text_are_refused():
    """Lists of unequal length would be compared one row off, and `None` would be read as the word 'None'."""
    with pytest.raises(ValueError, match="2 references and 1 hypotheses"):
        word_errors(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="reference 1: expected a text, got None"):
        word_errors(["a", None], ["a", "b"])


def test_one_wrong_character_in_an_unspaced_sentence_is_one_error_in_eleven():
    """By words it is a WER of 100 %, and a filter at 10 % would throw nearly all Chinese away."""
    reference, hypothesis = "今天天气很好我们去公园", "今天天气很好我们去花园"
    assert character_errors([reference], [hypothesis]) == WordErrors(hits=10, substitutions=1)
    assert word_errors([reference], [hypothesis]).wer == 1.0
    assert errors_in_language(["今天天气很好。我们去公园。"], [hypothesis], "zh") == WordErrors(
        hits=10, substitutions=1
    )
    assert errors_in_language(["สวัสดี ครับ"], ["สวัสดีครับ"], "thai").wer == 0.0
    assert errors_in_language(["Hello, world"], ["hello word"], "en") == WordErrors(hits=1, substitutions=1)


def test_repeated_ngrams_are_all_minus_the_distinct_ones():
    """Counting pairs of equal n-grams instead would grow with the square of a loop's length."""
    assert repeated_ngrams("a b c d e f") == 0
    assert repeated_ngrams("thank you so very much " * 4) == 16 - 5
    assert repeated_ngrams("a a a a", n=2) == 2
    assert repeated_ngrams("too short") == 0
    with pytest.raises(ValueError, match="n >= 1"):
        repeated_ngrams("a", n=0)


def test_english_normaliser_is_the_published_one():
    """Transformers ships no spelling map: without one, 'colour' against 'color' counts as an error."""
    normalize = get_normalizer("en")
    assert normalize("Mr. Smith's COLOUR, isn't it?") == "mister smith is color is not it"
    assert normalize(" twenty-one  dollars ") == "$21"
    for name in ("english", "English", "en-GB", "en_us", "eng"):
        assert get_normalizer(name) is normalize


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("hi", "प्राचीन, समय।", "प्राचीन समय"),
        ("th", "ภาษาไทย!", "ภาษาไทย"),
        ("basic", "  Où est-il ? [rire] (bas) ", "où est il"),
        ("de", "Die Straße, 3 €", "die straße 3"),
    ],
)
def test_basic_normaliser_keeps_combining_marks(language: str, text: str, expected: str):
    """Whisper's own turns the vowel signs of Hindi and Thai into spaces: the WER is then one of consonants."""
    assert get_normalizer(language)(text) == expected


@pytest.mark.parametrize(
    ("language", "text", "same", "other"),
    [
        ("en", "And then...", "and then", "and them"),
        ("en", "Wait\u2026what", "wait what", "waitwhat"),
        ("en", "isn\u2019t it", "isn't it", "isnt it"),
        ("uk", "п\u02bcять", "п'ять", "пять"),
        ("fr", "l\u2019\u0153uvre \u00ab\u00a0vue\u00a0\u00bb", "l'oeuvre vue", "loeuvre vue"),
        ("en", "twenty\u2011one", "twenty-one", "twenty one one"),
        ("en", "twenty\u200b one", "21", "20"),
        ("en", "co\u00adoperate", "cooperate", "co operate"),
        ("en", "\ufeffhello\u200e", "hello", "hallo"),
        ("de", "u\u0308ber", "\u00fcber", "uber"),
        ("ko", "\u1112\u1161\u11ab\u3164글", "한글", "한 글"),
        ("fa", "می\u200cروم", "می روم", "میروم"),
        ("fa", "كتاب علي", "کتاب علی", "کتاب علا"),
        ("ar", "السَّلَامُ عَلَيْكُمْ", "السلام عليكم", "السلم عليكم"),
        ("ar", "العـــربية ١٢", "العربية 12", "العربيه 12"),
        ("he", "שָׁלוֹם עוֹלָם", "שלום עולם", "שלם עולם"),
        ("yi", "אַ\u05b8", "אַ\u05b8", "א"),
        ("hi", "क्\u200dष २०२४", "क्ष 2024", "कष 2024"),
        ("hi", "पानी", "पानी", "पनी"),
        ("th", "กา ๕", "กา5", "กำ5"),
        ("tr", "İstanbul'a", "istanbul'a", "\u0131stanbul'a"),
        ("tr", "ISPARTA i\u0307l", "\u0131sparta il", "isparta il"),
        ("ru", "за́мок", "замок", "замак"),
        ("ru", "мой", "мой", "мои"),
        ("ro", "\u0219i \u021bara", "\u015fi \u0163ara", "si tara"),
        ("ja", "\uff08笑\uff09ﾃｽﾄ", "テスト", "テスド"),
        ("cs", "ťuk", "ťuk", "tuk"),
    ],
)
def test_what_only_typography_or_encoding_tells_apart_is_equal(language: str, text: str, same: str, other: str):
    """Equal words in two encodings would be errors, and good labels be dropped; letters have to stay letters."""
    assert errors_in_language(text, same, language).wer == 0
    assert errors_in_language(same, text, language).wer == 0
    assert errors_in_language(text, other, language).wer > 0
    assert unify_typography(unify_typography(text)) == unify_typography(text)


def test_an_ellipsis_alone_is_no_word():
    assert get_normalizer("en")("...") == get_normalizer("de")("\u2026") == get_normalizer("en")("\u200b") == ""
    assert get_normalizer("en")("$3.50 or .5") == "$3.50 or .5"


def test_digit_strings_are_one_word_per_digit_only_in_the_basic_normaliser():
    """The English one joins them: one wrong digit of six would be a WER of 100 %, and six right ones a single hit."""
    reference, hypothesis = ["one two three"], ["one two four"]
    assert get_normalizer("en")("one two three") == "123"
    assert word_errors(reference, hypothesis, get_normalizer("en")).wer == 1.0
    assert word_errors(reference, hypothesis, get_normalizer("basic")) == WordErrors(hits=2, substitutions=1)


@pytest.mark.parametrize(
    ("code", "written"),
    [
        ("zh", "zh zh-CN zh-TW zh_HK cmn cmn-Hans-CN Chinese mandarin ZHO"),
        ("yue", "yue yue-HK zh-yue cantonese"),
        ("pt", "pt-BR pt_PT portuguese por"),
        ("en", "en-US EN en_us eng English <|en|>"),
        ("no", "no nb nb-NO nob norwegian"),
        ("he", "he iw iw-IL heb"),
        ("jw", "jw jv jv-ID javanese"),
        ("es", "es-419 castilian spa"),
        ("klingon", "klingon"),
    ],
)
def test_a_language_is_understood_as_people_write_it(code: str, written: str):
    """Labels of a corpus under "zh-CN" would all be left out, and Javanese under its own code be refused."""
    for language in written.split(" "):
        assert language_code(f" {language} ") == code


def test_normaliser_wants_a_language_and_goes_to_other_processes():
    """A default would score English with the basic normaliser, as the reference scripts do."""
    with pytest.raises(ValueError, match="expected a language"):
        get_normalizer(None)
    for language, text in (("en", "Okay."), ("tr", "ISI")):
        normalize = get_normalizer(language)
        assert pickle.loads(pickle.dumps(normalize))(text) == normalize(text)


def test_the_metric_loads_without_a_network_and_adds_batches_up():
    """`evaluate.load("wer")` downloads a script and fails offline."""
    metric = WordErrorRate()
    metric.add_batch(predictions=["hello word"], references=["Hello, world!"])
    metric.add_batch(predictions=["yes"], references=["Yes."])
    result = metric.compute(language="en")
    assert result["wer"] == pytest.approx(1 / 3)
    assert (result["hits"], result["substitutions"], result["num_words"]) == (2, 1, 3)
    assert metric.compute(predictions=["yes"], references=["Yes."])["wer"] == 1.0


def test_what_is_hard_for_both_models_is_no_difference_between_them() -> None:
    """Paired, the interval of a small difference is far narrower than what the rates alone would allow."""
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 8, size=300)
    baseline = [WordErrors(hits=10 - int(wrong), substitutions=int(wrong)) for wrong in hard]
    better = [row if number % 10 else WordErrors(hits=10) for number, row in enumerate(baseline)]
    low, high = paired_bootstrap_interval(better, baseline)
    difference = sum(better).wer - sum(baseline).wer
    assert low < difference < high < 0
    alone = bootstrap_interval(baseline)
    assert high - low < 0.7 * (alone[1] - alone[0])
    assert paired_bootstrap_interval(baseline, baseline) == (0.0, 0.0)
    with pytest.raises(ValueError, match="the same utterances, got 2 and 1 rows"):
        paired_bootstrap_interval(baseline[:2], baseline[:1])


def test_the_p_value_is_the_share_of_draws_in_which_the_difference_turns() -> None:
    """Of three rows one differs: the share of the draws that miss it three times is (2/3)³."""
    wrong, right = WordErrors(substitutions=1), WordErrors(hits=1)
    p_value = paired_bootstrap_p_value([right] * 3, [wrong, right, right], resamples=20_000)
    assert p_value == pytest.approx(2 * 8 / 27, abs=0.02)
    # Every draw of a single utterance shows the same difference, whatever it is worth.
    assert [paired_bootstrap_p_value([right] * rows, [wrong] * rows) for rows in (1, 2, 5)] == [1.0, 0.5, 0.0625]


def test_the_p_value_agrees_with_the_interval_and_with_the_order_of_the_models() -> None:
    """A difference that is significant while its interval contains 0 would contradict itself."""
    rng = np.random.default_rng(3)

    def scored(most: int) -> list[WordErrors]:
        wrong = rng.integers(0, most + 1, size=200).tolist()
        return [WordErrors(hits=10 - count, substitutions=count) for count in wrong]

    baseline = scored(4)
    for other, significant in ((scored(4), False), (scored(6), True)):
        low, high = paired_bootstrap_interval(other, baseline)
        p_value = paired_bootstrap_p_value(other, baseline)
        assert (p_value < 0.05) == significant == (not low <= 0 <= high)
        assert paired_bootstrap_p_value(baseline, other) == p_value
    assert paired_bootstrap_p_value(baseline, baseline) == 1.0
    assert paired_bootstrap_p_value([WordErrors(hits=1)] * 50, [WordErrors(deletions=1)] * 50) == 2 / 1001
