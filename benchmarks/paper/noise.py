"""Figure 2: word error rates of models on one set of recordings, with noise at several levels.

    python benchmarks/paper/noise.py --model_name_or_path runs/quickstart/student \
        --teacher_model_name_or_path runs/quickstart/teacher \
        --dataset.path examples/quickstart/corpus --dataset.split test_kathleen \
        --noises white babble --babble_dataset.path examples/quickstart/corpus \
        --babble_dataset.split test_librispeech --output_dir runs/noise

The noise is scaled to the power of each recording and is the same for every model and ratio. Several processes
(`torchrun`) share the rows. Cost: about half an hour on two CPU cores.
"""

import json
import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers.utils import logging

from hf_distil_whisper import AudioError, RowErrors, load_audio, parse_arguments, run_script
from hf_distil_whisper.cli.config import DataSource, InputError, as_source, is_main_process, setting, source_setting
from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.data.sources import without_decoder
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, evaluate_shared
from hf_distil_whisper.evaluation.noise import SNRS, WHITE, check_snrs, evaluate_in_noise, load_noise
from hf_distil_whisper.evaluation.results import left_out_text, result_summary

sys.path.append(str(Path(__file__).resolve().parents[1]))
from figures import wer_over_snr
from inputs import LoadedModel, ScoringArguments, check_flags, list_setting, load_scored_models, load_sets, ready
from tables import short_names, table

logger = logging.get_logger("hf_distil_whisper.benchmarks.noise")

BABBLE = "babble"
SPEAKERS = 8
"""Of a babble at once: single ones can no longer be followed."""

Results = dict[str, dict[float, dict[str, EvaluationResult]]]
"""By noise, ratio in dB and model."""


def babble(recordings: Sequence[Any], *, speakers: int = SPEAKERS, seconds: float = 60.0, seed: int = 0) -> np.ndarray:
    """Speech of many at once: a stand-in for the pub noise of Figure 2 that any corpus can be made to yield.

    Every speaker says drawn recordings one after another, each at the same power. A recording of a real pub also has
    its reverberation, glasses and music; use one where you have it.
    """
    length = round(seconds * SAMPLING_RATE)
    random = np.random.default_rng(seed)
    order, errors = deque(random.permutation(len(recordings)).tolist()), RowErrors()
    mixed = np.zeros(length)
    for _ in range(speakers):
        voice, filled = np.zeros(length), 0
        while filled < length:
            samples = _next_voice(recordings, order, speakers, errors)[: length - filled]
            voice[filled : filled + len(samples)] = samples
            filled += len(samples)
        mixed += np.roll(voice, random.integers(length))
    if len(errors):
        logger.warning(f"Not in the babble: {errors.summary()}")
    return (0.1 * mixed / math.sqrt(_power(mixed))).astype(np.float32)


def _next_voice(recordings: Sequence[Any], order: deque[int], speakers: int, errors: RowErrors) -> np.ndarray:
    """The next usable recording at power 1; it goes to the end of the order."""
    while len(order) >= speakers:
        index = order.popleft()
        name = f"recording {index}"
        try:
            samples = load_audio(recordings[index], name=name)
        except AudioError as error:
            errors.add(name, str(error))
            continue
        if power := _power(samples):
            order.append(index)
            return samples / math.sqrt(power)
        errors.add(name, "every sample is 0; expected speech.")
    raise ValueError(
        f"babble: expected a readable recording for each of {speakers} speakers, got {len(order)} of "
        f"{len(recordings)}. {errors.summary()}".strip()
    )


def _power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))


def load_noises(
    noises: Sequence[str], babble_dataset: DataSource | str | None, seed: int = 0
) -> dict[str, str | np.ndarray]:
    """`noise` of [`evaluate_in_noise`] by its name in the tables: "white", a babble, or recordings of noise."""
    if (BABBLE in noises) != bool(babble_dataset):
        raise InputError(
            f"--babble_dataset: give it with {BABBLE!r} among --noises, and only then: it is mixed from it"
        )
    loaded: dict[str, str | np.ndarray] = {}
    for name, path in short_names(noises).items():
        try:
            if path == BABBLE:
                (rows,) = load_sets({"babble_dataset": as_source(babble_dataset, "babble_dataset")}).values()
                loaded[name] = babble(without_decoder(rows)["audio"], seed=seed)
            else:
                samples = load_noise(path)
                loaded[name] = WHITE if samples is None else samples
        except ValueError as error:
            raise InputError(f"--noises: {error}") from error
    return loaded


@dataclass
class NoiseArguments(ScoringArguments):
    """Flags of the script."""

    model_name_or_path: list[str] = list_setting([], "Models to score: Hub names or folders.")
    teacher_model_name_or_path: str | None = setting(None, "Scored beside them.")
    dataset: DataSource | str | None = source_setting("Recordings up to 30 s with text, as clean as possible.")
    noises: list[str] = list_setting([WHITE], "`white`, `babble`, or recordings of noise.")
    babble_dataset: DataSource | str | None = source_setting("Recordings of other speakers, mixed to the babble.")
    snrs: list[float] = list_setting(SNRS, "Signal-to-noise ratios in dB, 40 to -10 by default.")
    output_dir: str | None = setting(None, "Folder for results.json and wer_over_snr.png.")
    seed: int = setting(0, "Of the noise that each recording meets, and of the babble.")
    batch_size: int = setting(16, "Recordings in one pass.")

    def models(self) -> dict[str, str]:
        """Hub names or folders by the name in the table."""
        teacher = [self.teacher_model_name_or_path] if self.teacher_model_name_or_path else []
        return short_names([*self.model_name_or_path, *teacher])


def score_in_noise(
    args: NoiseArguments, models: Mapping[str, LoadedModel], rows: Dataset, noises: Mapping[str, str | np.ndarray]
) -> Results:
    """Scores the models one after another, each in every noise at every ratio."""
    results: Results = {noise: {snr: {} for snr in args.snrs} for noise in noises}
    options = {"batch_size": args.batch_size, "seed": args.seed, **args.scoring}
    for name, (model, processor) in models.items():
        for noise, sound in noises.items():
            for snr in args.snrs:

                def evaluate(share: Dataset, model: Any, processor: Any, **noisy: Any) -> EvaluationResult:
                    (result,) = evaluate_in_noise(model, share, processor, **noisy, **options).values()
                    return result

                in_noise = partial(evaluate, model=model, processor=processor, noise=sound, snrs=[snr])
                results[noise][snr][name] = evaluate_shared(rows, in_noise)
    return results


def noise_table(results: Results) -> str:
    """WER in % by noise and ratio, a column for each model, as Markdown; "-" where no row has a reference."""
    columns = list(next(iter(next(iter(results.values())).values())))
    lines = []
    for noise, by_snr in results.items():
        for snr, by_model in by_snr.items():
            cells = [f"{100 * one.wer:.2f}" if one.errors.num_words else "-" for one in by_model.values()]
            lines.append([noise, f"{snr:g}", *cells])
    return table(["noise", "SNR / dB", *(f"{column} WER %" for column in columns)], lines)


def save_noise_results(args: NoiseArguments, results: Results, folder: Path) -> None:
    """Writes `results.json` (settings, counts and rates) and `wer_over_snr.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "models": args.models(),
        "noises": short_names(args.noises),
        "dataset": asdict(as_source(args.dataset, "dataset", "test")),
        "seed": args.seed,
        "wer_by_noise_and_snr": {
            noise: {
                f"{snr:g}": {name: result_summary(result) for name, result in by_model.items()}
                for snr, by_model in by_snr.items()
            }
            for noise, by_snr in results.items()
        },
    }
    folder.joinpath("results.json").write_text(
        json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    curves: dict[str, dict[str, dict[float, float]]] = {}
    for noise, by_snr in results.items():
        for snr, by_model in by_snr.items():
            for name, result in by_model.items():  # no point in the picture where no row has a reference
                rate = result.wer if result.errors.num_words else math.nan
                curves.setdefault(noise, {}).setdefault(name, {})[snr] = rate
    wer_over_snr(curves, folder / "wer_over_snr.png")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(NoiseArguments, argv=argv, command="benchmarks/paper/noise.py")
    check_flags(args, "model_name_or_path", "dataset", whole=["batch_size"], folder=args.output_dir)
    args.snrs = check_snrs(args.snrs, "--snrs")
    sets = load_sets({"dataset": as_source(args.dataset, "dataset", "test")}, ("text",))
    noises = load_noises(args.noises, args.babble_dataset, args.seed)
    models = load_scored_models(args.models(), args)
    if not ready(models, sets, args.dry_run):
        return
    results = score_in_noise(args, models, sets["dataset"], noises)
    if is_main_process():
        first = next(iter(next(iter(results.values())).values()))
        left_out = left_out_text({"in every noise": first})
        print("\n\n".join([noise_table(results), *[left_out] * bool(left_out)]))
        if args.output_dir is not None:
            save_noise_results(args, results, Path(args.output_dir))
    # As in `evaluate`: a process that ends without this may abort with its work done.
    PartialState().destroy_process_group()


if __name__ == "__main__":
    sys.exit(run_script(main))
