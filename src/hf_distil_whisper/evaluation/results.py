"""What an evaluation leaves behind: the table for a terminal, `results.json`, the rows and the worst of them.

Knows results by set and model; percentages are made here, everything else is counts and fractions.
"""

import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jiwer
from pyarrow.parquet import write_table

from hf_distil_whisper.evaluation.evaluate import (
    COUNTS,
    KINDS,
    EvaluationResult,
)
from hf_distil_whisper.evaluation.significance import (
    compare_results,
    confidence_interval,
)
from hf_distil_whisper.metrics import WordErrors

Operation = Literal["hit", "substitution", "deletion", "insertion"]

_OPERATIONS: dict[str, Operation] = {
    "equal": "hit",
    "substitute": "substitution",
    "delete": "deletion",
    "insert": "insertion",
}
_MARKS = {"hit": "", "substitution": "S", "deletion": "D", "insertion": "I"}
_MISSING = "***"


class AlignedWord(NamedTuple):
    """A word of the reference and what was recognised in its place.

    Args:
        operation (`str`): "hit", "substitution", "deletion" or "insertion".
        reference (`str`, *optional*): None for an insertion.
        hypothesis (`str`, *optional*): None for a deletion.
    """

    operation: Operation
    reference: str | None
    hypothesis: str | None


@dataclass(frozen=True)
class AlignedUtterance:
    """A row of a data set with its words aligned.

    Args:
        id (`str`): of the row.
        wer (`float`): its rate, a fraction.
        words (`list[AlignedWord]`): in order; characters for languages without spaces.
    """

    id: str
    wer: float
    words: list[AlignedWord]

    @property
    def num_errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return sum(word.operation != "hit" for word in self.words)

    def text(self, width: int = 110) -> str:
        """The id with its rate, then the lines of [`alignment_text`].

        Args:
            width (`int`, *optional*, defaults to 110): characters of a line at most.
        """
        errors = f"{self.num_errors} error{'' if self.num_errors == 1 else 's'}"
        return f"{self.id}: {errors}, WER {self.wer:.1%}\n{alignment_text(self.words, width)}"


def align_words(reference: str, hypothesis: str, *, characters: bool = False) -> list[AlignedWord]:
    """Aligns the words of two texts with as few errors as possible.

    Args:
        reference (`str`): what was spoken; normalise both texts first if case and punctuation shall not count.
        hypothesis (`str`): what was recognised.
        characters (`bool`, *optional*, defaults to `False`): align characters, white space left out.

    Returns:
        `list[AlignedWord]`: in order, as many of each operation as [`word_errors`] counts.

    Example:
        ```python
        >>> align_words("the cat sat", "a cat")
        [('substitution', 'the', 'a'), ('hit', 'cat', 'cat'), ('deletion', 'sat', None)]
        ```
    """
    if characters:
        reference, hypothesis = "".join(reference.split()), "".join(hypothesis.split())
    found = (jiwer.process_characters if characters else jiwer.process_words)(reference, hypothesis)
    spoken, recognised = found.references[0], found.hypotheses[0]
    words = []
    for part in found.alignments[0]:
        ours = spoken[part.ref_start_idx : part.ref_end_idx]
        theirs = recognised[part.hyp_start_idx : part.hyp_end_idx]
        for place in range(max(len(ours), len(theirs))):
            pair = (ours[place] if ours else None, theirs[place] if theirs else None)
            words.append(AlignedWord(_OPERATIONS[part.type], *pair))
    return words


def alignment_text(words: Sequence[AlignedWord], width: int = 110) -> str:
    """Aligned words as text: lines REF and HYP with errors in capitals and `***` for a missing word, and their kinds.

    Args:
        words (`Sequence[AlignedWord]`): from [`align_words`].
        width (`int`, *optional*, defaults to 110): characters of a line at most; longer texts go on in further blocks.

    Example:
        ```python
        >>> print(alignment_text(align_words("the cat sat", "a cat")))
        REF: THE cat SAT
        HYP: A   cat ***
             S       D
        ```
    """
    blocks: list[list[str]] = [["REF:", "HYP:", "    "]]
    for word in words:
        cells = [_shown(word, word.reference), _shown(word, word.hypothesis), _MARKS[word.operation]]
        size = max(map(_columns, cells))
        if _columns(blocks[-1][0]) + 1 + size > width and len(blocks[-1][0]) > 4:
            blocks.append(["REF:", "HYP:", "    "])
        for line, cell in enumerate(cells):
            blocks[-1][line] += " " + cell + " " * (size - _columns(cell))
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def worst_utterances(result: EvaluationResult, k: int = 10) -> list[AlignedUtterance]:
    """The rows that cost the most errors, their normalised texts aligned.

    By the number of errors, where a rate would put each one-word utterance with one error first; of as many errors,
    the higher rate comes first. Rows without an error or a reference are none of them.

    Args:
        result (`EvaluationResult`): of [`evaluate_model`] or [`evaluate_long_form`].
        k (`int`, *optional*, defaults to 10): rows at most.

    Returns:
        `list[AlignedUtterance]`: worst first.

    Raises:
        ValueError: if `k` is not positive.
    """
    if k < 1:
        raise ValueError(f"worst_utterances: expected k >= 1, got {k}.")
    wrong = [row for row in result.rows if row["wer"]]
    worst = sorted(wrong, key=lambda row: (-_num_errors(row), -row["wer"]))[:k]
    characters = result.unit == "character"
    return [
        AlignedUtterance(
            row["id"],
            row["wer"],
            align_words(row["normalized_reference"], row["normalized_prediction"], characters=characters),
        )
        for row in worst
    ]


def _num_errors(row: dict) -> int:
    return row["substitutions"] + row["deletions"] + row["insertions"]


def _shown(word: AlignedWord, text: str | None) -> str:
    if text is None:
        return _MISSING
    return text if word.operation == "hit" else text.upper()


def _columns(text: str) -> int:
    """Places in a terminal: East Asian characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def relative_error_rate(wer: float, baseline: float) -> float:
    """How much larger a word error rate is than a baseline's, as a fraction of the baseline's (Table 6: "RER").

    Args:
        wer (`float`): of the model.
        baseline (`float`): of the model that it is compared with, in the same unit.

    Returns:
        `float`: (wer - baseline) / baseline; negative where the model is better. Of a baseline without errors: 0.0 if
        the model makes none either, else infinity.

    Raises:
        ValueError: if a rate is negative or not a number.

    Example:
        ```python
        >>> f"{relative_error_rate(0.105, 0.107):.1%}"
        '-1.9%'
        ```
    """
    for name, rate in (("wer", wer), ("baseline", baseline)):
        if not rate >= 0:
            raise ValueError(f"`{name}`: expected a word error rate of at least 0, got {rate}.")
    if baseline == 0:
        return 0.0 if wer == 0 else math.inf
    return (wer - baseline) / baseline


def macro_average(errors: Mapping[str, WordErrors]) -> float:
    """Mean of the sets' word error rates, each set with the same weight: the average of the paper's tables.

    Args:
        errors (`Mapping[str, WordErrors]`): by set.

    Raises:
        ValueError: without sets, or for a set without words.
    """
    _check_sets(errors, "errors")
    return sum(one.wer for one in errors.values()) / len(errors)


def micro_average(errors: Mapping[str, WordErrors]) -> float:
    """Word error rate of all sets together, each word with the same weight: errors of all sets by words of all sets.

    Args:
        errors (`Mapping[str, WordErrors]`): by set.

    Raises:
        ValueError: without sets, or for a set without words.
    """
    _check_sets(errors, "errors")
    return sum(errors.values(), WordErrors()).wer


@dataclass(frozen=True)
class SetAverages:
    """Averages of a model over test sets, as in the last three lines of Table 16.

    Args:
        in_distribution (`dict[str, WordErrors]`): by set, those that belong to the training data.
        out_of_distribution (`dict[str, WordErrors]`): by set, all others.
    """

    in_distribution: dict[str, WordErrors]
    out_of_distribution: dict[str, WordErrors]

    @property
    def groups(self) -> dict[str, dict[str, WordErrors]]:
        """The sets of every line by its name in the table; a line without sets is left out."""
        named = {
            "ID Average": self.in_distribution,
            "OOD Average": self.out_of_distribution,
            "Average": self.in_distribution | self.out_of_distribution,
        }
        return {name: errors for name, errors in named.items() if errors}

    @property
    def macro(self) -> dict[str, float]:
        """Mean of the sets' rates by line, fractions; what Table 16 shows."""
        return {name: macro_average(errors) for name, errors in self.groups.items()}

    @property
    def micro(self) -> dict[str, float]:
        """Rate of all sets together by line, fractions."""
        return {name: micro_average(errors) for name, errors in self.groups.items()}


def set_averages(errors: Mapping[str, WordErrors], in_distribution: Iterable[str]) -> SetAverages:
    """Averages in distribution, out of distribution and over all sets (Table 16).

    Args:
        errors (`Mapping[str, WordErrors]`): of one model by set.
        in_distribution (`Iterable[str]`): names of the sets whose training split the model has seen; may be empty.

    Returns:
        [`SetAverages`].

    Raises:
        ValueError: without sets, for a set without words, or for a name that is not among the sets.

    Example:
        ```python
        >>> set_averages({"test": WordErrors(9, 1), "unseen": WordErrors(7, 3)}, ["test"]).macro
        {'ID Average': 0.1, 'OOD Average': 0.3, 'Average': 0.2}
        ```
    """
    _check_sets(errors, "errors")
    inside = set(in_distribution)
    unknown = sorted(inside - set(errors))
    if unknown:
        raise ValueError(
            f"`in_distribution`: {', '.join(unknown)} not among the sets that were scored, {', '.join(errors)}. "
            "Score it too, or leave it out."
        )
    return SetAverages(
        {name: one for name, one in errors.items() if name in inside},
        {name: one for name, one in errors.items() if name not in inside},
    )


@dataclass(frozen=True)
class EffectiveRobustness:
    """A model beside a baseline, on a set in distribution (the reference) and on sets out of it: Table 6.

    Args:
        reference (`str`): name of the set in distribution.
        baseline (`dict[str, WordErrors]`): of the baseline by set, the reference first.
        model (`dict[str, WordErrors]`): of the model, in the same order.
    """

    reference: str
    baseline: dict[str, WordErrors]
    model: dict[str, WordErrors]

    @property
    def baseline_wer(self) -> dict[str, float]:
        """Rates of the baseline by set, fractions."""
        return {name: errors.wer for name, errors in self.baseline.items()}

    @property
    def model_wer(self) -> dict[str, float]:
        """Rates of the model by set, fractions."""
        return {name: errors.wer for name, errors in self.model.items()}

    @property
    def relative_error_rates(self) -> dict[str, float]:
        """[`relative_error_rate`] of the model by set."""
        return {name: relative_error_rate(wer, self.baseline_wer[name]) for name, wer in self.model_wer.items()}

    @property
    def baseline_average(self) -> float:
        """Macro average of the baseline over all sets, the reference among them."""
        return macro_average(self.baseline)

    @property
    def model_average(self) -> float:
        """Macro average of the model over all sets, the reference among them."""
        return macro_average(self.model)

    @property
    def mean_relative_error_rate(self) -> float:
        """Mean of the sets' relative error rates: what the paper prints in the last line of Table 6.

        The rates of Table 6 (-2.0, 18.4, 1.6, 48.2, -12.8 %) have the mean 10.7 %, which it shows, while its average
        word error rates, 9.4 and 10.2 %, differ by 8 %: see `relative_error_rate_of_averages`.
        """
        rates = self.relative_error_rates
        return sum(rates.values()) / len(rates)

    @property
    def relative_error_rate_of_averages(self) -> float:
        """How much larger the model's macro average is than the baseline's: no set with few errors dominates it."""
        return relative_error_rate(self.model_average, self.baseline_average)

    @property
    def baseline_gap(self) -> float:
        """The baseline's macro average out of distribution minus its rate on the reference, a fraction."""
        return self._gap(self.baseline)

    @property
    def model_gap(self) -> float:
        """The model's macro average out of distribution minus its rate on the reference, a fraction."""
        return self._gap(self.model)

    @property
    def effective_robustness(self) -> float:
        """How much less the model loses out of distribution than the baseline would, a fraction (0.01: one point).

        Taori et al. (2020): acc₂(f) - β(acc₁(f)), accuracy out of distribution minus that which is expected of a model
        with this accuracy on the reference. They fit β to many models; with a single baseline, and 1 - WER as
        accuracy, it is the baseline's own gap below the reference: `baseline_gap - model_gap` remains. Positive: the
        model deviates less from its rate on the reference than the baseline does. 0: it is as robust as the baseline.
        """
        return self.baseline_gap - self.model_gap

    def table(self, baseline: str = "baseline", model: str = "model") -> str:
        """Table 6 as Markdown: WER in % of both by set, the relative error rate in %, the averages in the last line.

        Args:
            baseline (`str`, *optional*, defaults to `"baseline"`): heads the baseline's column.
            model (`str`, *optional*, defaults to `"model"`): heads the model's column.
        """
        rates, ours, theirs = self.relative_error_rates, self.model_wer, self.baseline_wer
        lines = [(name, theirs[name], ours[name], rate) for name, rate in rates.items()]
        lines.append(("Average", self.baseline_average, self.model_average, self.mean_relative_error_rate))
        rows = [
            f"| {name} | {100 * first:.1f} | {100 * second:.1f} | {_percent(rate)} |"
            for name, first, second, rate in lines
        ]
        return "\n".join([f"| Dataset | {baseline} | {model} | RER |", "|---|---:|---:|---:|", *rows])

    def _gap(self, errors: dict[str, WordErrors]) -> float:
        others = {name: one for name, one in errors.items() if name != self.reference}
        return macro_average(others) - errors[self.reference].wer


def effective_robustness(
    baseline: Mapping[str, WordErrors], model: Mapping[str, WordErrors], reference: str
) -> EffectiveRobustness:
    """Compares a model with a baseline on a set in distribution and on sets out of it (Table 6).

    Args:
        baseline (`Mapping[str, WordErrors]`): of the teacher, by set: `EvaluationResult.errors`.
        model (`Mapping[str, WordErrors]`): of the student, on the same sets.
        reference (`str`): name of the set that both were trained on the like of; in the paper GigaSpeech.

    Returns:
        [`EffectiveRobustness`]: its sets in the order of `baseline`, the reference first.

    Raises:
        ValueError: if the two were scored on different sets, the reference is not among them or stands alone, or a
            set has no words.

    Example:
        ```python
        >>> teacher_errors = {name: evaluate_model(teacher, rows, processor).errors for name, rows in sets.items()}
        >>> student_errors = {name: evaluate_model(student, rows, processor).errors for name, rows in sets.items()}
        >>> print(effective_robustness(teacher_errors, student_errors, reference="test").table("teacher", "student"))
        ```
    """
    _check_sets(baseline, "baseline")
    _check_sets(model, "model")
    if set(baseline) != set(model):
        only = [
            f"{name} has {', '.join(sorted(extra))} alone"
            for name, extra in (("baseline", set(baseline) - set(model)), ("model", set(model) - set(baseline)))
            if extra
        ]
        raise ValueError(
            f"`baseline` and `model`: expected the same sets, but {' and '.join(only)}. Score both alike."
        )
    if reference not in baseline:
        raise ValueError(
            f"`reference`: {reference!r} is not among the sets that were scored, {', '.join(baseline)}. Name the one "
            "that is in distribution."
        )
    if len(baseline) == 1:
        raise ValueError(
            f"`reference`: {reference!r} is the only set; expected at least one more, out of distribution, to compare."
        )
    order = [reference, *(name for name in baseline if name != reference)]
    return EffectiveRobustness(
        reference, {name: baseline[name] for name in order}, {name: model[name] for name in order}
    )


def robustness_by_model(
    errors: Mapping[str, Mapping[str, WordErrors]], baseline: str, reference: str, outside: Sequence[str]
) -> dict[str, EffectiveRobustness]:
    """[`effective_robustness`] of every model but the baseline.

    Args:
        errors (`Mapping`): by model, then by set.
        baseline (`str`): one of the models, usually the teacher.
        reference (`str`): the set in distribution.
        outside (`Sequence[str]`): the sets out of distribution; those whose references hold no words are left out.

    Returns:
        `dict[str, EffectiveRobustness]`: by model; without those of which the reference, or every other set, holds no
            words or was not scored.
    """
    found = {}
    theirs = errors.get(baseline, {})
    for model, ours in errors.items():
        sets = [
            name
            for name in (reference, *outside)
            if all(name in of_model and of_model[name].num_words for of_model in (theirs, ours))
        ]
        if model != baseline and sets[:1] == [reference] and len(sets) > 1:
            found[model] = effective_robustness(
                {name: theirs[name] for name in sets}, {name: ours[name] for name in sets}, reference
            )
    return found


def robustness_text(found: Mapping[str, EffectiveRobustness], baseline: str) -> str:
    """Table 6 of every model, as Markdown, with its effective robustness in percent below.

    Args:
        found (`Mapping[str, EffectiveRobustness]`): of [`robustness_by_model`].
        baseline (`str`): heads the baseline's column.
    """
    return "\n\n".join(
        f"{one.table(baseline, model)}\n\nEffective robustness of {model}, reference {one.reference}: "
        f"{100 * one.effective_robustness:+.2f} %"
        for model, one in found.items()
    )


def _check_sets(errors: Mapping[str, WordErrors], argument: str) -> None:
    if not errors:
        raise ValueError(f"`{argument}`: expected error counts by set, got none.")
    for name, one in errors.items():
        if one.num_words == 0:
            raise ValueError(
                f"`{argument}`: the references of {name!r} hold no words, so that it has no word error rate. Check "
                "its text column, or leave it out."
            )


def _percent(rate: float) -> str:
    return "∞" if math.isinf(rate) else f"{100 * rate:.1f}"


Results = Mapping[str, Mapping[str, EvaluationResult]]
"""By set, then by model."""


@dataclass(frozen=True)
class SetScore:
    """What a model made of one set.

    Args:
        errors (`WordErrors`): over all rows with a reference.
        interval (`tuple[float, float]`, *optional*): of the word error rate, 95 %, fractions; None for one recording.
        seconds (`float`): of work.
        audio_seconds (`float`): of audio.
        repeated_5grams (`int`): over all transcripts.
        unreadable_rows (`int`, *optional*, defaults to 0): in no figure.
        empty_references (`int`, *optional*, defaults to 0): rows that are in no rate.
    """

    errors: WordErrors
    interval: tuple[float, float] | None
    seconds: float
    audio_seconds: float
    repeated_5grams: int
    unreadable_rows: int = 0
    empty_references: int = 0

    @property
    def rtf(self) -> float:
        """Seconds of work a second of audio."""
        return self.seconds / self.audio_seconds


def _rate(name: str, result: EvaluationResult | SetScore) -> float:
    return 100 * getattr(result.errors, name) if result.errors.num_words else math.nan


METRICS: dict[str, Callable[[EvaluationResult | SetScore], float]] = {
    "5-Dup.": lambda result: result.repeated_5grams,
    "IER": partial(_rate, "ier"),
    "SER": partial(_rate, "ser"),
    "DER": partial(_rate, "der"),
    "WER": partial(_rate, "wer"),
}
"""Columns of Table 8 → repeated 5-grams as a number, rates in %: not a number where no row has a reference."""


def long_form_table(results: Results) -> str:
    """Table 19: every metric of every set by model, and the macro average where there are several sets.

    Args:
        results (`Mapping`): of [`evaluate_long_form`] by set, then by model.

    Returns:
        `str`: Markdown; rates in %, "-" where a set, or one of those of an average, has no references or was not
            heard by a model.
    """
    models = _models(results)
    lines = [_row(["Dataset", "Metric", *models]), "|---|---|" + "---:|" * len(models)]
    groups: dict[str, Results] = {name: {name: of_set} for name, of_set in results.items()}
    if len(results) > 1:
        groups["Average"] = results
    for group, sets in groups.items():
        for place, metric in enumerate(METRICS):
            cells = [_cell(sets, model, metric) for model in models]
            lines.append(_row([group if place == 0 else "", metric, *cells]))
    return "\n".join(lines)


def long_form_summary(results: Results) -> str:
    """Table 8: every metric of every model, macro-averaged over the sets.

    Args:
        results (`Mapping`): of [`evaluate_long_form`] by set, then by model.

    Returns:
        `str`: Markdown, as [`long_form_table`].
    """
    lines = [_row(["Model", *METRICS]), "|---|" + "---:|" * len(METRICS)]
    for model in _models(results):
        lines.append(_row([model, *(_cell(results, model, metric) for metric in METRICS)]))
    return "\n".join(lines)


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(model for by_model in results.values() for model in by_model))


def _cell(sets: Results, model: str, metric: str) -> str:
    if any(model not in by_model for by_model in sets.values()):
        return "-"
    mean = sum(METRICS[metric](by_model[model]) for by_model in sets.values()) / len(sets)
    return shown(metric, mean)


def shown(metric: str, value: float) -> str:
    """A figure of `METRICS` as it is printed.

    Args:
        metric (`str`): its name.
        value (`float`): or a mean of several; "-" for one that is not a number.
    """
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if metric == "5-Dup." else f"{value:.1f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def set_score(result: EvaluationResult) -> SetScore:
    """The figures of a report in a model's result on one set.

    Args:
        result (`EvaluationResult`): short or long form.
    """
    return SetScore(
        result.errors,
        confidence_interval(result),
        result.seconds,
        result.audio_seconds,
        result.repeated_5grams,
        result.unreadable_rows,
        result.empty_references,
    )


class MeasuredFolder:
    """Figures by name, each in a JSON file of its own.

    Args:
        folder (`str` or `Path`): of the files; made with the first one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, name: str, settings: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """A figure that was measured with the same settings before, or is measured now and kept.

        Args:
            name (`str`): of the figure; its parts, of what kind and of what, are separated by `", "`.
            settings (`Mapping[str, Any]`): all that it depends on, the weights of the model among them.
            measure (`Callable[[], Any]`): gives what JSON can hold.
        """
        # Parts apart by what no part has: `student-large` on `test` is not `student` on `large-test`.
        parts = [re.sub(r"(?:[^\w.-]|_)+", "-", part) for part in name.split(", ")]
        file = self.folder / ("__".join(parts) + ".json")
        settings = json.loads(json.dumps(settings))
        if file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["settings"] == settings:
                return kept["measured"]
        measured = json.loads(json.dumps(measure()))
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        content = {"name": name, "settings": settings, "measured": measured}  # the file's name is not exact
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, file)
        return measured


def score_as_json(score: SetScore) -> dict[str, Any]:
    """A score as [`MeasuredFolder`] keeps it.

    Args:
        score ([`SetScore`]): of one set.
    """
    return asdict(score)


def score_from_json(kept: Mapping[str, Any]) -> SetScore:
    """The opposite of [`score_as_json`].

    Args:
        kept (`Mapping[str, Any]`): as read.
    """
    interval = None if kept["interval"] is None else tuple(kept["interval"])
    return SetScore(**{**kept, "errors": WordErrors(**kept["errors"]), "interval": interval})


TEACHER = "teacher"
"""The model that all others are tested against."""

IN_DISTRIBUTION, OUT_OF_DISTRIBUTION = "in distribution", "out of distribution"
LONG_FORM, LONG_FORM_OUTSIDE = "long form", "long form out of distribution"
"""What a set may be."""

SHORT_FORMS, LONG_FORMS = (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION), (LONG_FORM, LONG_FORM_OUTSIDE)
"""What is heard in one window, and what in several."""

ALL_SHORT, ALL_LONG = "short form", "long form, all sets"
"""Averages over two kinds of sets."""

_WORST = 20
_HEAD = (
    f"{'WER %':>8}{'(95 %)':>17}{'CER %':>8}{'S %':>7}{'D %':>7}{'I %':>7}{'as written %':>14}{'5-Dup.':>8}{'RTF':>9}"
)


def summarise_results(results: Results, groups: Mapping[str, str] | None = None) -> dict[str, dict[str, dict]]:
    """Counts and rates by set and model, as they stand in `results.json`.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`, *optional*): what each set is, for example "out of distribution".

    Returns:
        `dict[str, dict[str, dict]]`: fractions, or None where no row has a reference. Counts are named like the
        columns of the rows. `against_teacher` compares a model with the teacher, on the utterances of both.
    """
    return {
        dataset: {
            model: result_summary(result)
            | ({} if groups is None else {"group": groups[dataset]})
            | ({} if model == TEACHER or TEACHER not in by_model else _against(result, by_model[TEACHER]))
            for model, result in by_model.items()
        }
        for dataset, by_model in results.items()
    }


def results_table(results: Results, groups: Mapping[str, str] | None = None, reference: str | None = None) -> str:
    """Rates in percent by set and model, as text for a terminal.

    WER with its interval of 95 %, CER, the parts of the WER (S, D, I), the WER of the texts as written, repeated
    5-grams ("5-Dup." of Table 8) and the real-time factor. Below, what the paired test says of each model and the
    teacher.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`, *optional*): what each set is; stands above the sets of a group, and their
            averages below.
        reference (`str`, *optional*): a set in distribution; adds [`robustness_text`], or says why there is none.
    """
    summary = summarise_results(results, groups)
    names = [name for by_model in summary.values() for name in by_model]
    wide, narrow = max(8, *map(len, summary)) + 2, max(8, *map(len, names)) + 2
    lines = [f"{'set':{wide}}{'model':{narrow}}{_HEAD}"]
    group, tests = None, []
    for dataset, by_model in summary.items():
        for model, row in by_model.items():
            if row.get("group") != group:
                group = row["group"]
                lines.append(f"{group}:")
            lines.append(f"{dataset:{wide}}{model:{narrow}}{_cells(row)}")
            if "against_teacher" in row:
                tests.append(f"  {dataset}: {model} {_test(row['against_teacher'])}")
    lines += left_out_text(results).splitlines()
    if groups is not None:
        lines += averages_text(results, groups).splitlines()
    if any(row["unit"] == "character" for by_model in summary.values() for row in by_model.values()):
        lines.append("(*) of characters: the language puts no space between words")
    if tests:
        lines += ["WER minus the teacher's, on the same utterances (paired bootstrap):", *tests]
    if groups is not None and reference is not None:
        found = robustness(results, groups, reference)
        missing = f"no effective robustness: {reference}, or every set out of distribution, has no references"
        lines += ["", robustness_text(found, TEACHER) if found else missing]
    return "\n".join(lines)


def left_out_text(results: Mapping[str, Mapping[str, EvaluationResult | SetScore]]) -> str:
    """How many rows of each set are in no rate, and why; nothing where there are none.

    Args:
        results (`Mapping`): by set, then by model.
    """
    lines = []
    for dataset, by_model in results.items():
        counts = {name: (one.unreadable_rows, one.empty_references) for name, one in by_model.items()}
        for unread, empty in dict.fromkeys(counts.values()):
            models = [name for name, pair in counts.items() if pair == (unread, empty)]
            which = "" if len(models) == len(counts) else f", {', '.join(models)}"
            parts = [f"{unread} could not be read"] * (unread > 0) + [f"{empty} without a reference"] * (empty > 0)
            if parts:
                lines.append(f"  {dataset}{which}: {', '.join(parts)}")
    head = ["rows left out of the rates:"] if lines else []
    return "\n".join([*head, *lines])


def averages(results: Results, groups: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """Averages of the WER by kind of set (Tables 16 and 17), of sets whose references hold words.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`): what each set is.

    Returns:
        `dict`: kind → model → `"macro"` (over sets) and `"micro"` (over all their words), fractions; the kinds of
            which there are several sets.
    """
    scored = [name for name, by_model in results.items() if all(one.errors.num_words for one in by_model.values())]
    kinds = {
        IN_DISTRIBUTION: (IN_DISTRIBUTION,),
        OUT_OF_DISTRIBUTION: (OUT_OF_DISTRIBUTION,),
        ALL_SHORT: SHORT_FORMS,
        LONG_FORM: (LONG_FORM,),
        LONG_FORM_OUTSIDE: (LONG_FORM_OUTSIDE,),
        ALL_LONG: LONG_FORMS,
    }
    if LONG_FORM_OUTSIDE not in groups.values():
        del kinds[ALL_LONG]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, members in kinds.items():
        names = [name for name in scored if groups[name] in members]
        if len(names) > 1:
            found[kind] = {
                model: {"macro": macro_average(errors), "micro": micro_average(errors)}
                for model, errors in _errors_by_model(results, names).items()
            }
    return found


def averages_text(results: Results, groups: Mapping[str, str]) -> str:
    """[`averages`] in percent: over sets, and in brackets over all their words.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`): what each set is.

    Returns:
        `str`: a line for each kind of which there are several sets, models beside each other; else nothing.
    """
    lines = []
    for kind, by_model in averages(results, groups).items():
        rates = [f"{model} {100 * mean['macro']:.2f} ({100 * mean['micro']:.2f})" for model, mean in by_model.items()]
        lines.append(f"  {kind}: {', '.join(rates)}")
    head = ["average WER % over sets (over all words):"] if lines else []
    return "\n".join([*head, *lines])


def robustness(results: Results, groups: Mapping[str, str], reference: str) -> dict[str, EffectiveRobustness]:
    """Every model beside the teacher on the reference and on the sets out of distribution (Table 6).

    Args:
        results (`Mapping`): from [`run_evaluation`].
        groups (`Mapping[str, str]`): what each set is.
        reference (`str`): a set in distribution.

    Returns:
        `dict[str, EffectiveRobustness]`: of [`robustness_by_model`].
    """
    outside = [name for name, group in groups.items() if group == OUT_OF_DISTRIBUTION]
    return robustness_by_model(_errors_by_model(results, [reference, *outside]), TEACHER, reference, outside)


def save_results(
    results: Results, folder: str, groups: Mapping[str, str] | None = None, reference: str | None = None
) -> None:
    """Writes what an evaluation found into a folder.

    `results.json` holds counts and rates, `<set>.<model>.parquet` the rows (columns of `ROW_FEATURES`; read it with
    `Dataset.from_parquet`), `<set>.<model>.worst.txt` the rows with the most errors, word by word. With `groups`,
    `averages.json` holds [`averages`] and Table 6 as fractions, and `long_form.md` Tables 8 and 19 where there are
    long recordings.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        folder (`str`): made where it is missing.
        groups (`Mapping[str, str]`, *optional*): what each set is.
        reference (`str`, *optional*): a set in distribution, for Table 6.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for dataset, by_model in results.items():
        for model, result in by_model.items():
            write_table(result.table().data.table, target / f"{dataset}.{model}.parquet")
            worst = [utterance.text() for utterance in worst_utterances(result, _WORST)]
            (target / f"{dataset}.{model}.worst.txt").write_text("\n\n".join(worst) + "\n", encoding="utf-8")
    summary = summarise_results(results, groups)
    (target / "results.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if groups is None:
        return
    means = {"averages": averages(results, groups), "robustness": _robustness_summary(results, groups, reference)}
    (target / "averages.json").write_text(json.dumps(means, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    long_form = {name: results[name] for name in results if groups[name] in LONG_FORMS}
    if long_form:
        tables = f"{long_form_summary(long_form)}\n\n{long_form_table(long_form)}\n"
        (target / "long_form.md").write_text(tables, encoding="utf-8")


def _robustness_summary(results: Results, groups: Mapping[str, str], reference: str | None) -> dict[str, Any]:
    found = {} if reference is None else robustness(results, groups, reference)
    return {
        model: {
            "reference": one.reference,
            # Infinite where the teacher makes no errors, which JSON does not know.
            "relative_error_rates": {
                name: rate if math.isfinite(rate) else None for name, rate in one.relative_error_rates.items()
            },
            "effective_robustness": one.effective_robustness,
        }
        for model, one in found.items()
    }


def _errors_by_model(results: Results, sets: Sequence[str]) -> dict[str, dict[str, WordErrors]]:
    found: dict[str, dict[str, WordErrors]] = {}
    for name in sets:
        for model, result in results[name].items():
            found.setdefault(model, {})[name] = result.errors
    return found


def result_summary(result: EvaluationResult) -> dict[str, Any]:
    """Counts and rates of one model on one set, as JSON can hold them.

    Args:
        result (`EvaluationResult`): of any evaluation.

    Returns:
        `dict[str, Any]`: fractions, or None where no row has a reference. Counts are named like the columns of the
        rows.
    """
    scored = result.errors.num_words > 0
    counts = {prefix + kind: getattr(getattr(result, name), kind) for prefix, name in COUNTS.items() for kind in KINDS}
    return {
        "wer": result.wer if scored else None,
        "wer_interval": confidence_interval(result),
        "ser": result.errors.ser if scored else None,
        "der": result.errors.der if scored else None,
        "ier": result.errors.ier if scored else None,
        "cer": result.cer if scored else None,
        "orthographic_wer": result.orthographic_errors.wer if scored else None,
        "orthographic_cer": result.orthographic_character_errors.wer if scored else None,
        "unit": result.unit,
        **counts,
        "repeated_5grams": result.repeated_5grams,
        "rtf": result.rtf,
        "seconds": result.seconds,
        "wall_seconds": result.wall_seconds,
        "audio_seconds": result.audio_seconds,
        "rows": len(result.rows),
        "empty_references": result.empty_references,
        "unreadable_rows": result.unreadable_rows,
    }


def _against(result: EvaluationResult, teacher: EvaluationResult) -> dict[str, dict[str, Any] | None]:
    found = compare_results(result, teacher)
    if found is None:
        return {"against_teacher": None}
    return {
        "against_teacher": {
            "difference": found.difference,
            "interval": found.interval,
            "p_value": found.p_value,
            "paired": found.paired,
            "unpaired": found.unpaired,
        }
    }


def _cells(row: Mapping[str, Any]) -> str:
    speed = f"{row['repeated_5grams']:8}{row['rtf']:9.4f}"
    if row["wer"] is None:
        return f"{'-':>8}{'no reference':>17}{'-':>8}{'-':>7}{'-':>7}{'-':>7}{'-':>14}{speed}"
    star = "*" if row["unit"] == "character" else ""
    interval = "one row" if row["wer_interval"] is None else _interval(*row["wer_interval"])
    parts = "".join(f"{100 * row[name]:7.2f}" for name in ("ser", "der", "ier"))
    rate = f"{100 * row['wer']:.2f}{star}"
    return f"{rate:>8}{interval:>17}{100 * row['cer']:8.2f}{parts}{100 * row['orthographic_wer']:14.2f}{speed}"


def _interval(low: float, high: float) -> str:
    return f"({100 * low:.2f}-{100 * high:.2f})"


def _test(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "cannot be compared: no utterance was scored for both"
    low, high = found["interval"]
    left_out = f", {found['unpaired']} left out that only one was scored on" if found["unpaired"] else ""
    return (
        f"{100 * found['difference']:+.2f} % (95 %: {100 * low:+.2f} to {100 * high:+.2f}), "
        f"p = {found['p_value']:.3f}, {found['paired']} utterance{'s' if found['paired'] > 1 else ''}{left_out}"
    )
