"""Table 23: word error rates of long recordings over length and overlap of their chunks.

    python benchmarks/paper/chunk_length.py --model_name_or_path runs/quickstart/student \
        --teacher_model_name_or_path runs/quickstart/teacher --dataset.path examples/quickstart/corpus \
        --dataset.split longform --strides 0 0.5 1 2 --output_dir runs/sweeps/chunks

Use a validation set: the best setting on a test set flatters that set. `make sweeps` runs it; `report.py --sweeps`
takes its folder. Cost: 20 minutes on two CPU cores.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distil_whisper import WordErrors, evaluate_long_form, parse_arguments, run_script
from hf_distil_whisper.cli.config import DataSource, InputError, as_source, setting, source_setting
from hf_distil_whisper.inference.chunked import check_chunks
from hf_distil_whisper.inference.encoder import window_seconds

sys.path.append(str(Path(__file__).resolve().parents[1]))
from figures import wer_over_chunks
from inputs import LoadedModel, ScoringArguments, check_flags, list_setting, load_scored_models, load_sets, ready
from tables import save_json, table

Panels = dict[str, dict[str, dict[str, list[tuple[float, float]]]]]
"""x axis → title of a panel → label of a line → points of seconds and WER."""


@dataclass(frozen=True)
class ChunkRow:
    """A model on a set in chunks of one length and overlap."""

    model: str  # its name in the table
    chunk_length: float  # seconds
    stride: float  # seconds at either side that a neighbour covers too: chunks overlap by twice as much
    errors: WordErrors  # over all recordings with a reference
    repeated_5grams: int  # of all predictions (Table 8)
    seconds: float  # spent on features and generation
    audio_seconds: float  # length of the recordings
    unreadable_rows: int  # left out

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
    """Pairs of chunk length and stride, each once; a sixth of each chunk without strides."""
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
    lines = [
        [f"{length:g}", *[f"{stride:.3g}"] * with_stride, *(cells.get((length, stride, name), "-") for name in models)]
        for length, stride in dict.fromkeys((row.chunk_length, row.stride) for row in rows)
    ]
    return table([*heads, *models], lines, left=0)


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
    content = [{**asdict(row), "wer": row.wer if row.errors.num_words else None, "rtf": row.rtf} for row in rows]
    save_json(folder / "results.json", content)
    text = f"Length and overlap of chunks (Table 23)\n\nWER / %.\n\n{chunk_table(rows)}\n"
    folder.joinpath("table.md").write_text(text, encoding="utf-8")
    wer_over_chunks(chunk_panels(rows), folder / "wer.png")


@dataclass
class ChunkArguments(ScoringArguments):
    """Flags of the script."""

    model_name_or_path: str | None = setting(None, "Model to score: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "Scored too, in another column.")
    dataset: DataSource | str | None = source_setting("Long recordings with text.")
    chunk_lengths: list[float] = list_setting([30.0, 25.0, 20.0, 15.0, 10.0], "Seconds of a chunk.")
    strides: list[float] = list_setting(
        [], "Seconds shared at either side, for example `0 0.5 1 2`; else a sixth of the chunk."
    )
    output_dir: str | None = setting(None, "Folder for results.json, table.md and wer.png.")
    batch_size: int = setting(16, "Chunks in one pass.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(ChunkArguments, argv=argv, command="benchmarks/paper/chunk_length.py")
    check_flags(args, "model_name_or_path", "dataset", whole=["batch_size"], folder=args.output_dir)
    teacher = {"teacher": args.teacher_model_name_or_path} if args.teacher_model_name_or_path else {}
    models = load_scored_models({**teacher, "model": args.model_name_or_path}, args)
    sets = load_sets({"dataset": as_source(args.dataset, "dataset", "test")}, ("text",))
    try:
        settings = [
            chunk_settings(args.chunk_lengths, args.strides, window_seconds(one.processor)) for one in models.values()
        ]
    except ValueError as error:
        raise InputError(f"--chunk_lengths, --strides: {error}") from error
    if not ready(models, sets, args.dry_run):
        return
    rows: list[ChunkRow] = []
    for (name, loaded), of_model in zip(models.items(), settings, strict=True):
        rows += sweep_chunks(name, loaded, sets["dataset"], of_model, batch_size=args.batch_size, **args.scoring)
    print(f"WER / % by length of the chunks:\n\n{chunk_table(rows)}")
    if args.output_dir is not None:
        save_chunks(rows, Path(args.output_dir))


if __name__ == "__main__":
    sys.exit(run_script(main))
