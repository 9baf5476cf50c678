"""Trainings of equal time: when they end, and what their learning rate does until then."""

from pathlib import Path

import pytest

from time_budget import (
    TimeBudgetCallback,
    limit_time,
)
from toy_training import logged, small_trainer, small_whisper


class Clock:
    """Moves on by a tenth of a second each time that it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


def test_a_training_ends_when_its_time_is_up_and_its_learning_rate_has_come_down(tmp_path: Path) -> None:
    """Cells of a sweep that stop at a high rate are compared unfinished."""
    trainer = small_trainer(tmp_path, small_whisper(), small_whisper(1), max_steps=1000, learning_rate=1.0)
    budget = limit_time(trainer, minutes=0.2, clock=Clock())
    trainer.train()
    rates = logged(trainer, "learning_rate")
    assert 20 < trainer.state.global_step < 120
    assert budget.used == 1
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.9
    assert trainer.lr_scheduler.get_last_lr()[0] < 0.05


def test_steps_still_end_a_training_before_its_time(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, small_whisper(), small_whisper(1), max_steps=2)
    limit_time(trainer, minutes=60)
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_clock_starts_with_the_first_step() -> None:
    """Filling a cache that all cells share would shorten the training of the first one."""
    clock = Clock()
    budget = TimeBudgetCallback(1, clock)
    clock.now = 1e6
    assert budget.used == 0


@pytest.mark.parametrize("minutes", [0, -1.0])
def test_no_time_is_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match="expected more than 0"):
        TimeBudgetCallback(minutes)
