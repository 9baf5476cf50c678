"""Compare the fast training with the plain one, in two experiments on the labels of `run.py`.

    python compare.py curve   # 200 steps of the library's loss beside the plain formula with all logits
    python compare.py caches  # students of three seeds, with a cached teacher and with one that runs in every step

Both need runs/quickstart from `make quickstart`.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from run import CORPUS, TEACHER, distil
from scores import SETS
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper import (
    DistillationTrainer,
    WordErrors,
    create_student,
    evaluate_model,
    filter_by_wer,
    get_normalizer,
    load_model,
    load_processor,
    load_source,
    word_errors,
)
from hf_distil_whisper.metrics import paired_bootstrap_interval

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from training_step import plain_loss


class PlainTrainer(DistillationTrainer):
    """Learns by equation 12 written down plainly, over the logits of all positions."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **settings: Any) -> Tensor:
        """The formula's mean over the batch's tokens."""
        weights = {name: getattr(self.args, name) for name in ("temperature", "kl_weight", "pl_weight")}
        return plain_loss(self.model, self.teacher_model, inputs, **weights)


def losses_of(
    trainer_class: type[DistillationTrainer],
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    rows: Dataset,
    steps: int,
) -> list[float]:
    """The losses of the first steps of the quickstart's training, nothing cached."""
    student = create_student(teacher, decoder_layers=2)
    settings = {"max_steps": steps, "logging_steps": 1, "teacher_cache": "none", "teacher_cache_dir": None}
    with tempfile.TemporaryDirectory() as folder:
        trainer = distil(student, teacher, processor, rows, Path(folder), trainer_class, **settings)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def compare_curves(
    teacher: WhisperForConditionalGeneration, processor: WhisperProcessor, rows: Dataset, steps: int
) -> None:
    """Prints how far the losses of equal trainings lie from each other, step by step."""
    curves = [losses_of(way, teacher, processor, rows, steps) for way in (PlainTrainer, DistillationTrainer)]
    print("\n| steps | loss, plain | loss, exact | largest relative difference |\n|---|---|---|---|")
    quarter = max(1, steps // 4)
    for start in range(0, steps, quarter):
        plain, exact = (curve[start : start + quarter] for curve in curves)
        apart = max(abs(ours / theirs - 1) for ours, theirs in zip(exact, plain, strict=True))
        means = " | ".join(f"{sum(part) / len(part):.6f}" for part in (plain, exact))
        print(f"| {start + 1} to {start + len(plain)} | {means} | {apart:.1e} |")


def compare_caches(
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    rows: Dataset,
    folder: Path,
    seeds: Sequence[int],
) -> None:
    """Prints the word error rates of students with and without both caches, and the interval of the difference.

    The exact training keeps the encoder's states too, in float32: those that it would compute again.
    """
    errors: dict[tuple[str, str], list[WordErrors]] = defaultdict(list)
    print("| seed | set | WER, exact | WER, both caches |\n|---|---|---|---|")
    for seed in seeds:
        found = {}
        for kind in ("encoder", "both"):
            student = create_student(teacher, decoder_layers=2)
            distil(student, teacher, processor, rows, folder, teacher_cache=kind, seed=seed, disable_tqdm=True)
            for name, split in SETS.items():
                found[kind, name] = errors_by_row(student, processor, split)
                errors[kind, name] += found[kind, name]
        for name in SETS:
            rates = " | ".join(f"{sum(found[kind, name]).wer:.2%}" for kind in ("encoder", "both"))
            print(f"| {seed} | {name} | {rates} |", flush=True)
    for name in SETS:
        exact, cached = errors["encoder", name], errors["both", name]
        low, high = paired_bootstrap_interval(cached, exact)
        print(f"{name}: {sum(cached).wer - sum(exact).wer:+.2%}, 95 % of the resamples from {low:+.2%} to {high:+.2%}")


def errors_by_row(
    student: WhisperForConditionalGeneration, processor: WhisperProcessor, split: str
) -> list[WordErrors]:
    """Of each utterance of a split of the corpus."""
    scored = evaluate_model(student.eval(), load_source(CORPUS, split=split), processor, language="en")
    normalizer = get_normalizer("en")
    return [word_errors(row["reference"], row["prediction"], normalizer) for row in scored.rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curve", "caches"))
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="output folder of run.py")
    parser.add_argument("--steps", type=int, default=200, help="steps of the curve")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the students")
    args = parser.parse_args()
    teacher, processor = load_model(TEACHER), load_processor(TEACHER)
    rows, _ = filter_by_wer(load_source(args.run / "labelled"), 0.10, language="en")
    if args.what == "curve":
        compare_curves(teacher, processor, rows, args.steps)
    else:
        compare_caches(teacher, processor, rows, args.run, args.seeds)


if __name__ == "__main__":
    main()
