"""How a training reads a `SpeechStream`, and goes on after a stop: every worker keeps its place with each checkpoint.

The Trainer itself would read everything again up to where it was; `torchdata`'s loader asks the workers instead.
"""

import json
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distil_whisper.data.speech_stream import SpeechStream
from hf_distil_whisper.training.training_args import DistillationTrainingArguments

IDENTITY_FILE = "streams.json"
"""Which streams a checkpoint's places are in."""


class StreamReader(TrainerCallback):
    """Opens the batches of a stream for one process and writes its place into every checkpoint.

    Args:
        stream ([`SpeechStream`]): the samples.
    """

    def __init__(self, stream: SpeechStream):
        self.stream = stream
        self.loader: StatefulDataLoader | None = None
        self._place: dict[str, Any] | None = None

    def open(self, args: TrainingArguments, collate: Callable) -> StatefulDataLoader:
        """The batches of this process, without end; from the place of a checkpoint, after [`resume`].

        Args:
            args (`TrainingArguments`): processes, workers and batch size.
            collate (`Callable`): makes a batch of samples.
        """
        self._assign(args)
        args.ignore_data_skip = True  # workers go on by themselves
        self.loader = StatefulDataLoader(
            self.stream,
            batch_size=args.train_batch_size,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            pin_memory=args.dataloader_pin_memory and torch.accelerator.is_available(),
        )
        if self._place is not None:
            self.loader.load_state_dict(self._place)
        return self.loader

    def resume(self, args: TrainingArguments, checkpoint: str) -> None:
        """Goes on from a checkpoint, in the loader that is open or in the next one.

        Args:
            args (`TrainingArguments`): processes and workers.
            checkpoint (`str`): folder.

        Raises:
            ValueError: where it holds no place in streams, or one in others.
        """
        self._assign(args)
        identity, place = Path(checkpoint, IDENTITY_FILE), self._file(checkpoint)
        if not identity.is_file():
            raise ValueError(
                f"--resume_from_checkpoint: {checkpoint} holds no {IDENTITY_FILE}, so it is not of a training on "
                "streams. Begin a new training in another `output_dir`."
            )
        self.stream.check_same(json.loads(identity.read_text(encoding="utf-8")))
        self._place = torch.load(place, weights_only=True)
        if self.loader is not None:
            self.loader.load_state_dict(self._place)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes this process's place beside the checkpoint, and what the streams are."""
        if self.loader is None:
            return
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        torch.save(self.loader.state_dict(), self._file(folder))
        if state.is_world_process_zero:
            (folder / IDENTITY_FILE).write_text(json.dumps(self.stream.identity(), indent=2), encoding="utf-8")

    def _assign(self, args: TrainingArguments) -> None:
        self.stream.assign(args.process_index, args.world_size, args.dataloader_num_workers)

    def _file(self, folder: str | Path) -> Path:
        return Path(folder, f"stream-{self.stream.process}.pt")


def stream_reader(dataset: Dataset | None, args: DistillationTrainingArguments) -> StreamReader | None:
    """What reads the training samples, where they are a stream.

    Args:
        dataset (`Dataset`): to train on.
        args (`DistillationTrainingArguments`): checked against it.

    Raises:
        ValueError: where a setting needs rows that can be counted.
    """
    if dataset is not None and not isinstance(dataset, Sized) and args.teacher_cache != "none":
        raise ValueError(
            f"--teacher_cache {args.teacher_cache} keeps what is computed for each of the training rows, but a stream "
            "has no rows to come back to. Set it to none, or load the rows without streaming."
        )
    if not isinstance(dataset, SpeechStream):
        return None
    if args.max_steps < 1:
        raise ValueError(f"--max_steps: a stream has no end, expected the number of steps, got {args.max_steps}.")
    return StreamReader(dataset)
