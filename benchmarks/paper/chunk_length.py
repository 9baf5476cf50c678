"""Table 23: word error rates of long recordings over length and overlap of their chunks.

    python benchmarks/paper/chunk_length.py --model_name_or_path runs/quickstart/student \
        --teacher_model_name_or_path examples/quickstart/teacher --dataset.path examples/quickstart/corpus \
        --dataset.split longform --strides 0 0.5 1 2 --output_dir runs/sweeps/chunks

Use a validation set: the best setting on a test set flatters that set. `make sweeps` runs it; `report.py --sweeps`
takes its folder. Cost: 20 minutes on two CPU cores.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from hf_distil_whisper import WordErrors, evaluate_long_form, get_normalizer, parse_arguments, run_script
from hf_distil_whisper.cli.config import DataSource, InputError, as_source, setting, source_setting
from hf_distil_whisper.inference.chunked import check_chunks
from hf_distil_whisper.inference.encoder import window_seconds

sys.path.append(str(Path(__file__).resolve().parents[1]))
from figures import wer_over_chunks
from inputs import LoadedModel, check_one_normalizer, load_models, load_sets, new_folder, ready, require, whole_numbers

Panels = dict[str, dict[str, dict[str, list[tuple[float, float]]]]]
"""x axis → title of a panel → label of a line → points of seconds and WER."""


@dataclass(frozen=True)
class ChunkRow:
    """A model on a set in chunks of one length and overlap.

    Args:
        model (`str`): its name in the table.
        chunk_length (`float`): seconds.
        stride (`float`): seconds at either side that a neighbour covers too: chunks overlap by twice as much.
        errors (`WordErrors`): over all recordings with a reference.
        repeated_5grams (`int`): of all predictions (Table 8).
        seconds (`float`): spent on features and generation.
        audio_seconds (`float`): length of the recordings.
        unreadable_rows (`int`): left out.
    """

    model: str
    chunk_length: float
    stride: float
    errors: WordErrors
    repeated_5grams: int
    seconds: float
    audio_seconds: float
    unreadable_rows: int

    @property
    def wer(self) -> float:
        """Word error rate, a fraction; NaN where no recording has a reference."""
        return self.errors.wer if self.errors.num_words else math.nan

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of audio."""
        return self.seconds / self.audio_seconds


def chunk_settings(
    chunk_lengths: Sequence[float], strides: Sequence[float], window: float
) -> list[tuple[float, float]]:
    """Pairs of chunk length and stride, each once; a sixth of each chunk without strides.

    Raises:
        ValueError: for a chunk longer than the window (seconds), or one of which its strides leave nothing.
    """
    pairs = [(length, stride) for length in chunk_lengths for stride in strides or [length / 6]]
    for length, stride in pairs:
        check_chunks(length, stride, window)
    return list(dict.fromkeys(pairs))


def sweep_chunks(
    name: str, loaded: LoadedModel, dataset: Dataset, settings: Sequence[tuple[float, float]], **options: Any
) -> list[ChunkRow]:
    """Scores one model with every pair of chunk length and stride; `options` of [`evaluate_long_form`]."""
    rows = []
    for length, stride in settings:
        result = evaluate_long_form(
            loaded.model, dataset, loaded.processor, chunk_length=length, stride=stride, **options
        )
        counts = result.errors, result.repeated_5grams, result.seconds, result.audio_seconds, len(result.row_errors)
        rows.append(ChunkRow(name, length, stride, *counts))
    return rows


def chunk_table(rows: Sequence[ChunkRow]) -> str:
    """Table 23: WER in % by chunk length and model, and by stride where it is not a sixth of the chunk."""
    models = list(dict.fromkeys(row.model for row in rows))
    cells = {
        (row.chunk_length, row.stride, row.model): "-" if math.isnan(row.wer) else f"{100 * row.wer:.1f}"
        for row in rows
    }
    with_stride = any(row.stride != row.chunk_length / 6 for row in rows)
    heads = ["Chunk length / s", *["Stride / s"] * with_stride]
    lines = [f"| {' | '.join([*heads, *models])} |", "|" + "---:|" * (len(heads) + len(models))]
    for length, stride in dict.fromkeys((row.chunk_length, row.stride) for row in rows):
        setting = [f"{length:g}", *[f"{stride:.3g}"] * with_stride]
        lines.append(f"| {' | '.join([*setting, *(cells.get((length, stride, model), '-') for model in models)])} |")
    return "\n".join(lines)


def chunk_panels(rows: Sequence[ChunkRow]) -> Panels:
    """Points for [`wer_over_chunks`]: over the length, and over the stride where strides were chosen.

    An axis along which only one value was tried is left out, if there is another one.
    """
    panels: Panels = {}

    def add(axis: str, panel: str, line: str, seconds: float, wer: float) -> None:
        panels.setdefault(axis, {}).setdefault(panel, {}).setdefault(line, []).append((seconds, wer))

    sixths = all(row.stride == row.chunk_length / 6 for row in rows)
    lengths, strides = {row.chunk_length for row in rows}, {row.stride for row in rows}
    for row in rows:
        if sixths:  # one panel, a line for each model
            add("chunk length / s", "", row.model, row.chunk_length, row.wer)
            continue
        if len(lengths) > 1 or len(strides) == 1:
            add("chunk length / s", row.model, f"stride {row.stride:.3g} s", row.chunk_length, row.wer)
        if len(strides) > 1:
            line = f"chunks of {row.chunk_length:g} s"
            add("stride, shared with each neighbour / s", row.model, line, row.stride, row.wer)
    return dict(sorted(panels.items()))


def save_chunks(rows: Sequence[ChunkRow], folder: Path) -> None:
    """Writes `results.json` (counts and rates), `table.md` and `wer.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = [{**asdict(row), "wer": row.wer if row.errors.num_words else None, "rtf": row.rtf} for row in rows]
    folder.joinpath("results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = f"Length and overlap of chunks (Table 23)\n\nWER / %.\n\n{chunk_table(rows)}\n"
    folder.joinpath("table.md").write_text(text, encoding="utf-8")
    wer_over_chunks(chunk_panels(rows), folder / "wer.png")


@dataclass
class ChunkArguments:
    """Flags of the script."""

    model_name_or_path: str | None = setting(None, "Model to score: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "Scored too, in a column of its own.")
    dataset: DataSource | str | None = source_setting("Long recordings with text.")
    chunk_lengths: list[float] = field(
        default_factory=lambda: [30.0, 25.0, 20.0, 15.0, 10.0], metadata={"help": "Seconds of a chunk."}
    )
    strides: list[float] = field(
        default_factory=list,
        metadata={"help": "Seconds shared at either side, for example `0 0.5 1 2`; else a sixth of the chunk."},
    )
    output_dir: str | None = setting(None, "Folder for results.json, table.md and wer.png.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the language\'s own normaliser.')
    batch_size: int = setting(16, "Chunks in one pass.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    dry_run: bool = setting(False, "Load models and recordings only.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(ChunkArguments, argv=argv, command="benchmarks/paper/chunk_length.py")
    require(args, "model_name_or_path", "dataset")
    whole_numbers(args, "batch_size")
    new_folder(args.output_dir)
    teacher = {"teacher": args.teacher_model_name_or_path} if args.teacher_model_name_or_path else {}
    models = load_models({**teacher, "model": args.model_name_or_path}, args.dtype, args.language)
    check_one_normalizer(models, args.language, args.normalizer)
    sets = load_sets({"dataset": as_source(args.dataset, "dataset", "test")}, ("text",))
    try:
        settings = [
            chunk_settings(args.chunk_lengths, args.strides, window_seconds(one.processor)) for one in models.values()
        ]
    except ValueError as error:
        raise InputError(f"--chunk_lengths, --strides: {error}") from error
    if not ready(models, sets, args.dry_run):
        return
    normalizer = get_normalizer(args.normalizer) if args.normalizer else None
    options = {"batch_size": args.batch_size, "language": args.language, "normalizer": normalizer}
    rows: list[ChunkRow] = []
    for (name, loaded), of_model in zip(models.items(), settings, strict=True):
        rows += sweep_chunks(name, loaded, sets["dataset"], of_model, **options)
    print(f"WER / % by length of the chunks:\n\n{chunk_table(rows)}")
    if args.output_dir is not None:
        save_chunks(rows, Path(args.output_dir))


if __name__ == "__main__":
    sys.exit(run_script(main))
