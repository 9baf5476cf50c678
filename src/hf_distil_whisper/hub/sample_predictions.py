"""A table of sample predictions at every validation: reference, transcript, and both with the errors marked.

Knows the tokens that the trainer generated anyway, of which it keeps a few; the models run no second time.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distil_whisper.evaluation.alignment import AlignedWord, align_words
from hf_distil_whisper.hub.card_text import Markdown, card_table, inline
from hf_distil_whisper.hub.trackers import log_table
from hf_distil_whisper.inference.generation import scoring_language
from hf_distil_whisper.inference.results import plain_text
from hf_distil_whisper.metrics import errors_in_language, get_normalizer, is_written_without_spaces
from hf_distil_whisper.training.losses import IGNORE_INDEX
from hf_distil_whisper.training.trainer import DistillationTrainer

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
