"""One evaluation shared by the processes that torchrun or accelerate started: each takes consecutive rows.

Knows shares and how their results come together; every process holds the result of the whole set afterwards.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers.utils import logging

from hf_distil_whisper.data.samples import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.scoring import EvaluationResult, NothingReadError, merge_results

logger = logging.get_logger(__name__)

_LONGEST_WAIT = timedelta(days=7)
"""For the slowest process; torch's half an hour would end an evaluation of long recordings."""


def evaluate_shared(dataset: Dataset, evaluate: Callable[[Dataset], EvaluationResult]) -> EvaluationResult:
    """Evaluates a data set in all processes together.

    Texts, counts and rows are those of a single process, in its order: nothing is padded or heard twice, and only
    counts are added up. `seconds`, and with them the real-time factor, are the work of all processes in sum, so that
    they mean what they mean for one process; `wall_seconds` is the time of the slowest. A process that ends without
    `PartialState().destroy_process_group()` may abort with its work done.

    Args:
        dataset (`Dataset`): rows; the same in every process.
        evaluate (`Callable[[Dataset], EvaluationResult]`): [`evaluate_model`] or another, with all but the rows given;
            not called in a process for which there is no row.

    Returns:
        `EvaluationResult`: of the whole set, in every process; `wall_seconds` is measured.

    Raises:
        ValueError: as `evaluate`, whose refusal to begin (a wrong option, 0 rows) is the same in every process.
        NothingReadError: if no process could read a row.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 or not len(dataset):
        return _timed(dataset, evaluate)
    # Without `cpu`, accelerate takes processes that have no accelerator for one process each.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST_WAIT)
    if state.num_processes != processes:
        raise RuntimeError(
            f"{processes} processes were started (WORLD_SIZE), accelerate knows of {state.num_processes}: each would "
            "hear all rows. Make no PartialState or Accelerator of one process before."
        )
    rank = state.process_index
    first, last = len(dataset) * rank // processes, len(dataset) * (rank + 1) // processes
    share: list[EvaluationResult | RowErrors] = []
    if first < last:
        try:
            share = [_timed(_with_ids(dataset).select(range(first, last)), evaluate)]
        except NothingReadError as error:
            logger.warning_once(error.row_errors.summary())
            share = [error.row_errors]
    return _together(gather_object(share), own=share)


def _together(parts: list[EvaluationResult | RowErrors], own: list[EvaluationResult | RowErrors]) -> EvaluationResult:
    heard = [part for part in parts if isinstance(part, EvaluationResult)]
    unread = _row_errors(parts)
    if not heard:
        raise NothingReadError(unread)
    if len(unread) > len(_row_errors(own)):  # each process has told of its own rows only
        logger.warning_once(f"In all processes together, {unread.summary()}")
    return replace(merge_results(heard), row_errors=unread)


def _row_errors(parts: list[EvaluationResult | RowErrors]) -> RowErrors:
    lists = [part.row_errors if isinstance(part, EvaluationResult) else part for part in parts]
    return RowErrors([pair for errors in lists for pair in errors])


def _timed(dataset: Dataset, evaluate: Callable[[Dataset], EvaluationResult]) -> EvaluationResult:
    start = time.perf_counter()
    return replace(evaluate(dataset), wall_seconds=time.perf_counter() - start)


def _with_ids(dataset: Dataset) -> Dataset:
    """Rows without an id are named by their number in the whole set, not in a share of it."""
    if "id" not in dataset.column_names:
        return dataset.add_column("id", [str(number) for number in range(len(dataset))])
    given = list(dataset["id"])
    if None not in given:
        return dataset
    names = [row_id({"id": name}, number) for number, name in enumerate(given)]
    return dataset.remove_columns("id").add_column("id", names)
