"""The callback that publishes while a training runs: pushes of `training.pushing`, with the card of `hub`."""

from pathlib import Path

from transformers import TrainerState, TrainingArguments, WhisperForConditionalGeneration

from hf_distil_whisper.hub.card_files import ModelCardCallback
from hf_distil_whisper.training.pushing import StudentPushCallback


class PushCheckpointCallback(StudentPushCallback):
    """Pushes a complete student with its card to the Hub with every checkpoint, and when training ends.

    A push holds weights in safetensors, repaired generation config, all files of the processor, and the card as of
    that step, in one commit; nothing of teacher, optimizer or token. It goes up in the background from a copy, so that
    no step waits. The commit of the best model gets the tag `best`. While the network fails the training goes on: it
    is tried again, once more at the end, and left to `hf-distil-whisper push` after that.

    [`DistillationTrainer`] does the same for `push_to_hub=True`; this callback serves where repository or strategy
    are not those of the arguments, and any other `Trainer` of a Whisper.

    Args:
        repo_id (`str`, *optional*): by default `hub_model_id`, or the name of the output folder.
        private (`bool`, *optional*): make a private repository.
        revision (`str`, *optional*): branch, by default `main`.
        token (`str`, *optional*): by default `hub_token`, or that of the environment.
        strategy (`str`, *optional*): "every_save", "end", "checkpoint" (also all that is needed to go on elsewhere,
            the optimizer's state included, in `last-checkpoint`) or "all_checkpoints"; by default `hub_strategy`.
        card ([`ModelCardCallback`], *optional*): writes the card where no other callback has. By default one that
            knows the name of the repository only.

    Example:
        ```python
        card = ModelCardCallback(name="me/distil-small", teacher="openai/whisper-small", license="mit")
        callbacks = [card, PushCheckpointCallback("me/distil-small", private=True, card=card)]
        trainer = DistillationTrainer(..., callbacks=callbacks)
        ```
    """

    def __init__(
        self,
        repo_id: str | None = None,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        strategy: str | None = None,
        card: ModelCardCallback | None = None,
    ):
        super().__init__(repo_id, private=private, revision=revision, token=token, strategy=strategy)
        self.card = card

    def write_card(
        self, args: TrainingArguments, state: TrainerState, model: WhisperForConditionalGeneration, folder: Path
    ) -> None:
        """The card as of this step.

        Args:
            args (`TrainingArguments`): of the run.
            state (`TrainerState`): holds the scores.
            model (`WhisperForConditionalGeneration`): what it describes.
            folder (`Path`): where to.
        """
        card = self.card or ModelCardCallback(name=self.repository(args).repo_id)
        card.write(args, state, model, folder)
