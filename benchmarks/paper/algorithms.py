"""Tables 7 and 18: sequential and chunked transcription of long recordings, word error rate and relative latency.

    python benchmarks/paper/algorithms.py --model_name_or_path runs/quickstart/student \
        --teacher_model_name_or_path runs/quickstart/teacher \
        --dataset.path examples/quickstart/corpus --dataset.split longform

All models transcribe half a minute unmeasured, then take turns in every repetition. Of several sets, `--dataset
"{name: path}"`, the rates of each follow (Table 18). Cost: five minutes on two CPU cores.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distil_whisper import AudioError, WordErrors, evaluate_long_form, parse_arguments, run_script
from hf_distil_whisper.cli.config import DataSource, as_training_sources, setting, source_setting
from hf_distil_whisper.data.audio import SAMPLING_RATE, audio_blocks
from hf_distil_whisper.evaluation.evaluate import readable_rows
from hf_distil_whisper.evaluation.significance import macro_average

sys.path.append(str(Path(__file__).resolve().parents[1]))
from inputs import LoadedModel, ScoringArguments, check_flags, load_scored_models, load_sets, ready
from tables import Timed, save_json, table

ALGORITHMS = ("sequential", "chunked")
"""In the order of Table 7: latencies are relative to the first."""


@dataclass(frozen=True)
class AlgorithmRow(Timed):
    """A model on one set with one algorithm."""

    model: str  # its name in the table
    algorithm: str  # of ALGORITHMS
    errors: WordErrors  # over all recordings with a reference
    seconds: tuple[float, ...]  # of work on all recordings, one entry per repetition
    audio_seconds: float  # length of the recordings
    unreadable_rows: int  # left out


def compare_algorithms(
    models: Mapping[str, LoadedModel], dataset: Dataset | Sequence[Mapping], *, repeats: int = 3, **options: Any
) -> list[AlgorithmRow]:
    """Transcribes long recordings with every model by both algorithms, greedily and in turn."""
    pairs = list(product(ALGORITHMS, models))
    warm_up = _first_half_minute(readable_rows(dataset, "text"))
    rounds = []
    for repeat in range(repeats + 1):
        rows = dataset if repeat else warm_up
        results = {
            (algorithm, name): evaluate_long_form(
                models[name].model, rows, models[name].processor, method=algorithm, **options
            )
            for algorithm, name in (pairs if rows else [])
        }
        rounds += [results] * (repeat > 0)
    measured = []
    for algorithm, name in pairs:
        first = rounds[0][algorithm, name]
        seconds = tuple(results[algorithm, name].seconds for results in rounds)
        measured.append(
            AlgorithmRow(name, algorithm, first.errors, seconds, first.audio_seconds, len(first.row_errors))
        )
    return measured


def _first_half_minute(dataset: Dataset | Sequence[Mapping]) -> list[dict]:
    """Of the first recording that can be read, as a data set to warm up on: no model pays for setting up."""
    for index in range(len(dataset)):
        try:
            samples = next(audio_blocks(dataset[index]["audio"]))
        except AudioError:
            continue  # counted where it is measured
        return [{"id": "warm-up", "audio": samples[: 30 * SAMPLING_RATE], "text": None}]
    return []


def algorithm_table(rows: Mapping[str, Sequence[AlgorithmRow]], baseline: str) -> str:
    """Table 7: times as fast as the baseline's sequential algorithm, and the WER averaged over the sets."""
    by_pair: dict[tuple[str, str], dict[str, AlgorithmRow]] = {}
    for name, of_set in rows.items():
        for row in of_set:
            by_pair.setdefault((row.model, row.algorithm), {})[name] = row
    seconds = {pair: sum(row.median for row in of_pair.values()) for pair, of_pair in by_pair.items()}
    lines = []
    for (model, algorithm), of_pair in by_pair.items():
        speed = seconds[baseline, ALGORITHMS[0]] / seconds[model, algorithm]
        factor = seconds[model, algorithm] / sum(row.audio_seconds for row in of_pair.values())
        wer = _average({name: row.errors for name, row in of_pair.items()})
        lines.append([model, algorithm, f"{factor:.4f}", f"{speed:.2f}", wer])
    return table(["Model", "Decoding", "RTF", "Rel. Latency", "WER"], lines, left=2)


def algorithms_by_set(rows: Mapping[str, Sequence[AlgorithmRow]]) -> str:
    """Table 18: the WER of every set by model and algorithm, and the macro average; in %, "-" without references."""
    errors = {name: {f"{row.model} {row.algorithm}": row.errors for row in of_set} for name, of_set in rows.items()}
    columns = list(next(iter(errors.values())))
    lines = [
        [line, *(_average({name: errors[name][column] for name in sets}) for column in columns)]
        for line, sets in [*((name, [name]) for name in errors), ("Average", list(errors))]
    ]
    return table(["Dataset", *columns], lines)


def _average(errors: Mapping[str, WordErrors]) -> str:
    return f"{100 * macro_average(errors):.1f}" if all(one.num_words for one in errors.values()) else "-"


@dataclass
class AlgorithmArguments(ScoringArguments):
    """Flags of the script."""

    model_name_or_path: str | None = setting(None, "Model to score and time: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "In turn with it; latencies refer to it.")
    dataset: dict[str, DataSource] | str | None = source_setting("Long recordings, one set or {name: path}.")
    batch_size: int = setting(16, "Chunks in one pass.")
    repeats: int = setting(3, "Over all recordings, in turn.")
    output_dir: str | None = setting(None, "Folder for results.json and table.md.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(AlgorithmArguments, argv=argv, command="benchmarks/paper/algorithms.py")
    check_flags(args, "model_name_or_path", "dataset", whole=("batch_size", "repeats"), folder=args.output_dir)
    teacher = {"teacher": args.teacher_model_name_or_path} if args.teacher_model_name_or_path else {}
    models = load_scored_models({**teacher, "model": args.model_name_or_path}, args)
    sets = load_sets(as_training_sources(args.dataset, "dataset", "test"), ("text",))
    if not ready(models, sets, args.dry_run):
        return
    options = {"repeats": args.repeats, "batch_size": args.batch_size, **args.scoring}
    rows = {name: compare_algorithms(models, of_set, **options) for name, of_set in sets.items()}
    baseline = next(iter(models))
    text = algorithm_table(rows, baseline) + (f"\n\n{algorithms_by_set(rows)}" if len(rows) > 1 else "")
    print(f"{text}\n\nRel. Latency: times as fast as {baseline}, sequential. WER / %, mean of the sets.")
    if args.output_dir is not None:
        content = {
            name: [
                {**asdict(row), "wer": row.errors.wer if row.errors.num_words else None, "rtf": row.rtf}
                for row in of_set
            ]
            for name, of_set in rows.items()
        }
        save_json(Path(args.output_dir, "results.json"), content)
        Path(args.output_dir, "table.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_script(main))
