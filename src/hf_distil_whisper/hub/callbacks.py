"""Trainer callbacks that write the model card, push checkpoints to the Hub, and show sample predictions."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import (
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
)
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.utils import logging

from hf_distil_whisper.hub.model_card import (
    CardFacts,
    Markdown,
    card_facts,
    card_table,
    inline,
    public_url,
    replace_file,
    save_model_card,
)
from hf_distil_whisper.hub.push import StudentPushCallback
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import scoring_language
from hf_distil_whisper.metrics import errors_in_language, get_normalizer, is_written_without_spaces
from hf_distil_whisper.training.losses import IGNORE_INDEX
from hf_distil_whisper.training.trainer import DistillationTrainer

logger = logging.get_logger(__name__)

SAMPLES_FILE = "_sample_predictions.md"
"""In the output folder. Files whose names begin with an underscore are not pushed: validation texts stay local."""
COLUMNS = ("row", "reference", "prediction", "errors marked", "WER %")


class ModelCardCallback(TrainerCallback):
    """Writes the card as of that step: beside every checkpoint, and into the output folder at each evaluation.

    Scores are those of the newest evaluation in the log, by validation set. A failure is logged and costs the card,
    never the training.

    Args:
        facts ([`CardFacts`], *optional*): what the trainer does not know: teacher, data, licence and others.
        fields: fields of [`CardFacts`], instead of `facts` or on top of it; `name` is by default that of the output
            folder.

    Example:

    ```python
    >>> callbacks = [ModelCardCallback(teacher="openai/whisper-tiny.en", license="mit")]
    >>> trainer = DistillationTrainer(..., callbacks=callbacks)
    ```
    """

    def __init__(self, facts: CardFacts | None = None, **fields: Any) -> None:
        self.facts = card_facts(facts or CardFacts(""), fields)
        self._run_url: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks the tracker for the address of its run while it is open."""
        self._run_url = run_url(args)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the card of the current student; with several validation sets, after the last one."""
        # The Trainer calls this once for each set, and once more with the average where there are several.
        if metrics is None or {"eval_loss", "eval_macro_wer"} & set(metrics):
            self._try_to_write(args, state, kwargs["model"], Path(str(args.output_dir)))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the card of one checkpoint."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self._try_to_write(args, state, kwargs["model"], checkpoint)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes the card of the finished student."""
        self._try_to_write(args, state, kwargs["model"], Path(str(args.output_dir)))

    def write(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: str | Path
    ) -> ModelCard:
        """Writes the card as of now into a folder, in whatever process calls it.

        Args:
            args ([`~transformers.TrainingArguments`]): of the trainer.
            state ([`~transformers.TrainerState`]): its step and log.
            model ([`~transformers.WhisperForConditionalGeneration`]): the student.
            folder (`str` or `Path`): for example one to be pushed.
        """
        finished = state.max_steps and state.global_step >= state.max_steps
        facts = replace(
            self.facts,
            name=self.facts.name or Path(str(args.output_dir)).name,
            training_args=self.facts.training_args or args,
            step=self.facts.step or (None if finished else state.global_step),
            run_url=self.facts.run_url or run_url(args) or self._run_url,
        )
        return save_model_card(folder, model, facts, log_history=state.log_history)

    def _try_to_write(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: Path
    ) -> None:
        if not state.is_world_process_zero:
            return
        try:
            self.write(args, state, model, folder)
        except (OSError, ValueError) as error:  # a full disk, a metric that no picture can show
            logger.warning(f"The model card in {folder.name} could not be written: {type(error).__name__}: {error}")


class PushCheckpointCallback(StudentPushCallback):
    """Pushes a complete student with its card to the Hub with every checkpoint, and when training ends.

    A push holds weights in safetensors, repaired generation config, all files of the processor, and the card as of
    that step, in one commit; nothing of teacher, optimizer or token. It is uploaded in the background from a copy, so
    that no step waits. The commit of the best model gets the tag `best`. While the network fails the training goes on:
    the push is repeated, once more at the end, and left to `hf-distil-whisper push` after that.

    [`DistillationTrainer`] does the same for `push_to_hub=True`; this callback is for repositories and strategies
    other than those of the arguments, and for any other `Trainer` of a Whisper.

    Args:
        repo_id (`str`, *optional*): by default `hub_model_id`, or the name of the output folder.
        card ([`ModelCardCallback`], *optional*): writes the card where no other callback has. By default one that
            knows the name of the repository only.
        settings: `private`, `revision`, `token` and `strategy`, by default as in the training arguments (`hub_*`);
            strategy "checkpoint" also pushes all that is needed to resume elsewhere, in `last-checkpoint`.

    Example:
        ```python
        card = ModelCardCallback(name="me/distil-small", teacher="openai/whisper-small", license="mit")
        callbacks = [card, PushCheckpointCallback("me/distil-small", private=True, card=card)]
        trainer = DistillationTrainer(..., callbacks=callbacks)
        ```
    """

    def __init__(self, repo_id: str | None = None, *, card: ModelCardCallback | None = None, **settings: Any):
        super().__init__(repo_id, **settings, write_card=self._write_card)
        self.card = card

    def _write_card(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: Path
    ) -> None:
        card = self.card or ModelCardCallback(name=self.repository(args).repo_id)
        card.write(args, state, model, folder)


class SamplePredictionsCallback(TrainerCallback):
    """Writes a few predictions of every validation set to a file, and to the tracker if there is one.

    The same rows each time, spread over the set. Nothing leaves the machine unless `report_to` names a tracker, which
    then gets them as `samples/<set>`. The models do not run again: these are the tokens that the trainer generated.

    Args:
        trainer ([`DistillationTrainer`]): with `predict_with_generate` and a processor. Add the callback to it.
        num_samples (`int`, *optional*, defaults to 8): rows of each set.

    Raises:
        ValueError: if the trainer generates nothing, or `num_samples` is below 1.

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
        self._rows: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._sections: dict[str, str] = {}
        trainer.compute_metrics = partial(self._compute_metrics, trainer.compute_metrics)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Writes the table of the set that was just validated."""
        rows, self._rows = self._rows, []
        if not rows or not state.is_world_process_zero:
            return
        # `eval_<set>_runtime`, or `eval_runtime` for a set without a name
        key = next((key for key in metrics if key.endswith("_runtime")), "eval_runtime")
        name = key.removesuffix("_runtime").removeprefix("eval").removeprefix("_") or "validation"
        samples = [compare(row, self._text(labels), self._text(tokens), self.language) for row, labels, tokens in rows]
        table = samples_table(samples)
        self._sections[name] = f"## {inline(name)}, step {state.global_step}\n\n{table}\n"
        path = Path(str(args.output_dir), SAMPLES_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, "# Sample predictions\n\n" + "\n".join(self._sections.values()))
        cells = [sample.cells() for sample in samples]
        callbacks = self.trainer.callback_handler.callbacks
        log_table(callbacks, f"samples/{name}", COLUMNS, cells, table, state.global_step)

    def _compute_metrics(self, compute: Callable[[EvalPrediction], dict], prediction: EvalPrediction) -> dict:
        labels, tokens = np.asarray(prediction.label_ids), np.asarray(prediction.predictions)
        count = min(self.num_samples, len(labels))
        rows = [number * len(labels) // count for number in range(count)]
        self._rows = [(row, labels[row], tokens[row]) for row in rows]
        return compute(prediction)

    def _text(self, tokens: np.ndarray) -> str:
        timestamp_begin = int(self.tokenizer.convert_tokens_to_ids("<|notimestamps|>")) + 1
        return plain_text(tokens[tokens != IGNORE_INDEX].tolist(), self.tokenizer, timestamp_begin)


class Sample(NamedTuple):
    """A row of a validation set; in `marked` missing and wrong words are ~~struck~~, inserted ones **bold**."""

    row: int
    reference: str
    prediction: str
    marked: str
    wer: float | None

    def cells(self) -> tuple[int, str, str, Markdown, str]:
        """Values of a table row, by `COLUMNS`."""
        percent = "" if self.wer is None else f"{100 * self.wer:.1f}"
        return self.row, self.reference, self.prediction, Markdown(self.marked), percent


def compare(row: int, reference: str, prediction: str, language: str) -> Sample:
    """Aligns a prediction with its reference; `language` decides on normaliser and unit, see [`get_normalizer`]."""
    normalizer = get_normalizer(language)
    spoken, written = normalizer(reference), normalizer(prediction)
    if not spoken:
        return Sample(row, reference, prediction, f"**{inline(written)}**" if written else "", None)
    characters = is_written_without_spaces(language)
    if characters:
        spoken, written = "".join(spoken.split()), "".join(written.split())
    aligned = (jiwer.process_characters if characters else jiwer.process_words)(spoken, written)
    references, hypotheses, parts = aligned.references[0], aligned.hypotheses[0], []
    for chunk in aligned.alignments[0]:
        ours = references[chunk.ref_start_idx : chunk.ref_end_idx]
        theirs = hypotheses[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for index in range(max(len(ours), len(theirs))):
            if chunk.type == "equal":
                parts.append(inline(ours[index]))
                continue
            parts += [f"~~{inline(ours[index])}~~"] if ours else []
            parts += [f"**{inline(theirs[index])}**"] if theirs else []
    wer = errors_in_language(reference, prediction, language).wer
    return Sample(row, reference, prediction, ("" if characters else " ").join(parts), wer)


def samples_table(samples: Sequence[Sample]) -> str:
    """Samples of one set as a Markdown table."""
    return card_table(COLUMNS, [sample.cells() for sample in samples])


# Trackers


def run_url(args: TrainingArguments) -> str | None:
    """The page of a training's run on wandb, or in the Space of trackio; None for runs that stay on this machine."""
    # `report_to` decides: a tracker that something else has imported is not asked.
    wandb, trackio = (sys.modules.get(name) if name in args.report_to else None for name in ("wandb", "trackio"))
    if wandb is not None and wandb.run is not None and wandb.run.url:
        return public_url(wandb.run.url) or None
    if trackio is not None:
        # After training trackio has closed the run, and only the arguments know its Space.
        space = trackio.context_vars.current_space_id.get() or args.trackio_space_id
        return f"https://huggingface.co/spaces/{space}" if space and "/" in space else None
    return None


def log_table(
    callbacks: Sequence[TrainerCallback],
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    text: str,
    step: int,
) -> list[str]:
    """Sends a table to each active tracker and returns their names; one that fails costs the table only.

    Args:
        callbacks (`Sequence[TrainerCallback]`): of the trainer, its trackers among them.
        name (`str`): of the table, for example "samples/test".
        columns (`Sequence[str]`): headings.
        rows (`Sequence[Sequence[object]]`): cells, texts and numbers.
        text (`str`): the same as Markdown, for TensorBoard, which has no tables.
        step (`int`): of the training.
    """
    sent = []
    for callback in callbacks:
        try:
            if isinstance(callback, WandbCallback) and sys.modules["wandb"].run is not None:
                wandb = sys.modules["wandb"]
                table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
                # No `step=`: the Trainer's own values carry theirs as `train/global_step`.
                wandb.log({name: table, "train/global_step": step})
                sent.append("wandb")
            elif isinstance(callback, TrackioCallback):
                trackio = sys.modules["trackio"]
                cells = [
                    [None if cell is None else str(cell) for cell in column] for column in zip(*rows, strict=True)
                ]
                frame = Dataset.from_dict(dict(zip(columns, cells, strict=True))).to_pandas()
                trackio.log({name: trackio.Table(dataframe=frame), "train/global_step": step})
                sent.append("trackio")
            # TensorBoard has a writer from the first step to the last one.
            elif isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text(name, text, step)
                sent.append("tensorboard")
        except Exception as error:  # trackers raise their own types, of the network too: none may end a training
            logger.warning(f"{type(callback).__name__} did not take the table {name!r}: {type(error).__name__}.")
    return sent
