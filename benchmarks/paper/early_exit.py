"""What early exit saves and costs: a sweep over thresholds of its confidence (paper, appendix D.1 and Table 20).

Knows recordings, whose turn it is, and scores; leaving the decoder is `early_exit_search.py`'s.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from early_exit_search import (
    FULL_DEPTH,
    EarlyExitSearch,
)
from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    load_audio,
)
from hf_distil_whisper.data.dataset import (
    check_length,
    row_id,
)
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import (
    EvaluationResult,
    Heard,
    readable_rows,
    score,
)
from hf_distil_whisper.evaluation.latency import synchronise
from hf_distil_whisper.inference.encoder import encode, window_features
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import (
    scoring_language,
    timestamp_begin,
)
from hf_distil_whisper.metrics import WordErrors

PAPER_THRESHOLDS = (1.0, 0.9875, 0.975, 0.9625, 0.95, 0.9375, 0.925)


@dataclass(frozen=True)
class EarlyExit:
    """What a threshold saves, and what it costs.

    Args:
        threshold (`float`): of the confidence.
        num_layers (`int`): decoder layers run, summed over all tokens.
        num_tokens (`int`): generated, `<|endoftext|>` included.
        full_depth_seconds (`float`): of the same recordings with all layers, in turn with this threshold.
        result (`EvaluationResult`): errors, rows and seconds with this threshold.
    """

    threshold: float
    num_layers: int
    num_tokens: int
    full_depth_seconds: float
    result: EvaluationResult

    @property
    def mean_layers(self) -> float:
        """Decoder layers per token."""
        return self.num_layers / self.num_tokens

    @property
    def seconds(self) -> float:
        """Of encoder, decoder and search."""
        return self.result.seconds

    @property
    def errors(self) -> WordErrors:
        """Over all rows with a reference."""
        return self.result.errors

    @property
    def relative_latency(self) -> float:
        """How many times faster than with all layers."""
        return self.full_depth_seconds / self.seconds


def evaluate_early_exit(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor,
    *,
    thresholds: Sequence[float] = PAPER_THRESHOLDS,
    language: str | None = None,
    normalizer: Callable[[str], str] | None = None,
    max_new_tokens: int | None = None,
) -> list[EarlyExit]:
    """Scores and times a model that leaves its decoder early, at batch size 1 and without timestamps.

    Every recording passes the encoder once, then all thresholds and the full depth take turns on it, in an order that
    moves on from recording to recording; the encoder's time counts for each of them.

    Args:
        model (`WhisperForConditionalGeneration`): usually a teacher, in eval mode; left as it is.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` of up to a window and `text`, possibly `id`.
        processor (`WhisperProcessor`): of the model.
        thresholds (`Sequence[float]`, *optional*, defaults to those of Table 20): of the confidence, 0 to 1. At 1 all
            layers are run, and the text is that of greedy search.
        language (`str`, *optional*): see [`evaluate_model`]; without it a multilingual model also spends time on
            detecting one.
        normalizer (`Callable[[str], str]`, *optional*): see [`evaluate_model`].
        max_new_tokens (`int`, *optional*): by default as many as the decoder has room for.

    Returns:
        `list[EarlyExit]`: in the order of `thresholds`.

    Raises:
        ValueError: for a threshold out of range, 0 rows, a missing column, or if no row could be read.

    Example:
        ```python
        >>> found = evaluate_early_exit(teacher, load_source("quickstart", split="test", max_samples=100), processor)
        >>> print(early_exit_table(found))
        ```
    """
    if not thresholds or not all(0 <= threshold <= 1 for threshold in thresholds):
        raise ValueError(
            f"`thresholds`: expected differences of probabilities from 0 to 1, got {list(thresholds)}. At 1 no "
            "layer is skipped, at 0 all but the first."
        )
    dataset, errors = readable_rows(dataset, "text"), RowErrors()
    searches = {threshold: EarlyExitSearch(threshold) for threshold in (*thresholds, FULL_DEPTH)}
    seconds, heard = dict.fromkeys(searches, 0.0), {threshold: list[Heard]() for threshold in searches}
    settings: dict[str, Any] = {"language": language, "max_new_tokens": max_new_tokens}
    warm = False
    for index in logging.tqdm(range(len(dataset)), desc="early exit", unit="recording"):
        row, name = dataset[index], row_id(dataset[index], index)
        try:
            samples = load_audio(row["audio"], name=name)
            check_length(name, len(samples) / SAMPLING_RATE, processor)
        except AudioError as error:
            errors.add(name, str(error))
            continue
        features = window_features(model, processor, [samples])
        for threshold in () if warm else searches:
            generate_tokens(model, features, search=EarlyExitSearch(threshold), **settings)
        warm = True
        synchronise(model.device)
        start = time.perf_counter()
        states = encode(model, features)
        synchronise(model.device)
        spent = time.perf_counter() - start
        order = list(searches)
        for threshold in order[index % len(order) :] + order[: index % len(order)]:
            start = time.perf_counter()
            (found,) = generate_tokens(model, encoder_states=states, search=searches[threshold], **settings)
            seconds[threshold] += spent + time.perf_counter() - start
            text = plain_text(found.tokens, processor.tokenizer, timestamp_begin(model))
            duration = len(samples) / SAMPLING_RATE
            heard[threshold].append(Heard(name, row["text"], text, duration, found.truncated))
    results: list[EarlyExit] = []
    for threshold in thresholds:
        depths, reported = searches[threshold].depths, errors if not results else RowErrors()  # said once, not by each
        result = score(
            heard[threshold], reported, seconds[threshold], language=scoring_language(model, language),
            normalizer=normalizer,
        )  # fmt: skip
        result = replace(result, row_errors=errors)
        results.append(EarlyExit(threshold, sum(depths), len(depths), seconds[FULL_DEPTH], result))
    return results


def early_exit_table(found: Sequence[EarlyExit]) -> str:
    """Layers, latency and word error rate by threshold, as Markdown in the layout of Table 20.

    The tokens stand beside them: a text that ends sooner is faster too.

    Args:
        found (`Sequence[EarlyExit]`): from [`evaluate_early_exit`].

    Returns:
        `str`: Markdown; the WER is "-" where no row has a reference.
    """
    lines = ["| Threshold | Avg. Dec Layers | Rel. Latency | WER / % | tokens |", "|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {one.threshold:.4f} | {one.mean_layers:.1f} | {one.relative_latency:.2f} | "
        f"{f'{100 * one.errors.wer:.1f}' if one.errors.num_words else '-'} | {one.num_tokens} |"
        for one in found
    ]
    return "\n".join(lines)
