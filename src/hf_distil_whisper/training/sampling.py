"""In which order a training draws its rows: sources in their shares, rows of like length together.

Replaces the Trainer's samplers where they know too little of speech: its grouping by length would compute all features
first, to find them all equally long.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distil_whisper.data.mixture import Mixture
from hf_distil_whisper.data.speech_dataset import SpeechDataset
from hf_distil_whisper.training.teacher_cache import TeacherCacheDataset

GROUP_BATCHES = 50
"""Batches whose rows are sorted by length together, as in transformers' `LengthGroupedSampler`."""
MIXTURE_FILE = "mixture.json"


class EpochSampler(Sampler[int]):
    """Rows of the dataset's epoch in an order that its seed and the epoch decide, the same in every process.

    Has no `set_epoch`: accelerate would call that of the sampler in place of the dataset's in several processes.

    Args:
        dataset ([`SpeechDataset`]): tells its epoch, its mixture and the length of its texts.
        group_size (`int`, *optional*): rows of a step of all processes; rows of like length are drawn together then.
    """

    def __init__(self, dataset: SpeechDataset, group_size: int | None = None):
        self.dataset, self.group_size = dataset, group_size
        self.mixture = dataset.mixture or Mixture(("rows",), (len(dataset),), (1.0,), seed=dataset.seed)
        self._lengths = dataset.text_lengths() if group_size is not None else None

    def __len__(self) -> int:
        return len(self.mixture)

    def __iter__(self) -> Iterator[int]:
        rows = self.mixture.rows(self.dataset.epoch)
        if self.group_size is not None and self._lengths is not None:
            random = np.random.default_rng((self.dataset.seed, self.dataset.epoch))
            rows = _grouped(rows, self._lengths[rows], self.group_size, random)
        return iter(rows.tolist())


def epoch_sampler(dataset: Dataset | None, args: TrainingArguments) -> EpochSampler | None:
    """The sampler that a training needs, or None where the Trainer's own does.

    Args:
        dataset (`Dataset`): to train on.
        args (`TrainingArguments`): how to sample, and how many rows make a step.
    """
    rows = speech_rows(dataset)
    if rows is None or args.train_sampling_strategy not in ("random", "group_by_length"):
        return None
    if args.train_sampling_strategy == "group_by_length":
        return EpochSampler(rows, args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
    return EpochSampler(rows) if rows.mixture is not None else None


class MixtureCallback(TrainerCallback):
    """Keeps with every checkpoint of which sources the training was mixed."""

    def __init__(self, mixture: Mixture):
        self.mixture = mixture

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes it beside the checkpoint."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            (folder / MIXTURE_FILE).write_text(json.dumps(self.mixture.state(), indent=2), encoding="utf-8")


def mixture_callbacks(dataset: Dataset | None) -> list[TrainerCallback]:
    """What a training on a mixture keeps beside its checkpoints."""
    mixture = _mixture_of(dataset)
    return [] if mixture is None else [MixtureCallback(mixture)]


def check_mixture(dataset: Dataset | None, checkpoint: str) -> None:
    """Refuses to go on with other sources than those of a checkpoint.

    Args:
        dataset (`Dataset`): to train on.
        checkpoint (`str`): folder.

    Raises:
        ValueError: names what differs.
    """
    mixture, file = _mixture_of(dataset), Path(checkpoint, MIXTURE_FILE)
    if mixture is not None and file.is_file():
        mixture.check_same(json.loads(file.read_text(encoding="utf-8")))


def speech_rows(dataset: Dataset | None) -> SpeechDataset | None:
    """The rows of recordings behind a training's dataset, cached or not; None where they are none."""
    rows = dataset.dataset if isinstance(dataset, TeacherCacheDataset) else dataset
    return rows if isinstance(rows, SpeechDataset) else None


def _mixture_of(dataset: Dataset | None) -> Mixture | None:
    rows = speech_rows(dataset)
    return None if rows is None else rows.mixture


def _grouped(rows: np.ndarray, lengths: np.ndarray, group_size: int, random: np.random.Generator) -> np.ndarray:
    """Rows of like length in every step; the steps in a random order, but the longest first and a short one last."""
    steps: list[np.ndarray] = []
    for begin in range(0, len(rows), GROUP_BATCHES * group_size):
        order = begin + np.argsort(-lengths[begin : begin + GROUP_BATCHES * group_size], kind="stable")
        steps += np.split(order, range(group_size, len(order), group_size))
    whole = [step for step in steps if len(step) == group_size]
    random.shuffle(whole)
    if whole:  # what does not fit into the memory is to fail at once and not after hours
        longest = max(range(len(whole)), key=lambda number: lengths[whole[number][0]])
        whole[0], whole[longest] = whole[longest], whole[0]
    return rows[np.concatenate(whole + [step for step in steps if len(step) < group_size])]
