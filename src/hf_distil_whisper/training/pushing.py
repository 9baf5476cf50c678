"""What of a training goes to the Hub and when: complete students, with their card, by the Trainer's own settings.

Replaces the uploads of `Trainer`, which lack files, come before the card of their step, block or end the run when the
network fails, and hold `training_args.bin` with the token. The way to the Hub is in `background_pushes`.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, is_offline_mode
from transformers import (
    Seq2SeqTrainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from hf_distil_whisper.checkpoints import (
    save_generation_config,
    save_processor,
)
from hf_distil_whisper.training.background_pushes import (
    BackgroundPushes,
    Snapshot,
)
from hf_distil_whisper.uploads import (
    Repository,
    by_hand,
    folder_files,
    missing_files,
    student_files,
)

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last-checkpoint"
"""Folder of the newest checkpoint in a repository, with `hub_strategy` "checkpoint"."""

_ROOM = "_push"
_CARD = "README.md"
_UPSTREAMS_CARD = "generated_from_trainer"
_WRITTEN_ONCE = (".safetensors", ".pt", ".pth")


class StudentPushCallback(TrainerCallback):
    """Pushes a complete student with every checkpoint, in the background. Acts in the main process only.

    Args:
        repo_id (`str`, *optional*): by default `hub_model_id`, or the name of the output folder.
        private (`bool`, *optional*): of a repository that is made; by default `hub_private_repo`.
        revision (`str`, *optional*): branch; by default `hub_revision`, or `main`.
        token (`str`, *optional*): by default `hub_token`, or that of the environment.
        strategy (`str`, *optional*): "every_save", "end", "checkpoint" (also all that is needed to go on, in
            `last-checkpoint`) or "all_checkpoints"; by default `hub_strategy`.
        push_end (`bool`, *optional*, defaults to `True`): also push the student as it is when training ends.
    """

    def __init__(
        self,
        repo_id: str | None = None,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        strategy: str | None = None,
        push_end: bool = True,
    ):
        self.repo_id, self.private, self.revision, self.token = repo_id, private, revision, token
        self.strategy = None if strategy is None else HubStrategy(strategy)
        self.push_end = push_end
        self.save_merged: Callable[[Path], None] | None = None
        self.pushes: BackgroundPushes | None = None
        self._count = 0
        self._last_room: Path | None = None

    @property
    def error(self) -> str | None:
        """Why the last push failed; None where everything is on the Hub."""
        return None if self.pushes is None else self.pushes.error

    def write_card(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: Path
    ) -> None:
        """Writes the card of a student into a folder that has none; here none."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Removes what a killed run has left behind, and says where nothing will be pushed."""
        if state.is_world_process_zero:
            shutil.rmtree(self._room(args), ignore_errors=True)
            if is_offline_mode():
                logger.warning(
                    "HF_HUB_OFFLINE is set, so nothing is pushed. When online again: "
                    f"{by_hand(str(args.output_dir), self.repository(args))}"
                )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Pushes the student of the checkpoint that was written just now."""
        strategy = self.strategy or HubStrategy(args.hub_strategy)
        with_state = strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        if with_state and args.distributed_state is not None:
            args.distributed_state.wait_for_everyone()  # every process writes a part of the checkpoint
        if not state.is_world_process_zero or strategy == HubStrategy.END or is_offline_mode():
            return
        checkpoint = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        step = f"step {state.global_step}" if state.epoch is None else _progress(state)
        best = state.best_global_step == state.global_step and state.global_step > 0
        try:
            folder = self._stage(args, state, checkpoint, kwargs["model"], kwargs.get("processing_class"))
            if with_state:
                name = LAST_CHECKPOINT if strategy == HubStrategy.CHECKPOINT else checkpoint.name
                _stage_checkpoint(checkpoint, folder / name)
        except (OSError, ValueError) as error:  # a full disk, a card that cannot be written: it costs this push
            logger.warning(f"{checkpoint} is not pushed ({type(error).__name__}: {error}). The training goes on.")
            return
        self._submit(args, Snapshot(folder, f"Training in progress, {step}", checkpoint, best))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pushes the student as it is now, unless told otherwise, and waits for all pushes."""
        if not state.is_world_process_zero or is_offline_mode():
            return
        if self.push_end:
            source = Path(str(args.output_dir))
            folder = self._stage(args, state, None, kwargs["model"], kwargs.get("processing_class"))
            best = args.load_best_model_at_end and state.best_model_checkpoint is not None
            self._submit(args, Snapshot(folder, "End of training", source, best))
        self.finish()

    def push_folder(
        self, args: TrainingArguments, state: TrainerState, message: str, model: Any, processor: Any
    ) -> None:
        """Pushes the student that lies in the output folder."""
        folder = self._stage(args, state, Path(str(args.output_dir)), model, processor)
        best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        self._submit(args, Snapshot(folder, message, Path(str(args.output_dir)), best))

    def finish(self) -> bool:
        """Waits for all pushes and says whether everything is on the Hub."""
        if self.pushes is None:
            return True
        if self.pushes.busy:
            logger.info(f"Waiting for the push to {self.pushes.to.repo_id} ...")
        done = self.pushes.finish()
        if self._last_room is not None:
            shutil.rmtree(self._last_room, ignore_errors=True)
        return done

    def repository(self, args: TrainingArguments) -> Repository:
        """Where to push."""
        return Repository(
            self.repo_id or args.hub_model_id or Path(str(args.output_dir)).absolute().name,
            private=args.hub_private_repo if self.private is None else self.private,
            revision=self.revision or args.hub_revision,
            token=self.token or args.hub_token,
        )

    def _room(self, args: TrainingArguments) -> Path:
        return Path(str(args.output_dir), _ROOM)

    def _submit(self, args: TrainingArguments, snapshot: Snapshot) -> None:
        if lacking := missing_files(snapshot.folder):
            logger.warning(f"{snapshot.source} is not pushed: it lacks {', '.join(lacking)}.")
            shutil.rmtree(snapshot.folder, ignore_errors=True)
            return
        if self.pushes is None:
            self.pushes = BackgroundPushes(self.repository(args), keep_all=args.hub_always_push)
        self.pushes.submit(snapshot)

    def _stage(
        self,
        args: TrainingArguments,
        state: TrainerState,
        source: Path | None,
        model: WhisperForConditionalGeneration,
        processor: WhisperProcessor | None,
    ) -> Path:
        """A copy of a student with all that belongs to it; of the model in memory where no folder is given."""
        self._count += 1
        self._last_room = self._room(args)
        folder = self._last_room / f"{self._count:04}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if source is not None:
            for name in student_files(source):
                _copy(source / name, folder / name, link=source.name.startswith(PREFIX_CHECKPOINT_DIR))
        merged_is_needed = self.save_merged is not None and not (folder / "model.safetensors").is_file()
        if self.save_merged is not None and (source is None or merged_is_needed):
            self.save_merged(folder)
        elif source is None:
            model.save_pretrained(str(folder))
        if source is None:
            for name in student_files(str(args.output_dir), only_card=True):
                _copy(Path(str(args.output_dir), name), folder / name, link=False)
        if missing_files(folder):
            save_generation_config(model, folder)
            if processor is not None:
                save_processor(processor, folder)
        if not (folder / _CARD).is_file():
            self.write_card(args, state, model, folder)
        return folder


class PushingTrainer(Seq2SeqTrainer):
    """A trainer whose own `push_to_hub` and `hub_strategy` push complete students; see [`StudentPushCallback`].

    Nothing is asked of the network before the first push, and a push that fails ends neither training nor program:
    `push_to_hub` then returns None, and says what to do.
    """

    def settle_pushes(self, save_merged: Callable[[Path], None] | None = None) -> None:
        """Puts the callback that pushes behind all others, so that it finds what they write; to be called once.

        Args:
            save_merged (`Callable`, *optional*): writes a complete student where checkpoints hold only a part of it.
        """
        callbacks = self.callback_handler.callbacks
        if self.args.push_to_hub and not any(isinstance(callback, StudentPushCallback) for callback in callbacks):
            self.add_callback(_OwnPushes(self))
        callbacks.sort(key=lambda callback: isinstance(callback, StudentPushCallback))
        self._own_pushes: StudentPushCallback | None = None
        for callback in callbacks:
            if isinstance(callback, StudentPushCallback):
                callback.save_merged = save_merged
                self._own_pushes = callback

    def _pushing(self) -> StudentPushCallback:
        """What pushes: a callback that was handed over, or one for `push_to_hub` alone."""
        self._own_pushes = self._own_pushes or StudentPushCallback()
        return self._own_pushes

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Only settles the name: the repository is made by the first push, in the background."""
        self.hub_model_id = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        self.push_in_progress = None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: pushed is in `on_save`, when the checkpoint is complete and has its card."""

    def _finish_current_push(self) -> None:
        """Nothing: waited for is in `on_train_end` and by `push_to_hub`."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's card, unless the output folder holds one that is not upstream's: it knows more.

        Args:
            args: as upstream.
            kwargs: the same. `finetuned_from` is not looked up on the Hub.
        """
        card = Path(str(self.args.output_dir), _CARD)
        if not card.is_file() or _UPSTREAMS_CARD in card.read_text(encoding="utf-8"):
            super().create_model_card(*args, **{"finetuned_from": "", **kwargs})

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Saves the student and pushes it with its card.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): of the commit.
            blocking (`bool`, *optional*, defaults to `True`): wait until it is on the Hub.
            token (`str`, *optional*): by default `hub_token`.
            revision (`str`, *optional*): branch; by default `hub_revision`.
            private (`bool`, *optional*): by default `hub_private_repo`.
            kwargs: for `create_model_card`.

        Returns:
            `CommitInfo`, *optional*: None where it is not on the Hub (yet): a warning then says why, and how to push
            by hand.
        """
        self.save_model(_internal_call=True)  # by every process, since shards are gathered
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        if {token, revision, private} != {None}:
            self._own_pushes = StudentPushCallback(private=private, revision=revision, token=token)
        return self.push_output_dir(commit_message or "End of training", blocking=blocking)

    def push_output_dir(self, commit_message: str = "End of training", *, blocking: bool = True) -> CommitInfo | None:
        """Pushes the student that lies in the output folder as it is. For the main process only.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): of the commit.
            blocking (`bool`, *optional*, defaults to `True`): wait until it is on the Hub.

        Returns:
            `CommitInfo`, *optional*: as [`push_to_hub`].
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        pushing = self._pushing()
        if is_offline_mode():
            hint = by_hand(str(self.args.output_dir), pushing.repository(self.args))
            logger.warning(f"HF_HUB_OFFLINE is set, so nothing is pushed. When online again: {hint}")
            return None
        pushing.push_folder(self.args, self.state, commit_message, self.model, self.processing_class)
        if not blocking or not pushing.finish() or pushing.pushes is None:
            return None
        return pushing.pushes.commit

    @property
    def push_error(self) -> str | None:
        """What is not on the Hub and why, and how to push it by hand; None where nothing is left over."""
        pushing = self._pushing()
        if pushing.error is None:
            return None
        hint = by_hand(str(self.args.output_dir), pushing.repository(self.args))
        return f"{self.args.output_dir} is not on the Hub ({pushing.error}). Push it by hand: {hint}"


class _OwnPushes(StudentPushCallback):
    """Those of `push_to_hub=True`: by the arguments alone, with upstream's card where nothing better is there."""

    def __init__(self, trainer: PushingTrainer):
        super().__init__(push_end=False)
        self.trainer = trainer

    def write_card(self, args: TrainingArguments, state: TrainerState, model: Any, folder: Path) -> None:
        self.trainer.create_model_card()
        shutil.copyfile(Path(str(args.output_dir), _CARD), folder / _CARD)


def _progress(state: TrainerState) -> str:
    return f"step {state.global_step}, epoch {state.epoch:.2f}"


def _copy(source: Path, target: Path, link: bool) -> None:
    """Weights of a checkpoint are written once, so that a second name of the same file is a copy, at no cost."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link and source.suffix in _WRITTEN_ONCE:
        try:
            os.link(source, target)
            return
        except OSError:  # a file system without links
            pass
    shutil.copyfile(source, target)


def _stage_checkpoint(checkpoint: Path, folder: Path) -> None:
    """All that a run needs to go on: with the optimizer's state, without the arguments, which hold the token."""
    for name, path in folder_files(checkpoint).items():
        if name == TRAINER_STATE_NAME:
            state = json.loads(path.read_text(encoding="utf-8"))
            best = state.get("best_model_checkpoint")
            state["best_model_checkpoint"] = best and Path(best).name  # no folders of this machine
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        elif name != TRAINING_ARGS_NAME:
            _copy(path, folder / name, link=True)
