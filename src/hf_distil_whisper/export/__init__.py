"""Exports to other runtimes: what the formats share, and the comparison of an export with transformers."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible, check_weights
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.inference.dataset import generate_rows
from hf_distil_whisper.inference.generation import TokenSequence, generate_tokens
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import timestamp_begin

Generator = Callable[..., list[TokenSequence]]
"""Log-mel features of shape (batch, mel bins, frames) to one token sequence per window."""


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A staging directory that becomes `folder`, which must be new or empty, when the block ends without an error."""
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(
            f"`folder`: {folder} exists already and is not an empty folder; an export would mix with its files. "
            "Choose a new folder, or empty this one."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as staging:
        part = Path(staging, "export")
        part.mkdir()
        yield part
        if folder.is_dir():
            folder.rmdir()
        os.replace(part, folder)


def check_exportable(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    quantization: str,
    quantizations: Sequence[str],
) -> None:
    """Refuses unknown quantizations, another model's processor, and models of which an export would lose a part."""
    if quantization not in quantizations:
        raise ValueError(f"`quantization`: expected one of {', '.join(quantizations)}, got {quantization!r}.")
    check_weights(model)
    check_compatible(model, None, processor)


@dataclass(frozen=True)
class ExportCheck:
    """Texts of an exported model beside the greedy texts of transformers."""

    num_recordings: int
    differing: list[tuple[str, str, str]]  # id of the recording, text of the export and other text of transformers

    def __str__(self) -> str:
        equal = self.num_recordings - len(self.differing)
        share = f" ({equal / self.num_recordings:.1%})" if self.num_recordings else ""
        return f"{equal} of {self.num_recordings} texts equal to those of transformers{share}"


def greedy_texts(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    rows: Dataset | Sequence[Mapping],
    *,
    generate: Generator | None = None,
    language: str | None = None,
    batch_size: int = 16,
    errors: RowErrors | None = None,
) -> dict[int, str]:
    """Greedy transcripts of rows with `audio` of up to one window, by row index; unreadable rows are missing.

    `generate` is the runtime of an export; by default the model itself, in transformers and in `language`. `errors`
    collects the rows that cannot be read.
    """
    generate = generate or partial(generate_tokens, model, language=language)
    errors = RowErrors() if errors is None else errors
    result = generate_rows(model, processor, rows, errors, generate, batch_size=batch_size)
    first_timestamp = timestamp_begin(model)
    return {
        row: plain_text(sequence.tokens, processor.tokenizer, first_timestamp)
        for row, sequence in result.sequences.items()
    }


def check_export(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    generate: Generator,
    rows: Dataset | Sequence[Mapping],
    *,
    expected: Mapping[int, str] | None = None,
    language: str | None = None,
    batch_size: int = 16,
) -> ExportCheck:
    """Compares the texts of an export, which `generate` runs, with the greedy texts of transformers.

    `rows` have `audio` of up to one window and possibly `id`; `expected` comes from [`greedy_texts`], where several
    exports are checked.
    """
    if expected is None:
        expected = greedy_texts(model, processor, rows, language=language, batch_size=batch_size)
    texts = greedy_texts(model, processor, rows, generate=generate, batch_size=batch_size)
    differing = [(row_id(rows[row], row), texts[row], text) for row, text in expected.items() if texts[row] != text]
    return ExportCheck(len(expected), differing)
