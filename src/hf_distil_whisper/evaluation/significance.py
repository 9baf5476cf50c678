"""Compare two models on the same utterances and sets: paired bootstrap test, averages, effective robustness."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_distil_whisper.evaluation.evaluate import EvaluationResult
from hf_distil_whisper.metrics import (
    WordErrors,
    bootstrap_interval,
    paired_bootstrap_interval,
    paired_bootstrap_p_value,
)


@dataclass(frozen=True)
class Comparison:
    """A model beside a baseline on the same utterances.

    Args:
        paired (`int`): number of utterances that both were scored on.
        unpaired (`int`): ids left out, since only one of the two was scored on them, or on another reference.
        errors (`WordErrors`): the model's counts on the paired utterances.
        baseline_errors (`WordErrors`): the baseline's counts on them.
        interval (`tuple[float, float]`): 95 % interval of the difference in WER over the resamples, fractions.
        p_value (`float`): see [`paired_bootstrap_p_value`].
    """

    paired: int
    unpaired: int
    errors: WordErrors
    baseline_errors: WordErrors
    interval: tuple[float, float]
    p_value: float

    @property
    def difference(self) -> float:
        """WER of the model minus WER of the baseline on the paired utterances; below 0 the model is better."""
        return self.errors.wer - self.baseline_errors.wer


def confidence_interval(
    result: EvaluationResult, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """[`bootstrap_interval`] of the result's WER; None for fewer than two utterances."""
    rows = [errors for _, errors in result.utterance_errors()]
    return bootstrap_interval(rows, level, resamples, seed) if len(rows) > 1 else None


def compare_results(
    result: EvaluationResult, baseline: EvaluationResult, *, resamples: int = 1000, seed: int = 0
) -> Comparison | None:
    """Tests whether two models differ in WER, on the utterances scored for both (Bisani & Ney, 2004).

    Args:
        result (`EvaluationResult`): scores of the model.
        baseline (`EvaluationResult`): scores of the other model, usually the teacher, on the same set.
        resamples (`int`, *optional*, defaults to 1000): number of bootstrap resamples of the utterances.
        seed (`int`, *optional*, defaults to 0): seed of the resampling.

    Returns:
        [`Comparison`]: None if no utterance, paired by id, was scored for both.

    Example:
        ```python
        >>> results = [evaluate_model(model, rows, processor) for model in (student, teacher)]
        >>> comparison = compare_results(*results)
        >>> f"{comparison.difference:+.2%}, p = {comparison.p_value:.3f} on {comparison.paired} utterances"
        ```
    """
    ours, theirs = _by_id(result), _by_id(baseline)
    # An id with another number of words has another reference or another normaliser: that is no pair.
    both = [name for name, errors in ours.items() if name in theirs and theirs[name].num_words == errors.num_words]
    if not both:
        return None
    rows, others = [ours[name] for name in both], [theirs[name] for name in both]
    return Comparison(
        paired=len(both),
        unpaired=len(ours.keys() | theirs.keys()) - len(both),
        errors=sum(rows, WordErrors()),
        baseline_errors=sum(others, WordErrors()),
        interval=paired_bootstrap_interval(rows, others, resamples=resamples, seed=seed),
        p_value=paired_bootstrap_p_value(rows, others, resamples, seed),
    )


def _by_id(result: EvaluationResult) -> dict[str, WordErrors]:
    """Errors by id; rows that share an id cannot be distinguished and are resampled together."""
    by_id: dict[str, WordErrors] = {}
    for name, errors in result.utterance_errors():
        by_id[name] = by_id.get(name, WordErrors()) + errors
    return by_id


def macro_average(errors: Mapping[str, WordErrors]) -> float:
    """Mean of the sets' word error rates, each set with the same weight: the average of the paper's tables."""
    _check_sets(errors, "errors")
    return sum(one.wer for one in errors.values()) / len(errors)


def micro_average(errors: Mapping[str, WordErrors]) -> float:
    """Word error rate of all sets together, each word with the same weight."""
    _check_sets(errors, "errors")
    return sum(errors.values(), WordErrors()).wer


def relative_error_rate(wer: float, baseline: float) -> float:
    """(wer - baseline) / baseline, a fraction: column RER of Table 6, negative where the model is better.

    For a baseline without errors: 0.0 if the model makes none either, else infinity.

    Raises:
        ValueError: if a rate is negative or NaN.
    """
    for name, rate in (("wer", wer), ("baseline", baseline)):
        if not rate >= 0:
            raise ValueError(f"`{name}`: expected a word error rate of at least 0, got {rate}.")
    if baseline == 0:
        return 0.0 if wer == 0 else math.inf
    return (wer - baseline) / baseline


@dataclass(frozen=True)
class EffectiveRobustness:
    """A model beside a baseline, on one set in distribution (the reference) and on sets out of it: Table 6.

    Args:
        reference (`str`): name of the set in distribution.
        baseline (`dict[str, WordErrors]`): error counts of the baseline by set, the reference first.
        model (`dict[str, WordErrors]`): error counts of the model, in the same order.
    """

    reference: str
    baseline: dict[str, WordErrors]
    model: dict[str, WordErrors]

    @property
    def relative_error_rates(self) -> dict[str, float]:
        """[`relative_error_rate`] of the model by set."""
        return {name: relative_error_rate(errors.wer, self.baseline[name].wer) for name, errors in self.model.items()}

    @property
    def mean_relative_error_rate(self) -> float:
        """Mean of the sets' relative error rates, which the paper prints in the last line of Table 6.

        The rates of Table 6 (-2.0, 18.4, 1.6, 48.2, -12.8 %) average to 10.7 %, while the average word error rates,
        9.4 and 10.2 %, differ by 8 %: see `relative_error_rate_of_averages`.
        """
        rates = self.relative_error_rates
        return sum(rates.values()) / len(rates)

    @property
    def relative_error_rate_of_averages(self) -> float:
        """[`relative_error_rate`] of the two macro averages: no set with few errors dominates it."""
        return relative_error_rate(macro_average(self.model), macro_average(self.baseline))

    @property
    def effective_robustness(self) -> float:
        """How much less the model loses out of distribution than the baseline does, a fraction (0.01: one point).

        Taori et al. (2020) subtract from the accuracy out of distribution the accuracy β(acc) that is expected of a
        model with this accuracy on the reference, β being fitted to many models. With a single baseline, and 1 - WER
        as accuracy, β is the baseline's distance from its reference, so the difference of the two distances remains.
        0: as robust as the baseline.
        """
        return self._gap(self.baseline) - self._gap(self.model)

    def table(self, baseline: str = "baseline", model: str = "model") -> str:
        """Table 6 as Markdown, under the two names: WER in % by set, relative error rate in %, averages last."""
        rows = [
            (name, self.baseline[name].wer, self.model[name].wer, rate)
            for name, rate in self.relative_error_rates.items()
        ]
        means = macro_average(self.baseline), macro_average(self.model)
        rows.append(("Average", *means, self.mean_relative_error_rate))
        lines = [f"| Dataset | {baseline} | {model} | RER |", "|---|---:|---:|---:|"]
        for name, theirs, ours, rate in rows:
            relative = "∞" if math.isinf(rate) else f"{100 * rate:.1f}"
            lines.append(f"| {name} | {100 * theirs:.1f} | {100 * ours:.1f} | {relative} |")
        return "\n".join(lines)

    def _gap(self, errors: dict[str, WordErrors]) -> float:
        """Macro average out of distribution minus the rate on the reference."""
        others = {name: one for name, one in errors.items() if name != self.reference}
        return macro_average(others) - errors[self.reference].wer


def effective_robustness(
    baseline: Mapping[str, WordErrors], model: Mapping[str, WordErrors], reference: str
) -> EffectiveRobustness:
    """Compares a model with a baseline on a set in distribution and on sets out of it (Table 6).

    Args:
        baseline (`Mapping[str, WordErrors]`): the teacher's counts by set: `EvaluationResult.errors`.
        model (`Mapping[str, WordErrors]`): the student's counts on the same sets.
        reference (`str`): name of the set in distribution; GigaSpeech in the paper.

    Returns:
        [`EffectiveRobustness`]: its sets in the order of `baseline`, the reference first.

    Raises:
        ValueError: if the two were scored on different sets, the reference is not among them or is the only one, or a
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
    alone = {"baseline": set(baseline) - set(model), "model": set(model) - set(baseline)}
    only = [f"{name} has {', '.join(sorted(extra))} alone" for name, extra in alone.items() if extra]
    if only:
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
    ordered = ({name: counts[name] for name in order} for counts in (baseline, model))
    return EffectiveRobustness(reference, *ordered)


def robustness_by_model(
    errors: Mapping[str, Mapping[str, WordErrors]], baseline: str, reference: str, outside: Sequence[str]
) -> dict[str, EffectiveRobustness]:
    """[`effective_robustness`] of every model but the baseline, from counts by model, then by set.

    Sets whose references hold no words, or that were not scored for both, are left out; so is a model for which the
    reference, or every other set, is among them.
    """
    results = {}
    theirs, nothing = errors.get(baseline, {}), WordErrors()
    for model, ours in errors.items():
        names = (reference, *outside)
        sets = [name for name in names if all(one.get(name, nothing).num_words for one in (theirs, ours))]
        if model != baseline and sets[:1] == [reference] and len(sets) > 1:
            results[model] = effective_robustness(
                {name: theirs[name] for name in sets}, {name: ours[name] for name in sets}, reference
            )
    return results


def robustness_text(results: Mapping[str, EffectiveRobustness], baseline: str) -> str:
    """Table 6 of every model as Markdown, with its effective robustness in percent below."""
    return "\n\n".join(
        f"{one.table(baseline, model)}\n\nEffective robustness of {model}, reference {one.reference}: "
        f"{100 * one.effective_robustness:+.2f} %"
        for model, one in results.items()
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
