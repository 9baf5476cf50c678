"""What a report is made of: counts and times of every model, kept in files, so that a stopped report goes on.

Knows the figures and their files. They are measured by the other modules of this room and drawn by the report's.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_distil_whisper.evaluation.scoring import EvaluationResult
from hf_distil_whisper.evaluation.significance import confidence_interval
from hf_distil_whisper.metrics import WordErrors


@dataclass(frozen=True)
class SetScore:
    """What a model made of one set.

    Args:
        errors (`WordErrors`): over all rows with a reference.
        interval (`tuple[float, float]`, *optional*): of the word error rate, 95 %, fractions; None for one recording.
        seconds (`float`): of work.
        audio_seconds (`float`): of audio.
        repeated_5grams (`int`): over all transcripts.
        unreadable_rows (`int`, *optional*, defaults to 0): in no figure.
        empty_references (`int`, *optional*, defaults to 0): rows that are in no rate.
    """

    errors: WordErrors
    interval: tuple[float, float] | None
    seconds: float
    audio_seconds: float
    repeated_5grams: int
    unreadable_rows: int = 0
    empty_references: int = 0

    @property
    def rtf(self) -> float:
        """Seconds of work a second of audio."""
        return self.seconds / self.audio_seconds


def set_score(result: EvaluationResult) -> SetScore:
    """The figures of a report in a model's result on one set.

    Args:
        result (`EvaluationResult`): short or long form.
    """
    return SetScore(
        result.errors,
        confidence_interval(result),
        result.seconds,
        result.audio_seconds,
        result.repeated_5grams,
        result.unreadable_rows,
        result.empty_references,
    )


class MeasuredFolder:
    """Figures by name, each in a JSON file of its own.

    Args:
        folder (`str` or `Path`): of the files; made with the first one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, name: str, settings: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """A figure that was measured with the same settings before, or is measured now and kept.

        Args:
            name (`str`): of the figure; its parts, of what kind and of what, are separated by `", "`.
            settings (`Mapping[str, Any]`): all that it depends on, the weights of the model among them.
            measure (`Callable[[], Any]`): gives what JSON can hold.
        """
        # Parts apart by what no part has: `student-large` on `test` is not `student` on `large-test`.
        parts = [re.sub(r"(?:[^\w.-]|_)+", "-", part) for part in name.split(", ")]
        file = self.folder / ("__".join(parts) + ".json")
        settings = json.loads(json.dumps(settings))
        if file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["settings"] == settings:
                return kept["measured"]
        measured = json.loads(json.dumps(measure()))
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        content = {"name": name, "settings": settings, "measured": measured}  # the file's name is not exact
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, file)
        return measured


def score_as_json(score: SetScore) -> dict[str, Any]:
    """A score as [`MeasuredFolder`] keeps it.

    Args:
        score ([`SetScore`]): of one set.
    """
    return asdict(score)


def score_from_json(kept: Mapping[str, Any]) -> SetScore:
    """The opposite of [`score_as_json`].

    Args:
        kept (`Mapping[str, Any]`): as read.
    """
    interval = None if kept["interval"] is None else tuple(kept["interval"])
    return SetScore(**{**kept, "errors": WordErrors(**kept["errors"]), "interval": interval})
