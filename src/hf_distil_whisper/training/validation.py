"""Metrics of a validation during training: mean losses per token, and the WER of generated transcripts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EvalPrediction, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.labels import language_in
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import is_multilingual, languages_of, max_generated_tokens, prefix_length
from hf_distil_whisper.metrics import WordErrors, errors_in_language, get_normalizer
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.losses import IGNORE_INDEX

COMPONENTS = ("kl", "pl", "mse")
"""Components of the loss by their name in the logs, in the order of all tensors of them."""
_GENERATION_SETTINGS = {"max_length", "max_new_tokens", "num_beams"}


class WordErrorMetrics:
    """`compute_metrics` of the trainer: WER of generated tokens against the labels, after text normalisation.

    Labels are decoded to text. Rows whose reference has no words are left out: they have no error rate.

    Args:
        processor (`WhisperProcessor`): its tokenizer decodes the tokens.
        language (`str`, *optional*): decides on the normaliser and on words or characters as the unit; or "basic". By
            default that of each label.

    Example:
        ```python
        trainer = DistillationTrainer(..., compute_metrics=WordErrorMetrics(processor, "basic"))
        ```
    """

    def __init__(self, processor: WhisperProcessor, language: str | None = None):
        self.tokenizer = processor.tokenizer
        self.language = language
        self.timestamp_begin = int(self.tokenizer.convert_tokens_to_ids("<|notimestamps|>")) + 1

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Returns `{"wer": fraction}`, or nothing if no reference has a word."""
        errors = WordErrors()
        for label, tokens in zip(np.asarray(prediction.label_ids), np.asarray(prediction.predictions), strict=True):
            language, reference = self.language or self._language(label), self._text(label)
            if get_normalizer(language)(reference):
                errors += errors_in_language(reference, self._text(tokens), language)
        return {"wer": errors.wer} if errors.num_words else {}

    def _language(self, label: np.ndarray) -> str:
        """The language that a label starts with; English where it names none."""
        start = label[label != IGNORE_INDEX][:1]
        return language_in(f"<|startoftranscript|>{self.tokenizer.decode(start)}") or "en"

    def _text(self, tokens: Sequence[int]) -> str:
        labelled = [int(token) for token in tokens if token != IGNORE_INDEX]
        return plain_text(labelled, self.tokenizer, self.timestamp_begin)


def default_metrics(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, args: DistillationTrainingArguments
) -> WordErrorMetrics | None:
    """The WER in the language of the arguments or of each label, or None if evaluation generates no transcripts."""
    if not args.predict_with_generate:
        return None
    language = args.language or (None if is_multilingual(model) else "en")
    return WordErrorMetrics(processor, args.normalizer or language)


class LossSums:
    """Sums of the named losses over the tokens of a validation set, and the number of these tokens."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.rows: torch.Tensor | None = None

    def add(self, rows: torch.Tensor) -> None:
        """Adds rows of shape (batch, losses + 1): sums over each row's tokens, and its number of tokens."""
        total = rows.cpu().double().sum(0)  # float64: the sum must not depend on the batch size
        self.rows = total if self.rows is None else self.rows + total

    def means(self) -> dict[str, float]:
        """Returns each loss per token; empty without a token."""
        if self.rows is None or self.rows[-1] == 0:
            return {}
        return dict(zip(self.names, (self.rows[:-1] / self.rows[-1]).tolist(), strict=True))


def check_evaluation(
    args: DistillationTrainingArguments,
    eval_dataset: Dataset | dict[str, Dataset] | None,
    processor: WhisperProcessor | None,
    compute_metrics: Callable | None,
) -> None:
    """Raises a `ValueError` if evaluation cannot compute the metrics that the arguments ask for."""
    if processor is not None and not isinstance(processor, WhisperProcessor):
        raise ValueError(
            f"processing_class: expected a WhisperProcessor, got {type(processor).__name__}; a checkpoint needs both "
            "its feature extractor and its tokenizer."
        )
    if compute_metrics is not None and not args.predict_with_generate:
        raise ValueError(
            "compute_metrics is given, but --predict_with_generate is off: without it there are no transcripts to "
            "compute metrics of. Switch it on, or leave compute_metrics out."
        )
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if isinstance(eval_dataset, dict) and metric in ("loss", *COMPONENTS, "wer"):
        raise ValueError(
            f"--metric_for_best_model: there is no {metric!r} with several validation sets "
            f"({', '.join(eval_dataset)}). Set it to macro_wer, or to one set's: {next(iter(eval_dataset))}_{metric}."
        )
    if eval_dataset is not None and not isinstance(eval_dataset, dict) and metric == "macro_wer":
        raise ValueError(
            "--metric_for_best_model: macro_wer is an average over several validation sets, but there is one without "
            "a name. Set it to wer, or pass eval_dataset as a dictionary."
        )


def generate_tokens_of(
    model: WhisperForConditionalGeneration,
    inputs: Mapping[str, Tensor],
    encoder_states: Tensor,
    task: str,
    settings: Mapping[str, Any],
) -> Tensor:
    """Transcribes a validation batch without timestamps; the model's generation config is not modified.

    The language of each row is read from its decoder inputs. `settings` are `max_length` or `max_new_tokens`, and
    `num_beams`. Returns (batch, fixed length), padded, so that all processes gather the same shape.
    """
    if unknown := sorted(set(settings) - _GENERATION_SETTINGS):
        raise ValueError(f"evaluate: unknown {unknown}; expected {', '.join(sorted(_GENERATION_SETTINGS))}.")
    longest = model.config.max_target_positions // 2  # OpenAI's limit for a window, which also ends runaway loops
    if settings.get("max_length") is not None:
        longest = settings["max_length"] - prefix_length(model, return_timestamps=False)
    longest = settings.get("max_new_tokens") or longest
    longest = max(1, min(longest, max_generated_tokens(model, return_timestamps=False)))
    sequences = generate_tokens(
        model,
        inputs.get("input_features"),
        encoder_hidden_states=encoder_states,
        num_beams=settings.get("num_beams") or 1,
        max_new_tokens=longest,
        languages=languages_of(model, inputs["decoder_input_ids"]),
        task=task,
    )
    tokens = inputs["labels"].new_full((len(sequences), longest), model.config.pad_token_id)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence.tokens)] = torch.as_tensor(sequence.tokens)
    return tokens
