"""Callbacks of the trainer. Knows the Trainer's events and metrics, nothing of models."""

from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
)

from hf_distil_whisper.training.training_args import DistillationTrainingArguments


class AverageEarlyStoppingCallback(EarlyStoppingCallback):
    """Early stopping on a metric that only exists after all validation sets, such as `eval_macro_wer`.

    The Trainer reports each set by itself first; those reports do not hold the metric and are passed over.

    Args:
        early_stopping_patience (`int`, *optional*, defaults to 1): evaluations without a better metric before the end.
        early_stopping_threshold (`float`, *optional*, defaults to 0.0): how much better it has to be.
    """

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Counts an evaluation if it holds `metric_for_best_model`."""
        name = str(args.metric_for_best_model)
        if (name if name.startswith("eval_") else f"eval_{name}") in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


def early_stopping(args: DistillationTrainingArguments) -> list[TrainerCallback]:
    """What ends a training early, where the arguments ask for it."""
    if args.early_stopping_patience is None:
        return []
    return [AverageEarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold)]


class KeepTokenIdsCallback(TrainerCallback):
    """Puts back the token ids that `Trainer.train` replaces by those of the tokenizer.

    Whisper's tokenizers begin a sentence with `<|endoftext|>`, the configs of English-only models with
    `<|startoftranscript|>`: a saved student would differ from its teacher for no reason.

    Args:
        model (`WhisperForConditionalGeneration`): the student, before training.
    """

    def __init__(self, model: WhisperForConditionalGeneration):
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        configs = (model.config, model.generation_config)
        self.kept = [(config, name, getattr(config, name)) for config in configs for name in names]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restores the ids, before the first step and the first checkpoint."""
        for config, name, value in self.kept:
            setattr(config, name, value)
