"""Average word error rates in distribution and out of it: the last three lines of Table 16."""

from collections.abc import Collection, Mapping

from hf_distil_whisper import WordErrors
from hf_distil_whisper.evaluation.significance import macro_average, micro_average


def set_averages(errors: Mapping[str, WordErrors], outside: Collection[str]) -> dict[str, tuple[float, float]]:
    """Average of one model over its test sets, and over all their words: fractions, by line; none without sets."""
    inner = {name: one for name, one in errors.items() if name not in outside}
    outer = {name: one for name, one in errors.items() if name in outside}
    lines = {"ID Average": inner, "OOD Average": outer, "Average": inner | outer}
    return {line: (macro_average(sets), micro_average(sets)) for line, sets in lines.items() if sets}
