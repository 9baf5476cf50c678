"""Compares kept and dropped pseudo-labels with the ground truth on a sample, to judge the filter's threshold.

A threshold is good where the labels kept are right and those dropped are wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from hf_distil_whisper.data.labels import plain_text
from hf_distil_whisper.metrics import (
    WordErrors,
    bootstrap_interval,
    errors_in_language,
    get_normalizer,
    repeated_ngrams,
)


@dataclass(frozen=True)
class AuditedPart:
    """The kept or the dropped labels of one source.

    Args:
        source (`str`): name of the source; "all" if the rows name none.
        kept (`bool`): whether the filter keeps these rows.
        total (`int`): number of rows.
        sampled (`int`): number of rows that were compared.
        errors (`WordErrors`): counts over the sample.
        interval (`tuple[float, float]`): 95 % interval of the word error rate, fractions.
        repeated (`int`): repeated 5-grams in the sample's labels ("5-Dup." of Table 8).
    """

    source: str
    kept: bool
    total: int
    sampled: int
    errors: WordErrors
    interval: tuple[float, float]
    repeated: int


def audit_labels(
    dataset: Dataset,
    kept: Sequence[int] | np.ndarray,
    *,
    truth_column: str = "text",
    prediction_column: str = "whisper_transcript",
    source_column: str | None = None,
    language: str = "en",
    samples: int = 1000,
    seed: int = 0,
) -> list[AuditedPart]:
    """Compares kept and dropped labels with the ground truth.

    Args:
        dataset (`Dataset`): labelled rows with their ground truth; rows without are left out.
        kept (`Sequence[int]`): indices of the rows that the filter keeps, from [`passing_rows`].
        truth_column (`str`, *optional*, defaults to `"text"`): column of the ground truth.
        prediction_column (`str`, *optional*, defaults to `"whisper_transcript"`): column of the labels.
        source_column (`str`, *optional*): column that names the corpus of each row; by default all rows are one.
        language (`str`, *optional*, defaults to `"en"`): as for [`get_normalizer`].
        samples (`int`, *optional*, defaults to 1000): rows of each part at most, drawn at random.
        seed (`int`, *optional*, defaults to 0): seed of the draw and of the intervals.

    Returns:
        `list[AuditedPart]`: kept and dropped rows of each source in turn; parts without rows are left out.

    Raises:
        ValueError: for a missing column, or if no row has a ground truth.
    """
    for column in filter(None, (truth_column, prediction_column, source_column)):
        if column not in dataset.column_names:
            raise ValueError(
                f"The data set has no column {column!r} to audit; it has {', '.join(dataset.column_names)}. Name it "
                "with `truth_column`, `prediction_column` or `source_column`."
            )
    known = np.array([text is not None for text in dataset[truth_column]])
    if not known.any():
        raise ValueError(
            f"No row has a ground truth in {truth_column!r}: there is nothing to compare the labels with."
        )
    passed = np.zeros(len(dataset), dtype=bool)
    passed[np.asarray(kept, dtype=np.int64)] = True
    sources = np.array(dataset[source_column] if source_column else ["all"] * len(dataset), dtype=str)
    normalizer = get_normalizer(language)
    rng, parts = np.random.default_rng(seed), []
    for source in dict.fromkeys(sources.tolist()):
        for side in (True, False):
            rows = np.flatnonzero(known & (sources == source) & (passed == side))
            if not len(rows):
                continue
            chosen = np.sort(rng.permutation(rows)[:samples])
            texts = dataset.select_columns([truth_column, prediction_column]).select(chosen)
            labels = [plain_text(label or "") for label in texts[prediction_column]]
            pairs = zip(texts[truth_column], labels, strict=True)
            errors = [errors_in_language(truth, label, language) for truth, label in pairs]
            parts.append(
                AuditedPart(
                    source=source,
                    kept=side,
                    total=len(rows),
                    sampled=len(errors),
                    errors=sum(errors, WordErrors()),
                    interval=bootstrap_interval(errors, seed=seed),
                    repeated=sum(repeated_ngrams(normalizer(label)) for label in labels),
                )
            )
    return parts


def audit_table(parts: Sequence[AuditedPart]) -> str:
    """The parts as text, rates in percent."""
    width = max(6, *(len(part.source) for part in parts))
    lines = [f"{'source':{width}}  labels     rows  sampled   WER    (95 %)        SER    DER    IER  5-Dup."]
    for part in parts:
        errors, (low, high) = part.errors, part.interval
        lines.append(
            f"{part.source:{width}}  {'kept   ' if part.kept else 'dropped'}  {part.total:7}  {part.sampled:7}  "
            f"{errors.wer:6.1%} ({low:6.1%}-{high:6.1%}) {errors.ser:6.1%} {errors.der:6.1%} {errors.ier:6.1%}  "
            f"{part.repeated:6}"
        )
    return "\n".join(lines)
