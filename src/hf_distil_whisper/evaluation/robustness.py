"""What a student loses away from its training data: averages over sets, relative error rates, effective robustness.

Arithmetic on error counts by set (paper, sections 7.3 and 8.1, Tables 6 and 16); knows no models and no audio.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hf_distil_whisper.metrics import WordErrors


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
