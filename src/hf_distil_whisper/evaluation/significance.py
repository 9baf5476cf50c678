"""Whether a difference in word error rate is more than the choice of test utterances (Bisani & Ney, 2004).

Knows results and pairs their rows by id; the draws are `metrics.py`'s.
"""

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
    """A model beside another one on the same utterances.

    Args:
        paired (`int`): utterances that both were scored on.
        unpaired (`int`): ids left out, since only one of the two was scored on them, or on another reference.
        errors (`WordErrors`): of the model on the paired utterances.
        baseline_errors (`WordErrors`): of the other one.
        interval (`tuple[float, float]`): 95 % of the differences of redrawn utterances, fractions.
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
        """The model's WER minus the other one's, on the paired utterances; below 0 the model is better."""
        return self.errors.wer - self.baseline_errors.wer


def confidence_interval(
    result: EvaluationResult, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """Ends of the interval that [`bootstrap_interval`] gives for the result's WER; None below two utterances.

    Args:
        result (`EvaluationResult`): of a set.
        level (`float`, *optional*, defaults to 0.95): share of the resamples between the two ends.
        resamples (`int`, *optional*, defaults to 1000): how often all utterances are drawn.
        seed (`int`, *optional*, defaults to 0): of the draws.
    """
    rows = [errors for _, errors in result.utterance_errors()]
    return bootstrap_interval(rows, level, resamples, seed) if len(rows) > 1 else None


def compare_results(
    result: EvaluationResult, baseline: EvaluationResult, *, resamples: int = 1000, seed: int = 0
) -> Comparison | None:
    """Tests one model against another on the utterances that both have heard, paired by id.

    Args:
        result (`EvaluationResult`): of the model.
        baseline (`EvaluationResult`): of the other one, usually the teacher, on the same set.
        resamples (`int`, *optional*, defaults to 1000): how often the utterances are drawn.
        seed (`int`, *optional*, defaults to 0): of the draws.

    Returns:
        `Comparison`: None if no utterance is in both.

    Example:
        ```python
        >>> found = compare_results(evaluate_model(student, rows, processor), evaluate_model(teacher, rows, processor))
        >>> f"{found.difference:+.2%}, p = {found.p_value:.3f} on {found.paired} utterances"
        ```
    """
    ours, theirs = _by_id(result), _by_id(baseline)
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
    """Errors by id. Rows that share one cannot be told apart, so that they are drawn together."""
    found: dict[str, WordErrors] = {}
    for name, errors in result.utterance_errors():
        found[name] = found.get(name, WordErrors()) + errors
    return found
