"""What speaks against a pseudo-label beside its word error rate: repetition, an open end, capitals, doubt.

These find the hallucinations and loops in audio without transcripts, where nothing can be compared (paper, section 4.2
leaves such audio out). Knows one row's label; `filtering.py` decides.
"""

from dataclasses import dataclass

from hf_distil_whisper.inference.results import compression_ratio
from hf_distil_whisper.metrics import Normalizer, repeated_ngrams

REASONS = ("wer", "truncated", "repetition", "capitals", "log_prob")
"""Why a row is dropped, in the order in which they are asked for."""


@dataclass(frozen=True)
class RowRules:
    """Bounds on a pseudo-label; None and False ask for nothing.

    Args:
        drop_truncated (`bool`, *optional*, defaults to `False`): labels whose length ran out before their end.
        max_compression_ratio (`float`, *optional*): above it, phrases repeat: see [`compression_ratio`]. 2.4 is what
            OpenAI's Whisper decodes anew at.
        max_repeated_ngrams (`int`, *optional*): runs of five words that occur again, see [`repeated_ngrams`].
        drop_all_capitals (`bool`, *optional*, defaults to `False`): labels of two words or more without small letters,
            in scripts that have them: corpora of subtitles teach a teacher to shout.
        min_mean_log_prob (`float`, *optional*): below it, the teacher was guessing. -1.0 in OpenAI's Whisper.
    """

    drop_truncated: bool = False
    max_compression_ratio: float | None = None
    max_repeated_ngrams: int | None = None
    drop_all_capitals: bool = False
    min_mean_log_prob: float | None = None


UNREFERENCED = RowRules(drop_truncated=True, max_compression_ratio=2.4, min_mean_log_prob=-1.0)
"""Asked of rows without a reference in any case, with the thresholds at which OpenAI's Whisper decodes anew."""


def broken_rule(
    rules: RowRules, text: str, truncated: bool, mean_log_prob: float | None, normalizer: Normalizer
) -> str | None:
    """The first of `REASONS` that speaks against a label, or None.

    Args:
        rules ([`RowRules`]): what is asked for.
        text (`str`): the label, plain.
        truncated (`bool`): whether its length ran out.
        mean_log_prob (`float`, *optional*): None where it is not known; the label then passes.
        normalizer (`Normalizer`): before repeated words are counted.
    """
    if rules.drop_truncated and truncated:
        return "truncated"
    if rules.max_compression_ratio is not None and compression_ratio(text) > rules.max_compression_ratio:
        return "repetition"
    if rules.max_repeated_ngrams is not None and repeated_ngrams(normalizer(text)) > rules.max_repeated_ngrams:
        return "repetition"
    # `isupper` is false for scripts without case, which the reference scripts dropped whole.
    if rules.drop_all_capitals and text.isupper() and len(text.split()) > 1:
        return "capitals"
    if rules.min_mean_log_prob is not None and mean_log_prob is not None and mean_log_prob < rules.min_mean_log_prob:
        return "log_prob"
    return None
