"""The log of training steps: means of the loss parts, and the share of the time spent waiting for batches."""

import time

import pytest
import torch
from accelerate import Accelerator

from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import StepLog
from toy_training import RandomWindows, logged, small_trainer, small_whisper


class SlowWindows(RandomWindows):
    """Windows that take their time."""

    def __getitem__(self, index):
        time.sleep(0.4)
        return super().__getitem__(index)


def test_the_share_counts_from_the_first_batch_and_begins_anew_at_every_log(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    log, accelerator = StepLog(torch.device("cpu")), Accelerator(cpu=True)
    assert log.take(accelerator) == {}
    now[0] += 50.0  # a cache is filled
    for share, parts in ((0.25, [1.0, 2.0, 3.0]), (0.0, [5.0, 0.0, 1.0])):
        for half in (0.5, 1.5):  # two batches of one step
            with log.waiting():
                now[0] += 4 * share
            now[0] += 4 * (1 - share)
            log.add(torch.tensor(parts) * half, ends_step=half == 1.5)
        taken = log.take(accelerator)
        assert taken == {
            "kl": 2 * parts[0],
            "pl": 2 * parts[1],
            "mse": 2 * parts[2],
            "data_wait": pytest.approx(share),
        }


@pytest.mark.parametrize(("windows", "least", "most"), [(SlowWindows, 0.5, 1.0), (RandomWindows, 0.0, 0.5)])
def test_a_training_logs_how_long_it_waited(windows, least, most, tmp_path):
    teacher = small_whisper()
    trainer = small_trainer(tmp_path, create_student(teacher), teacher, train=windows(4), max_steps=2)
    trainer.train()
    waits = logged(trainer, "data_wait")
    assert waits
    assert all(least <= wait <= most for wait in waits)
