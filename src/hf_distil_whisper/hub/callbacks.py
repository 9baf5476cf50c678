"""A table of sample predictions at every validation: reference, transcript, and both with the errors marked.

Knows the tokens that the trainer generated anyway, of which it keeps a few; the models run no second time.
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers import (
    AutoConfig,
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
)
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.utils import logging

from hf_distil_whisper.evaluation.results import (
    AlignedWord,
    align_words,
)
from hf_distil_whisper.hub.model_card import (
    Evaluation,
    Markdown,
    cached_revision,
    card_table,
    eval_result_files,
    find_license,
    generate_model_card,
    inline,
    public_url,
    read_evaluation,
)
from hf_distil_whisper.hub.push import StudentPushCallback
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import scoring_language
from hf_distil_whisper.metrics import (
    errors_in_language,
    get_normalizer,
    is_written_without_spaces,
)
from hf_distil_whisper.training.losses import IGNORE_INDEX
from hf_distil_whisper.training.trainer import DistillationTrainer

logger = logging.get_logger(__name__)

_SPACES = "https://huggingface.co/spaces"


def run_url(args: TrainingArguments) -> str | None:
    """Where the run of a training can be looked at: on wandb, or in the Space of trackio.

    Args:
        args ([`~transformers.TrainingArguments`]): says what the training reports to.

    Returns:
        `str`, *optional*: None for no tracker, for TensorBoard, which has no address, and for runs that stay here.
    """
    wandb, trackio = (sys.modules.get(name) if name in args.report_to else None for name in ("wandb", "trackio"))
    if wandb is not None and wandb.run is not None and wandb.run.url:
        return public_url(wandb.run.url) or None
    if trackio is not None:
        # After training trackio has closed the run, and only the arguments tell.
        space = trackio.context_vars.current_space_id.get() or args.trackio_space_id
        return f"{_SPACES}/{space}" if space and "/" in space else None
    return None


def log_table(
    callbacks: Sequence[TrainerCallback],
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    text: str,
    step: int,
) -> list[str]:
    """Sends a table to each tracker that is active; one that fails is reported and costs the table only.

    Args:
        callbacks (`Sequence[TrainerCallback]`): of the trainer, its trackers among them.
        name (`str`): of the table, for example "samples/test".
        columns (`Sequence[str]`): headings.
        rows (`Sequence[Sequence[object]]`): cells, texts and numbers.
        text (`str`): the same as Markdown, for TensorBoard, which has no tables.
        step (`int`): of the training.

    Returns:
        `list[str]`: the trackers that took it.
    """
    sent = []
    for callback in callbacks:
        try:
            if isinstance(callback, WandbCallback):
                tracker, wandb = "wandb", sys.modules["wandb"]
                if wandb.run is None:  # switched off by its environment variable
                    continue
                table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
                wandb.log({name: table, "train/global_step": step})
            elif isinstance(callback, TrackioCallback):
                tracker, trackio = "trackio", sys.modules["trackio"]
                cells = [
                    [None if cell is None else str(cell) for cell in column] for column in zip(*rows, strict=True)
                ]
                frame = Dataset.from_dict(dict(zip(columns, cells, strict=True))).to_pandas()
                trackio.log({name: trackio.Table(dataframe=frame), "train/global_step": step})
            elif isinstance(callback, TensorBoardCallback):
                tracker = "tensorboard"
                if callback.tb_writer is None:  # before the first step and after the last one
                    continue
                callback.tb_writer.add_text(name, text, step)
            else:
                continue
        except Exception as error:  # a tracker's own kinds, of the network among them: none may end a training
            logger.warning(f"{type(callback).__name__} did not take the table {name!r}: {type(error).__name__}.")
            continue
        sent.append(tracker)
    return sent


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


# Colours that all common kinds of colour blindness distinguish (Okabe and Ito, 2008).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def curves_over_steps(curves: Mapping[str, Sequence[tuple[int, float]]], label: str, path: str | Path) -> None:
    """Draws what a training logged over its steps: losses, or word error rates in %.

    Args:
        curves (`Mapping[str, Sequence[tuple[int, float]]]`): by name, points of step and value in their order.
        label (`str`): of the y axis, which starts at 0.
        path (`str` or `Path`): of the PNG or SVG.

    Raises:
        ValueError: without a curve.
    """
    if not any(curves.values()):
        raise ValueError("`curves`: expected values by step, got none.")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), color, marker in zip(curves.items(), cycle(_COLOURS), cycle("osD^vPX*"), strict=False):
        steps, values = zip(*points, strict=True)
        # A marker on every one of thousands of points would hide the line.
        axes.plot(steps, values, label=name, color=color, marker=marker, markevery=max(1, len(points) // 20))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    axes.grid(axis="y", color="#c9c9c9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: an upload may read the folder meanwhile."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


class PushCheckpointCallback(StudentPushCallback):
    """Pushes a complete student with its card to the Hub with every checkpoint, and when training ends.

    A push holds weights in safetensors, repaired generation config, all files of the processor, and the card as of
    that step, in one commit; nothing of teacher, optimizer or token. It goes up in the background from a copy, so that
    no step waits. The commit of the best model gets the tag `best`. While the network fails the training goes on: it
    is tried again, once more at the end, and left to `hf-distil-whisper push` after that.

    [`DistillationTrainer`] does the same for `push_to_hub=True`; this callback serves where repository or strategy
    are not those of the arguments, and any other `Trainer` of a Whisper.

    Args:
        repo_id (`str`, *optional*): by default `hub_model_id`, or the name of the output folder.
        private (`bool`, *optional*): make a private repository.
        revision (`str`, *optional*): branch, by default `main`.
        token (`str`, *optional*): by default `hub_token`, or that of the environment.
        strategy (`str`, *optional*): "every_save", "end", "checkpoint" (also all that is needed to go on elsewhere,
            the optimizer's state included, in `last-checkpoint`) or "all_checkpoints"; by default `hub_strategy`.
        card ([`ModelCardCallback`], *optional*): writes the card where no other callback has. By default one that
            knows the name of the repository only.

    Example:
        ```python
        card = ModelCardCallback(name="me/distil-small", teacher="openai/whisper-small", license="mit")
        callbacks = [card, PushCheckpointCallback("me/distil-small", private=True, card=card)]
        trainer = DistillationTrainer(..., callbacks=callbacks)
        ```
    """

    def __init__(
        self,
        repo_id: str | None = None,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        strategy: str | None = None,
        card: ModelCardCallback | None = None,
    ):
        super().__init__(repo_id, private=private, revision=revision, token=token, strategy=strategy)
        self.card = card
        self.write_card = self._write_card

    def _write_card(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: Path
    ) -> None:
        card = self.card or ModelCardCallback(name=self.repository(args).repo_id)
        card.write(args, state, model, folder)


SAMPLES_FILE = "_sample_predictions.md"
"""In the output folder. Files whose names begin with an underscore are not pushed: validation texts stay here."""

COLUMNS = ("row", "reference", "prediction", "errors marked", "WER %")


class Sample(NamedTuple):
    """A row of a validation set.

    Args:
        row (`int`): its number in the set.
        reference (`str`): what was said.
        prediction (`str`): what the student wrote.
        marked (`str`): normalised words as Markdown: what is missing or wrong ~~struck~~, what is new **bold**.
        wer (`float`, *optional*): a fraction; None without a word in the reference.
    """

    row: int
    reference: str
    prediction: str
    marked: str
    wer: float | None


class SamplePredictionsCallback(TrainerCallback):
    """Writes a few predictions of every validation set to a file, and to the tracker where there is one.

    The same rows each time, spread over the set, so that they can be watched getting better. Nothing leaves the
    machine unless `report_to` names a tracker, which then gets them as `samples/<set>`.

    Args:
        trainer ([`DistillationTrainer`]): with `predict_with_generate` and a processor. Add the callback to it.
        num_samples (`int`, *optional*, defaults to 8): rows of each set.

    Raises:
        ValueError: if the trainer generates nothing, or there is no row to show.

    Example:

    ```python
    >>> trainer = DistillationTrainer(...)
    >>> trainer.add_callback(SamplePredictionsCallback(trainer))
    ```
    """

    def __init__(self, trainer: DistillationTrainer, num_samples: int = 8):
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least 1 row to show, got {num_samples}.")
        if trainer.compute_metrics is None or trainer.processing_class is None:
            raise ValueError(
                "SamplePredictionsCallback shows generated transcripts, but this trainer generates none: it needs a "
                "`processing_class` and --predict_with_generate true."
            )
        self.trainer, self.num_samples = trainer, num_samples
        self.tokenizer = trainer.processing_class.tokenizer
        self.language = trainer.args.normalizer or scoring_language(trainer.model, trainer.args.language)
        self._held: list[tuple[int, list[int], list[int]]] = []
        self._sections: dict[str, str] = {}
        trainer.compute_metrics = self._watched(trainer.compute_metrics)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """The table of the set that was just validated."""
        held, self._held = self._held, []
        if not held or not state.is_world_process_zero:
            return
        name = _validated_set(metrics)
        samples = [self._sample(*row) for row in held]
        table = samples_table(samples)
        self._sections[name] = f"## {inline(name)}, step {state.global_step}\n\n{table}\n"
        path = Path(str(args.output_dir), SAMPLES_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text("# Sample predictions\n\n" + "\n".join(self._sections.values()), encoding="utf-8")
        os.replace(unfinished, path)
        cells = [(one.row, one.reference, one.prediction, one.marked, _percent(one.wer)) for one in samples]
        callbacks = self.trainer.callback_handler.callbacks
        log_table(callbacks, f"samples/{name}", COLUMNS, cells, table, state.global_step)

    def _watched(self, compute: Callable[[EvalPrediction], dict]) -> Callable[[EvalPrediction], dict]:
        def compute_metrics(prediction: EvalPrediction) -> dict:
            labels, predicted = np.asarray(prediction.label_ids), np.asarray(prediction.predictions)
            rows = _spread(len(labels), self.num_samples)
            self._held = [(row, labels[row].tolist(), predicted[row].tolist()) for row in rows]
            return compute(prediction)

        return compute_metrics

    def _sample(self, row: int, labels: list[int], predicted: list[int]) -> Sample:
        begin = int(self.tokenizer.convert_tokens_to_ids("<|0.00|>"))
        reference, prediction = (
            plain_text([token for token in tokens if token != IGNORE_INDEX], self.tokenizer, begin)
            for tokens in (labels, predicted)
        )
        return compare(row, reference, prediction, self.language)


def compare(row: int, reference: str, prediction: str, language: str) -> Sample:
    """Aligns a prediction with its reference.

    Args:
        row (`int`): number of the row.
        reference (`str`): what was said.
        prediction (`str`): what was written.
        language (`str`): whose normaliser and unit count, or "basic".
    """
    normalizer = get_normalizer(language)
    said, written = normalizer(reference), normalizer(prediction)
    if not said:
        return Sample(row, reference, prediction, f"**{inline(written)}**" if written else "", None)
    characters = is_written_without_spaces(language)
    words = align_words(said, written, characters=characters)
    wer = errors_in_language(reference, prediction, language).wer
    return Sample(row, reference, prediction, marked_text(words, "" if characters else " "), wer)


def marked_text(words: Sequence[AlignedWord], space: str = " ") -> str:
    """Aligned words as Markdown: missing and wrong ones ~~struck~~, new ones **bold**.

    Args:
        words (`Sequence[AlignedWord]`): from [`align_words`].
        space (`str`, *optional*, defaults to `" "`): between them.

    Example:
        ```python
        >>> marked_text(align_words("the cat sat", "a cat"))
        '~~the~~ **a** cat ~~sat~~'
        ```
    """
    parts = []
    for word in words:
        if word.operation == "hit":
            parts.append(inline(word.reference))
        else:
            parts += [f"~~{inline(word.reference)}~~"] if word.reference is not None else []
            parts += [f"**{inline(word.hypothesis)}**"] if word.hypothesis is not None else []
    return space.join(parts)


def samples_table(samples: Sequence[Sample]) -> str:
    """Samples as a Markdown table, with their marks.

    Args:
        samples (`Sequence[Sample]`): of one set.
    """
    return card_table(
        COLUMNS,
        [(one.row, one.reference, one.prediction, Markdown(one.marked), _percent(one.wer)) for one in samples],
    )


def _validated_set(metrics: dict[str, float]) -> str:
    """The name in `eval_<set>_runtime`; "validation" for a set without one."""
    key = next((key for key in metrics if key.endswith("_runtime")), "eval_runtime")
    return key.removesuffix("_runtime").removeprefix("eval").removeprefix("_") or "validation"


def _spread(number: int, count: int) -> list[int]:
    return list(range(number)) if number <= count else [place * number // count for place in range(count)]


def _percent(wer: float | None) -> str:
    return "" if wer is None else f"{100 * wer:.1f}"
