"""Word and character errors, repeated n-grams, text normalisers and bootstrap intervals.

Functions return counts, which add up over shards and processes; WER is a fraction, printed as a percentage (paper,
sections 7.4 and 8.4, appendix B.2).
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial

import datasets
import evaluate
import jiwer
import numpy as np
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

Normalizer = Callable[[str], str]

LANGUAGES_WITHOUT_SPACES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Codes of languages without spaces between words. A sentence would be one "word", and a single wrong character a WER
of 100 %: `errors_in_language` counts characters instead."""


@dataclass(frozen=True)
class WordErrors:
    """Counts of an alignment of hypotheses to references, of words or characters. Supports `+` and `sum`.

    Args:
        hits (`int`, *optional*, defaults to 0): correct words of the reference.
        substitutions (`int`, *optional*, defaults to 0): words of the reference that were replaced by another.
        deletions (`int`, *optional*, defaults to 0): words of the reference that are missing.
        insertions (`int`, *optional*, defaults to 0): additional words of the hypothesis.

    Example:
        ```python
        >>> errors = word_errors(["the cat sat"], ["the cat sat down"]) + word_errors(["a dog"], ["a fog"])
        >>> errors
        WordErrors(hits=4, substitutions=1, deletions=0, insertions=1)
        >>> errors.wer
        0.4
        ```
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: "WordErrors") -> "WordErrors":
        if not isinstance(other, WordErrors):
            return NotImplemented
        return WordErrors(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    def __radd__(self, other: int) -> "WordErrors":
        # `sum` starts from the integer 0.
        return self if other == 0 else NotImplemented

    @property
    def num_words(self) -> int:
        """Words of the references: hits + substitutions + deletions."""
        return self.hits + self.substitutions + self.deletions

    @property
    def wer(self) -> float:
        """(S + D + I) / words of the references; without any, as in jiwer, the number of insertions."""
        return self._rate(self.substitutions + self.deletions + self.insertions)

    @property
    def ser(self) -> float:
        """Substitution error rate: S / words of the references."""
        return self._rate(self.substitutions)

    @property
    def der(self) -> float:
        """Deletion error rate: D / words of the references."""
        return self._rate(self.deletions)

    @property
    def ier(self) -> float:
        """Insertion error rate: I / words of the references, the paper's measure of hallucination (table 8)."""
        return self._rate(self.insertions)

    def _rate(self, count: int) -> float:
        return count / max(self.num_words, 1)


def word_errors(
    references: str | Sequence[str], hypotheses: str | Sequence[str], normalizer: Normalizer | None = None
) -> WordErrors:
    """Counts the word errors of all rows together, with jiwer's alignment.

    Args:
        references (`str` or `Sequence[str]`): reference texts. For an empty one every word of the hypothesis is an
            insertion.
        hypotheses (`str` or `Sequence[str]`): transcripts in the same order.
        normalizer (`Callable[[str], str]`, *optional*): applied to both first; see [`get_normalizer`].

    Raises:
        ValueError: if the lengths differ, or a text is `None`.

    Example:
        ```python
        >>> word_errors(["Hello, world!"], ["hello word"], normalizer=get_normalizer("en"))
        WordErrors(hits=1, substitutions=1, deletions=0, insertions=0)
        ```
    """
    return _counts(jiwer.process_words(*_texts(references, hypotheses, normalizer)))


def character_errors(
    references: str | Sequence[str], hypotheses: str | Sequence[str], normalizer: Normalizer | None = None
) -> WordErrors:
    """As [`word_errors`], by characters (code points, spaces between words included): `.wer` is then the CER."""
    return _counts(jiwer.process_characters(*_texts(references, hypotheses, normalizer)))


def errors_in_language(
    references: str | Sequence[str], hypotheses: str | Sequence[str], language: str, unit: str | None = None
) -> WordErrors:
    """Counts errors after the language's normaliser, in its [`counting_unit`]; characters without the spaces."""
    normalizer = get_normalizer(language)
    if counting_unit(language, unit) == "character":
        return character_errors(references, hypotheses, lambda text: normalizer(text).replace(" ", ""))
    return word_errors(references, hypotheses, normalizer)


def counting_unit(language: str, unit: str | None = None) -> str:
    """What errors are counted in: `unit`, by default "character" for `LANGUAGES_WITHOUT_SPACES`, else "word".

    Characters are also the fair unit where spaces are free, as in Korean: a space left out is two wrong words.

    Raises:
        ValueError: for another unit.
    """
    if unit not in (None, "word", "character"):
        raise ValueError(f"`unit` is {unit!r}, expected 'word' or 'character'.")
    return unit or ("character" if is_written_without_spaces(language) else "word")


def is_written_without_spaces(language: str) -> bool:
    """Whether the errors of a language are counted in characters, since it has no spaces between words."""
    return language_code(language) in LANGUAGES_WITHOUT_SPACES


_SCRIPTS = {
    "ARABIC": "ar fa ur ps sd",
    "CYRILLIC": "ru uk be bg mk sr kk tg mn tt ba",
    "HEBREW": "he yi",
    "GREEK": "el",
    "ARMENIAN": "hy",
    "GEORGIAN": "ka",
    "DEVANAGARI": "hi mr ne sa",
    "BENGALI": "bn as",
    "GURMUKHI": "pa",
    "GUJARATI": "gu",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "THAI": "th",
    "LAO": "lo",
    "MYANMAR": "my",
    "TIBETAN": "bo",
    "KHMER": "km",
    "ETHIOPIC": "am",
    "HANGUL": "ko",
    "CJK": "zh yue ja ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
}
_LATIN_TOO = frozenset("sr mn kk tg tt sd pa az uz tk".split())
"""Languages of these that are also written in Latin letters; all that are not listed are written in them alone."""


def in_script_of(text: str, language: str) -> bool:
    """Whether at most half of the letters of a text are of a script that the language is not written in.

    True for a text without letters, and for `"basic"`.

    Example:
        ```python
        >>> in_script_of("ご視聴ありがとう", "en"), in_script_of("Я люблю jazz", "ru")
        (False, True)
        ```
    """
    code = language_code(language)
    if code == "basic":
        return True
    scripts = {script for script, codes in _SCRIPTS.items() if code in codes.split()}
    if not scripts or code in _LATIN_TOO:
        scripts.add("LATIN")
    letters = [unicodedata.name(character, "").split(" ")[0] for character in text if character.isalpha()]
    return 2 * sum(script in scripts for script in letters) >= len(letters)


def chinese_script(text: str) -> str | None:
    """Whether a text is "simplified" or "traditional", by characters of one of them alone; None if none decides."""
    difference = sum(map(_simplified_or_traditional, text))
    return None if difference == 0 else "simplified" if difference > 0 else "traditional"


@lru_cache(maxsize=50_000)
def _simplified_or_traditional(character: str) -> int:
    """1 for a character of simplified Chinese alone, -1 of traditional alone, else 0, by the national code pages."""
    in_pages = []
    for page in ("gb2312", "big5"):
        try:
            character.encode(page)
            in_pages.append(1)
        except UnicodeEncodeError:
            in_pages.append(0)
    return in_pages[0] - in_pages[1]


def bootstrap_interval(
    rows: Sequence[WordErrors], level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap confidence interval of the word error rate of all rows (Bisani & Ney, 2004).

    Utterances are resampled with replacement, so the errors of an utterance stay together.

    Args:
        rows (`Sequence[WordErrors]`): counts of each utterance.
        level (`float`, *optional*, defaults to 0.95): confidence level.
        resamples (`int`, *optional*, defaults to 1000): number of resamples.
        seed (`int`, *optional*, defaults to 0): seed of the resampling.

    Returns:
        `tuple[float, float]`: lower and upper end, fractions.

    Raises:
        ValueError: without rows.
    """
    if not rows:
        raise ValueError("bootstrap_interval: expected at least one row, got none.")
    counts = np.array([_errors_and_words(row) for row in rows])
    return _interval(_resampled_rates(counts[None], resamples, seed)[0], level)


def paired_bootstrap_interval(
    rows: Sequence[WordErrors],
    baseline: Sequence[WordErrors],
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap confidence interval of the difference of two models' word error rates (Bisani & Ney, 2004).

    Utterances are resampled for both models together: one that is hard for both adds no difference. Arguments as for
    [`bootstrap_interval`], `baseline` being the counts of the other model on the same utterances.

    Returns:
        `tuple[float, float]`: lower and upper end of the first rate minus the second, fractions.

    Raises:
        ValueError: without rows, or for two lists of different lengths.
    """
    return _interval(_resampled_differences(rows, baseline, resamples, seed), level)


def paired_bootstrap_p_value(
    rows: Sequence[WordErrors], baseline: Sequence[WordErrors], resamples: int = 1000, seed: int = 0
) -> float:
    """Two-sided p-value of the difference of two models' word error rates on the same utterances.

    Bisani & Ney (2004) resample both models together; the share of resamples in which one is better is their
    "probability of improvement", and its complement p₁ the share in which the difference is 0 or has the other sign.
    The result is 2 · p₁, with one such resample added, so that it is at least 2 / (resamples + 1). It is below 0.05
    where [`paired_bootstrap_interval`] excludes 0, except for ties and for fewer than six utterances: with n
    utterances it is at least 2 / 2ⁿ, the minimum of a permutation test, and 1 for equal rates.

    Arguments and errors as for [`paired_bootstrap_interval`].
    """
    differences = _resampled_differences(rows, baseline, resamples, seed)
    observed = sum(rows, WordErrors()).wer - sum(baseline, WordErrors()).wer
    # Where the resample contradicts the sign of the measured difference, or shows none.
    turned = int((differences * np.sign(observed) <= 0).sum())
    return min(1.0, max(2 * (turned + 1) / (resamples + 1), 2.0 ** (1 - len(rows))))


def _resampled_differences(
    rows: Sequence[WordErrors], baseline: Sequence[WordErrors], resamples: int, seed: int
) -> np.ndarray:
    """Difference of the two rates, (resamples,), on the same resamples of the utterances."""
    if not rows or len(rows) != len(baseline):
        raise ValueError(
            f"Two models are compared on the same utterances, got {len(rows)} and {len(baseline)} rows of them: "
            "expected one each for every utterance, at least one."
        )
    counts = np.array([[_errors_and_words(row) for row in model] for model in (rows, baseline)])
    ours, theirs = _resampled_rates(counts, resamples, seed)
    return ours - theirs


def _errors_and_words(row: WordErrors) -> tuple[int, int]:
    return row.substitutions + row.deletions + row.insertions, row.num_words


def _resampled_rates(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Rates (models, resamples) of errors and words (models, rows, 2) resampled with replacement."""
    rng, rows = np.random.default_rng(seed), counts.shape[1]
    # One draw of indices serves all models, which pairs them. In a loop, since the indices of 1,000 resamples of a
    # million utterances would fill 8 GB.
    draws = np.stack([counts[:, rng.integers(rows, size=rows)].sum(axis=1) for _ in range(resamples)], axis=1)
    return draws[..., 0] / np.maximum(draws[..., 1], 1)


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def repeated_ngrams(text: str, n: int = 5) -> int:
    """Number of n-grams minus the number of distinct ones (Table 8: "5-Dup.").

    Args:
        text (`str`): split at white space; normalise it first to ignore case and punctuation.
        n (`int`, *optional*, defaults to 5): words of an n-gram.

    Returns:
        `int`: 0 for a text without repetition or shorter than `n` words.

    Raises:
        ValueError: if `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"repeated_ngrams: expected n >= 1, got {n}.")
    words = text.split()
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(ngrams) - len(set(ngrams))


def get_normalizer(language: str) -> Normalizer:
    """The text normaliser with which a language is scored and filtered.

    Args:
        language (`str`): `"en"` (also `"english"`, `"en-GB"`) selects Whisper's published English one. `"basic"`
            and every other language select the basic one: lower case, without punctuation, symbols and text in
            brackets. It keeps combining marks, where Whisper's turns the vowel signs of Hindi or Thai into spaces,
            and digits. Both come behind [`unify_typography`].

    Returns:
        `Callable[[str], str]`: its output has no leading, trailing or double spaces.

    Raises:
        ValueError: if no language is given: the English and the basic normaliser give different rates.

    The English normaliser joins spoken digits ("one two" becomes "12", one word): score digit strings with `"basic"`.

    Example:
        ```python
        >>> get_normalizer("en")("Mr. Smith's colour"), get_normalizer("hi")("प्राचीन, समय!")
        ("mister smith is color", "प्राचीन समय")
        ```
    """
    if not language or not isinstance(language, str):
        raise ValueError(
            f"get_normalizer: expected a language such as 'en' or 'hi', or 'basic', got {language!r}. English and "
            "basic normalisation give different rates: pass `language`."
        )
    code = language_code(language)
    if code == "en":
        return _normalize_english
    return partial(_normalize_basic, language=code) if code in ("az", "tr", "yi") else _normalize_basic


# Code points, since many of these characters look alike. U+02BC is a letter to Unicode, U+00B4 an accent.
_APOSTROPHES = dict.fromkeys(
    (0x60, 0xB4, *range(0x2B9, 0x2BE), 0x2C8, 0x2018, 0x2019, 0x201B, 0x2032, 0x2035, 0xA78B, 0xA78C, 0xFF07), "'"
)
# One letter with two code points: yeh, kaf and heh of Arabic and Persian or Urdu, comma and cedilla of Romanian.
_LETTERS = {0x64A: "\u06cc", 0x643: "\u06a9", 0x6C1: "\u0647", 0x218: "Ş", 0x219: "ş", 0x21A: "Ţ", 0x21B: "ţ"}
_LETTERS |= {ord("œ"): "oe", ord("Œ"): "OE"}  # a ligature that NFKC leaves
_HALF_SPACE = re.compile("(?<=[\u0600-\u06ff])[\u200b\u200c](?=[\u0600-\u06ff])")
# Fillers, variation selectors, tatweel and its like: invisible, but no format characters (Cf) to Unicode.
_INVISIBLE = re.compile(
    "[\u034f\u0640\u07fa\u115f\u1160\u17b4\u17b5\u180a-\u180d\u3164\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_ARABIC_VOWELS = re.compile(
    "[\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]"
)
_HEBREW_POINTS = re.compile("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]")
_STRESS = re.compile("(?<=[\u0400-\u04ff])\u0301")


def unify_typography(text: str, language: str | None = None) -> str:
    r"""Writes in one way what only typography or encoding tells apart, in every language.

    Apostrophes of every kind, ellipses, ligatures, wide and composed characters (NFKC), digits of other scripts,
    letters with two code points, the dotted capital I of Turkish. Invisible and joining characters go, and so do marks
    that a script writes at will: Arabic vowel signs, Hebrew points, stress in Cyrillic. Vowel signs of Indic and Thai
    script stay.

    Args:
        text (`str`): as written; case and punctuation stay for the normaliser behind.
        language (`str`, *optional*): code. In Turkish and Azerbaijani ("tr", "az") the lower case of I has no dot; in
            Yiddish ("yi") the points are letters and stay.

    Example:
        ```python
        >>> unify_typography("Wait\u2026 isn\u2019t it २०२४?")
        "Wait  isn't it 2024?"
        ```
    """
    # The half space of Persian separates what readers take for two words; elsewhere these characters only join.
    text = _HALF_SPACE.sub(" ", text.translate(_APOSTROPHES))
    text = unicodedata.normalize("NFKC", text)
    text = _INVISIBLE.sub("", text).translate(_LETTERS)
    text = _STRESS.sub("", _ARABIC_VOWELS.sub("", text))
    if language != "yi":
        text = _HEBREW_POINTS.sub("", text)
    if language in ("az", "tr"):
        text = text.replace("I", "\u0131")
    # Python's lower case of İ is i with a dot above, as corpora that were lower-cased hold it too.
    text = text.replace("İ", "i").replace("i\u0307", "i")
    text = re.sub(r"\.{2,}", " ", text)
    if text.isascii():
        return text
    return "".join(_unified(character) for character in text)


def _unified(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return "" if category == "Cf" or (category == "Cc" and not character.isspace()) else character


class WordErrorRate(evaluate.Metric):
    """WER as an `evaluate.Metric` that needs no network: `evaluate.load("wer")` would download a script.

    `compute` takes `predictions`, `references` and, *optionally*, `language` (see [`get_normalizer`]; by default the
    texts are compared as they are) and returns `wer` (a fraction) with the counts `hits`, `substitutions`,
    `deletions`, `insertions` and `num_words`.

    Example:
        ```python
        >>> WordErrorRate().compute(predictions=["hello word"], references=["Hello, world!"], language="en")["wer"]
        0.5
        ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Word error rate with its counts, by jiwer, after the normaliser of a language.",
            citation="",
            inputs_description="predictions and references: lists of texts in the same order.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions: list[str], references: list[str], language: str | None = None
    ) -> dict[str, float | int]:
        errors = word_errors(references, predictions, get_normalizer(language) if language is not None else None)
        return {"wer": errors.wer, **asdict(errors), "num_words": errors.num_words}


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> WordErrors:
    return WordErrors(output.hits, output.substitutions, output.deletions, output.insertions)


def _texts(
    references: str | Sequence[str], hypotheses: str | Sequence[str], normalizer: Normalizer | None
) -> tuple[list[str], list[str]]:
    # A single text would be iterated letter by letter.
    references = [references] if isinstance(references, str) else list(references)
    hypotheses = [hypotheses] if isinstance(hypotheses, str) else list(hypotheses)
    if len(references) != len(hypotheses):
        raise ValueError(
            f"expected one hypothesis for each reference, got {len(references)} references and {len(hypotheses)} "
            "hypotheses. They would be compared with the wrong partner."
        )
    for name, texts in (("reference", references), ("hypothesis", hypotheses)):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"{name} {row}: expected a text, got {text!r}. Leave rows without text out and count them."
                )
    if normalizer is None:
        return references, hypotheses
    return [normalizer(text) for text in references], [normalizer(text) for text in hypotheses]


# Codes of ISO 639 that people write for languages whose token is another: jw and no are Whisper's, iw and in are old.
_OTHER_CODES = dict(
    pair.split("=")
    for pair in (
        "iw=he jv=jw jav=jw nb=no nob=no cmn=zh ji=yi in=id fil=tl prs=fa bokmål=no farsi=fa eng=en deu=de "
        "ger=de fra=fr fre=fr spa=es por=pt ita=it nld=nl dut=nl rus=ru ukr=uk pol=pl tur=tr ara=ar arb=ar "
        "heb=he hin=hi zho=zh chi=zh jpn=ja kor=ko vie=vi tha=th ind=id swe=sv dan=da nor=no nno=nn fin=fi "
        "ces=cs cze=cs ell=el gre=el hun=hu ron=ro rum=ro fas=fa per=fa urd=ur ben=bn tam=ta tel=te"
    ).split()
)


def language_code(language: str) -> str:
    """Whisper's code of a language as people write it: a code, a name, with a region, in any case; others unchanged.

    Example:
        ```python
        >>> [language_code(one) for one in ("zh-CN", "pt_BR", "iw", "nb-NO", " German ", "<|fr|>")]
        ['zh', 'pt', 'he', 'no', 'de', 'fr']
        ```
    """
    name = language.strip().lower().removeprefix("<|").removesuffix("|>")
    subtags = name.replace("_", "-").split("-")
    if name in TO_LANGUAGE_CODE:
        return TO_LANGUAGE_CODE[name]
    code = "yue" if subtags[:2] == ["zh", "yue"] else subtags[0]
    return TO_LANGUAGE_CODE.get(code, _OTHER_CODES.get(code, code))


# Functions of the module rather than closures, so that a normaliser can be sent to another process.
def _normalize_english(text: str) -> str:
    return _published_normalizer(english=True)(unify_typography(text)).strip()


def _normalize_basic(text: str, language: str | None = None) -> str:
    return _published_normalizer(english=False)(unify_typography(text, language)).strip()


@lru_cache
def _published_normalizer(english: bool) -> Normalizer:
    return EnglishTextNormalizer() if english else BasicTextNormalizer(preserve_marks=True)
