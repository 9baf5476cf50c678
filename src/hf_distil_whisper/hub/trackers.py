"""What goes to the tracker of a training besides the numbers that the Trainer sends: a table; and its run's address.

Knows the Trainer's own callbacks for wandb, trackio and TensorBoard. Imports none of the three, opens no run, and does
nothing where `report_to` names none of them.
"""

import sys
from collections.abc import Sequence

from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.utils import logging

from hf_distil_whisper.hub.card_text import public_url

logger = logging.get_logger(__name__)

_SPACES = "https://huggingface.co/spaces"


def run_url(args: TrainingArguments) -> str | None:
    """Where the run of a training can be looked at: on wandb, or in the Space of trackio.

    Args:
        args ([`~transformers.TrainingArguments`]): says what the training reports to.

    Returns:
        `str`, *optional*: None for no tracker, for TensorBoard, which has no address, and for runs that stay here.
    """
    wandb, trackio = (sys.modules.get(name) if name in args.report_to else None for name in ("wandb", "trackio"))
    if wandb is not None and wandb.run is not None and wandb.run.url:
        return public_url(wandb.run.url) or None
    if trackio is not None:
        # After training trackio has closed the run, and only the arguments tell.
        space = trackio.context_vars.current_space_id.get() or args.trackio_space_id
        return f"{_SPACES}/{space}" if space and "/" in space else None
    return None


def log_table(
    callbacks: Sequence[TrainerCallback],
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    text: str,
    step: int,
) -> list[str]:
    """Sends a table to each tracker that is active; one that fails is reported and costs the table only.

    Args:
        callbacks (`Sequence[TrainerCallback]`): of the trainer, its trackers among them.
        name (`str`): of the table, for example "samples/test".
        columns (`Sequence[str]`): headings.
        rows (`Sequence[Sequence[object]]`): cells, texts and numbers.
        text (`str`): the same as Markdown, for TensorBoard, which has no tables.
        step (`int`): of the training.

    Returns:
        `list[str]`: the trackers that took it.
    """
    sent = []
    for callback in callbacks:
        try:
            if isinstance(callback, WandbCallback):
                tracker, wandb = "wandb", sys.modules["wandb"]
                if wandb.run is None:  # switched off by its environment variable
                    continue
                table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
                wandb.log({name: table, "train/global_step": step})
            elif isinstance(callback, TrackioCallback):
                tracker, trackio = "trackio", sys.modules["trackio"]
                cells = [
                    [None if cell is None else str(cell) for cell in column] for column in zip(*rows, strict=True)
                ]
                frame = Dataset.from_dict(dict(zip(columns, cells, strict=True))).to_pandas()
                trackio.log({name: trackio.Table(dataframe=frame), "train/global_step": step})
            elif isinstance(callback, TensorBoardCallback):
                tracker = "tensorboard"
                if callback.tb_writer is None:  # before the first step and after the last one
                    continue
                callback.tb_writer.add_text(name, text, step)
            else:
                continue
        except Exception as error:  # a tracker's own kinds, of the network among them: none may end a training
            logger.warning(f"{type(callback).__name__} did not take the table {name!r}: {type(error).__name__}.")
            continue
        sent.append(tracker)
    return sent
