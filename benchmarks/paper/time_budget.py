"""Trainings that cost the same: they end when their time is up, not after so many steps.

Knows the clock and the learning rate, nothing of what is trained.
"""

import time
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TimeBudgetCallback(TrainerCallback):
    """Ends a training after so many minutes.

    The clock starts with the first step: what is asked of a teacher before, once for all trainings that share its
    cache, does not count.

    Args:
        minutes (`float`): from the first step to the last.
        clock (`Callable[[], float]`, *optional*, defaults to `time.monotonic`): seconds.

    Raises:
        ValueError: if there are no minutes to train.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic):
        if not minutes > 0:
            raise ValueError(f"`minutes` is {minutes}, expected more than 0: nothing could be trained.")
        self.seconds, self.clock = 60 * minutes, clock
        self.begin: float | None = None

    @property
    def used(self) -> float:
        """Share of the time that is over, 0 to 1."""
        return 0.0 if self.begin is None else min((self.clock() - self.begin) / self.seconds, 1.0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        if self.begin is None:
            self.begin = self.clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops behind the step in which the time ran out."""
        if self.used >= 1:
            control.should_training_stop = True


def limit_time(trainer: Trainer, minutes: float, clock: Callable[[], float] = time.monotonic) -> TimeBudgetCallback:
    """Lets a trainer train for so many minutes; its learning rate rises by steps and falls to zero over that time.

    `max_steps` and `num_train_epochs` still end it before, so give more than can be reached.

    Args:
        trainer (`Trainer`): before `train`, in one process; its schedule is replaced.
        minutes (`float`): from the first step to the last.
        clock (`Callable[[], float]`, *optional*, defaults to `time.monotonic`): seconds.

    Returns:
        [`TimeBudgetCallback`]: knows how much is used.
    """
    budget = TimeBudgetCallback(minutes, clock)
    optimizer = trainer.create_optimizer()
    warmup = trainer.args.get_warmup_steps(max(trainer.args.max_steps, 1))
    trainer.lr_scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)) * (1 - budget.used))
    trainer.add_callback(budget)
    return budget
