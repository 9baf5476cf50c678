"""A model card on its way: written beside the weights with its pictures and results, at every save and evaluation.

Knows a trainer's log and where files go; what the card says is known by `model_card`.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
)
from transformers.utils import logging

from hf_distil_whisper.figures import curves_over_steps
from hf_distil_whisper.hub.card_results import Evaluation, eval_result_files, read_evaluation
from hf_distil_whisper.hub.card_text import cached_revision, find_license
from hf_distil_whisper.hub.model_card import generate_model_card
from hf_distil_whisper.hub.trackers import run_url

logger = logging.get_logger(__name__)

CARD, RESULTS_FOLDER = "README.md", ".eval_results"
LOSS_CURVES, WER_CURVES = "loss_curves.png", "wer_curves.png"
CARD_FILES = (CARD, LOSS_CURVES, WER_CURVES, f"{RESULTS_FOLDER}/*.yaml")
"""Patterns of all that belongs to a card, within its folder."""


def save_model_card(
    folder: str | Path,
    student: WhisperForConditionalGeneration,
    *,
    name: str,
    log_history: Sequence[Mapping[str, Any]] = (),
    **details: Any,
) -> ModelCard:
    """Writes the card into a folder, with its curves, and its results as `.eval_results/*.yaml`.

    Args:
        folder (`str` or `Path`): of the student's weights.
        student ([`~transformers.WhisperForConditionalGeneration`]): the model.
        name (`str`): Hub id or name of the student.
        log_history (`Sequence[Mapping]`, *optional*): of the trainer's state: curves of losses and word error rates.
            Scores are its newest ones, where `details` hold none.
        details: other arguments of [`generate_model_card`].

    Returns:
        [`~huggingface_hub.ModelCard`]: as written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = details.pop("evaluation", None)
    known = read_evaluation(evaluation) if isinstance(evaluation, str | Path) else evaluation or Evaluation()
    given = details.pop("results", None)
    if given is None and not known.results:
        given = latest_word_errors(log_history)
    scores = known.merged(given, details.pop("teacher_results", None), details.pop("groups", None))
    card = generate_model_card(
        student, name=name, evaluation=scores, figures=draw_curves(log_history, folder), **details
    )
    files = eval_result_files(scores.results, details.get("result_sources") or {})
    shutil.rmtree(folder / RESULTS_FOLDER, ignore_errors=True)
    for file, entries in files.items():
        (folder / RESULTS_FOLDER).mkdir(exist_ok=True)
        _replace(folder / RESULTS_FOLDER / file, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
    _replace(folder / CARD, str(card))
    return card


class ModelCardCallback(TrainerCallback):
    """Writes the card as of that step: beside every checkpoint, and into the output folder at each evaluation.

    Scores are those of the newest evaluation in the log, by validation set. What goes wrong in it is logged and costs
    the card, never the training.

    Args:
        details (`dict`, *optional*): facts about the model that the trainer does not know: `name`, `teacher`,
            `datasets`, `language`, `license` and others of [`generate_model_card`]. `name` defaults to the folder's.

    Example:

    ```python
    >>> callbacks = [ModelCardCallback(teacher="openai/whisper-tiny.en", license="mit")]
    >>> trainer = DistillationTrainer(..., callbacks=callbacks)
    ```
    """

    def __init__(self, **details: Any) -> None:
        self.details = details
        self._run_url: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks the tracker for its address while its run is open."""
        self._run_url = run_url(args)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """The card of the student that is being trained; of several validation sets, when the last one is done."""
        if metrics is None or {"eval_loss", "eval_macro_wer"} & set(metrics):
            self._write(args, state, kwargs["model"], Path(str(args.output_dir)))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The card of one checkpoint."""
        self._write(args, state, kwargs["model"], Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The card of the finished student."""
        self._write(args, state, kwargs["model"], Path(str(args.output_dir)))

    def write(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: str | Path
    ) -> ModelCard:
        """Writes the card as of now into a folder, by whatever process calls it.

        Args:
            args ([`~transformers.TrainingArguments`]): of the trainer.
            state ([`~transformers.TrainerState`]): its step and log.
            model ([`~transformers.WhisperForConditionalGeneration`]): the student.
            folder (`str` or `Path`): to be pushed, for example.
        """
        finished = state.max_steps and state.global_step >= state.max_steps
        facts: dict[str, Any] = {
            "name": Path(str(args.output_dir)).name,
            "training_args": args,
            "log_history": state.log_history,
            "step": None if finished else state.global_step,
            "run_url": run_url(args) or self._run_url,
        }
        return save_model_card(folder, model, **facts | self.details)

    def _write(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: Path
    ) -> None:
        if not state.is_world_process_zero:
            return
        try:
            self.write(args, state, model, folder)
        except (OSError, ValueError) as error:  # a full disk, a metric that no picture can show
            logger.warning(f"The model card in {folder.name} could not be written: {type(error).__name__}: {error}")


def teacher_facts(name: str) -> dict[str, Any]:
    """What a card can say of a teacher beyond its name: its revision, its licence, its config.

    The licence is the one that the teacher's own card tells; it carries over to a student whose weights come from it.

    Args:
        name (`str`): Hub id that was loaded on this machine, or a folder.

    Returns:
        `dict`: `teacher_revision`, `license` and `teacher_config`, arguments of [`generate_model_card`]; None where it
            is not known.
    """
    revision = cached_revision(name)
    return {
        "teacher_revision": revision,
        "license": find_license(name, revision=revision),
        "teacher_config": AutoConfig.from_pretrained(name),
    }


def latest_word_errors(log_history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The newest WER of each validation set in a trainer's log: `eval_test_wer` → `{"test": ...}`; no average.

    A set without a name is called "validation".
    """
    return {name: points[-1][1] for name, points in word_error_curves(log_history).items()}


def word_error_curves(log_history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The WER of each validation set over the steps, as fractions.

    Args:
        log_history (`Sequence[Mapping]`): of the trainer's state.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in log_history:
        for key, value in entry.items():
            if key.startswith("eval_") and key.endswith("_wer") and key != "eval_macro_wer":
                name = key.removeprefix("eval_").removesuffix("wer").removesuffix("_") or "validation"
                found.setdefault(name, []).append((entry.get("step", 0), value))
    return found


def loss_curves(log_history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Loss and its parts over the steps, in training and on each validation set.

    Args:
        log_history (`Sequence[Mapping]`): of the trainer's state.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in log_history:
        for key, value in entry.items():
            if key in ("loss", "kl", "pl", "mse"):
                name = f"{key}, training"
            elif key.startswith("eval_") and key.endswith("_loss"):
                name = f"loss, {key.removeprefix('eval_').removesuffix('loss').removesuffix('_') or 'validation'}"
            else:
                continue
            found.setdefault(name, []).append((entry.get("step", 0), value))
    return found


def draw_curves(log_history: Sequence[Mapping[str, Any]], folder: str | Path) -> dict[str, str]:
    """Draws what a training logged; nothing for a log without steps.

    Args:
        log_history (`Sequence[Mapping]`): of the trainer's state.
        folder (`str` or `Path`): of the pictures.

    Returns:
        `dict[str, str]`: captions and file names.
    """
    losses, rates = loss_curves(log_history), word_error_curves(log_history)
    percent = {name: [(step, 100 * wer) for step, wer in points] for name, points in rates.items()}
    found = {}
    for curves, label, file in ((losses, "loss per token", LOSS_CURVES), (percent, "word error rate / %", WER_CURVES)):
        picture = Path(folder, file)
        picture.unlink(missing_ok=True)
        if any(step for points in curves.values() for step, _ in points):
            curves_over_steps(curves, label, picture)
            found[f"{label.partition(' / ')[0]} over training steps".capitalize()] = file
    return found


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: an upload may read the folder meanwhile."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
