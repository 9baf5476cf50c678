"""`DistillationTrainer`: a `Seq2SeqTrainer` whose student learns from a Whisper teacher (arXiv 2311.00430, section 4).

Knows both models and one batch at a time: who runs which encoder, what is lost, logged and saved. The formulas are in
`losses`, the data in `data`. The notes on upstream behaviour refer to transformers 5.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqModelOutput
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from transformers.utils import logging

from hf_distil_whisper.checkpoints import (
    check_compatible,
    save_generation_config,
    save_processor,
)
from hf_distil_whisper.data.collator import (
    TEACHER_ARRAYS,
    DataCollatorSpeechSeq2SeqWithPadding,
)
from hf_distil_whisper.data.dataset import SpeechDataset
from hf_distil_whisper.data.mixture import Mixture
from hf_distil_whisper.data.streaming import SpeechStream
from hf_distil_whisper.hub.push import PushingTrainer
from hf_distil_whisper.inference.chunked import (
    CHUNK_LENGTH_ENTRY,
    chunk_length_after,
)
from hf_distil_whisper.inference.encoder import encode
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.fused_loss import (
    TopKLogits,
    distillation_token_losses,
    fused_distillation_loss,
    top_k_distillation_loss,
)
from hf_distil_whisper.training.lora import lora_student
from hf_distil_whisper.training.losses import (
    IGNORE_INDEX,
    hidden_state_mse_loss,
)
from hf_distil_whisper.training.teacher_cache import (
    CacheSettings,
    TeacherCacheDataset,
)
from hf_distil_whisper.training.validation import (
    PARTS,
    LossSums,
    check_evaluation,
    default_metrics,
    generate_tokens_of,
)


class TeacherOutput(NamedTuple):
    """What the teacher says of a batch; all None without a teacher.

    A teacher that was asked beforehand, by a cache, only says `kept`.

    Args:
        states (`Tensor`, *optional*): last decoder states, (batch, length, width).
        head (`Tensor`, *optional*): weight of the language-model head, (vocab, width).
        hidden_states (`tuple[Tensor, ...]`, *optional*): of all decoder layers, where MSE asks for them.
        kept (`TopKLogits`, *optional*): its likeliest tokens at each label that counts.
    """

    states: Tensor | None = None
    head: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    kept: TopKLogits | None = None


def batch_losses(
    student: Seq2SeqModelOutput,
    head: Tensor,
    teacher: TeacherOutput,
    labels: Tensor,
    args: DistillationTrainingArguments,
) -> tuple[Tensor, Tensor]:
    """The loss of equation 12 and its parts, for training.

    Args:
        student (`Seq2SeqModelOutput`): last decoder states, (batch, length, width), and all where MSE asks for them.
        head (`Tensor`): weight of the student's language-model head.
        teacher (`TeacherOutput`): for the same decoder inputs.
        labels (`Tensor`): (batch, length), -100 where nothing counts.
        args (`DistillationTrainingArguments`): weights and temperature.

    Returns:
        `tuple[Tensor, Tensor]`: the loss, and without gradient KL, PL and MSE, (3,): sums over the batch's tokens.
    """
    settings: dict[str, Any] = {
        "temperature": args.temperature,
        "kl_weight": args.kl_weight,
        "pl_weight": args.pl_weight,
        "chunk_size": args.loss_chunk_size,
        "reduction": "sum",
    }
    ours = student.last_hidden_state, head
    if teacher.kept is not None:
        fused = top_k_distillation_loss(*ours, teacher.kept, labels, **settings)
    else:
        fused = fused_distillation_loss(*ours, teacher.states, teacher.head, labels, **settings)
    loss, mse = fused.loss, torch.zeros_like(fused.kl)
    if teacher.hidden_states is not None:
        mse = hidden_state_mse_loss(student.decoder_hidden_states, teacher.hidden_states, labels, reduction="sum")
        loss = loss + args.mse_weight * mse
    return loss, torch.stack([fused.kl, fused.pl, mse.detach()])


def row_losses(
    student: Seq2SeqModelOutput,
    head: Tensor,
    teacher: TeacherOutput,
    labels: Tensor,
    args: DistillationTrainingArguments,
) -> Tensor:
    """Loss at temperature 1, KL, PL, MSE and the number of tokens of each row, for evaluation.

    Args:
        student (`Seq2SeqModelOutput`): as for [`batch_losses`], and so are the others.
        head (`Tensor`): weight of the student's language-model head.
        teacher (`TeacherOutput`): for the same decoder inputs.
        labels (`Tensor`): (batch, length).
        args (`DistillationTrainingArguments`): weights.

    Returns:
        `Tensor`: (batch, 5), sums over the row's tokens.
    """
    kl, pl = distillation_token_losses(
        student.last_hidden_state,
        head,
        teacher.states,
        teacher.head,
        labels,
        temperature=1.0,
        chunk_size=args.loss_chunk_size,
    )
    mse = torch.zeros_like(pl)
    if teacher.hidden_states is not None:
        mse = hidden_state_mse_loss(student.decoder_hidden_states, teacher.hidden_states, labels, reduction="none")
    loss = args.kl_weight * kl + args.pl_weight * pl + args.mse_weight * mse
    return torch.stack([values.sum(1) for values in (loss, kl, pl, mse, (labels != IGNORE_INDEX).to(pl))], dim=1)


def check_finite(parts: Tensor) -> None:
    """Stops a training before the gradients of a broken batch destroy the student's weights.

    Args:
        parts (`Tensor`): KL, PL and MSE, (3,). Waits for the device, as the Trainer's own check of the loss does.

    Raises:
        ValueError: if one is not a finite number.
    """
    kl, pl, mse = parts.tolist()
    if not math.isfinite(pl):
        raise ValueError(
            f"The cross-entropy of student and labels is {pl}: the student's weights or states are no numbers any "
            "more. Go on from an earlier checkpoint with a lower --learning_rate, or with --bf16 instead of --fp16."
        )
    if not math.isfinite(kl + mse):
        raise ValueError(
            f"The teacher's states are no numbers (KL {kl}, MSE {mse}) and would destroy the student's weights. Half "
            "precision may be too narrow for it: set --bf16 instead of --fp16. If it is the same without, its "
            "checkpoint is damaged: score it alone with `hf-distil-whisper evaluate`."
        )


class StepLog:
    """Adds up over the steps between two logs.

    Args:
        device (`torch.device`): of the sums: nothing is read from an accelerator before it is logged.
    """

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(len(PARTS), device=device)
        self._steps = 0
        self._waited = 0.0
        self._begin: float | None = None

    def add(self, parts: torch.Tensor, ends_step: bool) -> None:
        """Adds the parts of one batch.

        Args:
            parts (`torch.Tensor` of shape `(3,)`): in the order of `PARTS`.
            ends_step (`bool`): whether it is the last batch of an accumulated one.
        """
        self._sums += parts
        self._steps += int(ends_step)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the fetching of batches."""
        begin = time.perf_counter()
        if self._begin is None:  # the first batch: what came before, such as the filling of a cache, is no training
            self._begin = begin
        yield
        self._waited += time.perf_counter() - begin

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means since the last call, and a new beginning; to be called by every process.

        Returns:
            `dict[str, float]`: the parts by name, a mean over steps and processes, and `data_wait`: the share of the
            time, from 0 to 1, that this process waited for batches. Empty without a step.
        """
        if not self._steps or self._begin is None:
            return {}
        means = (accelerator.reduce(self._sums, reduction="mean") / self._steps).tolist()
        now = time.perf_counter()
        taken = dict(zip(PARTS, means, strict=True)) | {"data_wait": self._waited / (now - self._begin)}
        self._sums.zero_()
        self._steps, self._waited, self._begin = 0, 0.0, now
        return taken


class AverageEarlyStoppingCallback(EarlyStoppingCallback):
    """Early stopping on a metric that only exists after all validation sets, such as `eval_macro_wer`.

    The Trainer reports each set by itself first; those reports do not hold the metric and are passed over.

    Args:
        early_stopping_patience (`int`, *optional*, defaults to 1): evaluations without a better metric before the end.
        early_stopping_threshold (`float`, *optional*, defaults to 0.0): how much better it has to be.
    """

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Counts an evaluation if it holds `metric_for_best_model`."""
        name = str(args.metric_for_best_model)
        if (name if name.startswith("eval_") else f"eval_{name}") in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


def early_stopping(args: DistillationTrainingArguments) -> list[TrainerCallback]:
    """What ends a training early, where the arguments ask for it."""
    if args.early_stopping_patience is None:
        return []
    return [AverageEarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold)]


class KeepTokenIdsCallback(TrainerCallback):
    """Puts back the token ids that `Trainer.train` replaces by those of the tokenizer.

    Whisper's tokenizers begin a sentence with `<|endoftext|>`, the configs of English-only models with
    `<|startoftranscript|>`: a saved student would differ from its teacher for no reason.

    Args:
        model (`WhisperForConditionalGeneration`): the student, before training.
    """

    def __init__(self, model: WhisperForConditionalGeneration):
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        configs = (model.config, model.generation_config)
        self.kept = [(config, name, getattr(config, name)) for config in configs for name in names]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restores the ids, before the first step and the first checkpoint."""
        for config, name, value in self.kept:
            setattr(config, name, value)


class ChunkLengthCallback(TrainerCallback):
    """Writes `chunk_length_s` into the student's generation config, from where it gets into every checkpoint.

    Args:
        model (`WhisperForConditionalGeneration`): the student.
        rows ([`SpeechDataset`] or [`SpeechStream`]): to train on.
    """

    def __init__(self, model: WhisperForConditionalGeneration, rows: SpeechDataset | SpeechStream):
        self.model, self.rows = model, rows

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Goes by the mean duration of the rows as they are drawn; where that is not known, nothing is written."""
        mean = self.rows.mean_duration()
        if mean is not None:
            setattr(self.model.generation_config, CHUNK_LENGTH_ENTRY, chunk_length_after(mean))


def chunk_length_callbacks(model: WhisperForConditionalGeneration, dataset: Dataset | None) -> list[TrainerCallback]:
    """The callback, where the training rows are of a kind that tells durations."""
    rows = dataset if isinstance(dataset, SpeechStream) else speech_rows(dataset)
    return [] if rows is None else [ChunkLengthCallback(model, rows)]


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


logger = logging.get_logger(__name__)

_ENCODER_SHAPE = (
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "activation_function",
    "num_mel_bins",
    "max_source_positions",
)


def check_pair(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration | None,
    args: DistillationTrainingArguments,
) -> None:
    """Makes sure that the settings ask nothing of the two models that they cannot give.

    Args:
        student (`WhisperForConditionalGeneration`): the model to train.
        teacher (`WhisperForConditionalGeneration`, *optional*): None to train on labels alone.
        args (`DistillationTrainingArguments`): weights of the losses, and what is frozen.

    Raises:
        ValueError: names the flag or argument to change.
    """
    for name, model in (("model", student), ("teacher_model", teacher)):
        if model is not None and not isinstance(model, WhisperForConditionalGeneration):
            raise ValueError(f"{name}: expected a WhisperForConditionalGeneration, got {type(model).__name__}.")
    if teacher is student:
        raise ValueError(
            "model and teacher_model are the same object: freezing the teacher would freeze the student. Make the "
            "student with create_student, or pass copy.deepcopy(model) as teacher_model."
        )
    if teacher is None and (args.kl_weight > 0 or args.mse_weight > 0):
        raise ValueError(
            f"There is no teacher_model, but --kl_weight is {args.kl_weight} and --mse_weight {args.mse_weight}: both "
            "compare with a teacher. Pass one, or set both to 0 to train on the labels alone."
        )
    if teacher is not None and args.mse_weight > 0 and student.config.d_model != teacher.config.d_model:
        raise ValueError(
            f"--mse_weight is {args.mse_weight}, but the student's states are {student.config.d_model} wide and the "
            f"teacher's {teacher.config.d_model}: states of different width cannot be compared. Set --mse_weight 0; "
            "KL and pseudo-labels work with any width."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs and would split each batch between them (DataParallel), which is not "
            "supported. Start one process per GPU: accelerate launch or torchrun --nproc_per_node."
        )
    if args.freeze_encoder and student.config.apply_spec_augment:
        logger.warning(
            "The student's config asks for SpecAugment (apply_spec_augment), which has no effect on a frozen encoder: "
            "the teacher would see masked speech too. Set --freeze_encoder false to use it."
        )


def freeze(student: WhisperForConditionalGeneration, args: DistillationTrainingArguments) -> list[nn.Module]:
    """Takes the gradients from the parts that `args` freeze.

    Returns:
        `list[nn.Module]`: those to keep in eval mode, so that nothing is dropped in what cannot adapt to it.
    """
    frozen: list[nn.Module] = []
    if args.freeze_encoder:
        frozen.append(student.model.encoder)
    if args.freeze_decoder:
        frozen.append(student.model.decoder)
    for part in frozen:
        part.requires_grad_(False)
    if args.freeze_embed_positions:
        student.model.decoder.embed_positions.requires_grad_(False)
    student.proj_out.requires_grad_(True)  # the head, tied to the token embeddings, is always trained
    return frozen


def same_encoder(student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration) -> bool:
    """Whether both encoders give the same states: same shape and, weight by weight, same numbers.

    Weights of different precision are compared in the lower one: a teacher in half precision has the encoder of the
    float32 student that was made from it.

    Args:
        student (`WhisperForConditionalGeneration`): one of the models.
        teacher (`WhisperForConditionalGeneration`): the other one; may lie on another device.
    """
    if any(getattr(student.config, name) != getattr(teacher.config, name) for name in _ENCODER_SHAPE):
        return False
    ours, theirs = student.model.encoder.state_dict(), teacher.model.encoder.state_dict()
    return ours.keys() == theirs.keys() and all(_same(weight, theirs[name]) for name, weight in ours.items())


def _same(ours: Tensor, theirs: Tensor) -> bool:
    lower = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(ours.to(lower), theirs.to(ours.device, lower))


@contextmanager
def as_forward(module: nn.Module, function: Callable) -> Iterator[None]:
    """Lets whatever is wrapped around `module` run `function` as its forward pass.

    DDP, FSDP and the like only take care of gradients and weights inside the wrapped forward pass. The module's own
    one would form the logits of all tokens, which the fused loss avoids.

    Args:
        module (`nn.Module`): inside the wrapper, or not wrapped at all.
        function (`Callable`): gets the wrapper's arguments.
    """
    before = vars(module).get("forward")
    module.forward = function
    try:
        yield
    finally:
        del module.forward
        if before is not None:  # mixed precision puts its own forward pass there
            module.forward = before


_MIXED_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


class DistillationTrainer(PushingTrainer):
    """Trains a student on a teacher's distributions and pseudo-labels, or on labels alone where there is no teacher.

    A batch holds `input_features`, `decoder_input_ids` and `labels` (-100 on prompt and padding); student and teacher
    get the same decoder inputs. A frozen encoder that equals the teacher's (the weights are compared) runs once per
    batch for both. The loss is a mean over the tokens of the whole accumulated batch of all processes.

    Args:
        model (`WhisperForConditionalGeneration`): the student. Its frozen parts are chosen by `args`.
        teacher_model (`WhisperForConditionalGeneration`, *optional*): is frozen, put in eval mode, moved to the device
            and, in mixed precision, cast to it; where its encoder is shared, its own stays where it is. None needs
            `kl_weight` and `mse_weight` of 0.
        args (`DistillationTrainingArguments`, *optional*): the settings.
        data_collator (`Callable`, *optional*): by default a `DataCollatorSpeechSeq2SeqWithPadding`.
        train_dataset (`torch.utils.data.Dataset`, *optional*): for example a `SpeechDataset` or a `SpeechStream`.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): several sets log `eval_<name>_loss`, `_kl`, `_pl`
            and `_wer`, and the macro-average `eval_macro_wer`.
        processing_class (`WhisperProcessor`, *optional*): is saved with every checkpoint.
        compute_metrics (`Callable`, *optional*): by default [`default_metrics`], where there is a processor.
        callbacks (`list[TrainerCallback]`, *optional*): besides early stopping, which `args` switch on.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`): instead of the optimizer and scheduler of `args`.

    Raises:
        ValueError: on models, teacher, processor and settings that do not go together; says what to change.

    Example:
        ```python
        teacher = load_model("openai/whisper-small.en")
        trainer = DistillationTrainer(
            create_student(teacher), teacher, args, train_dataset=train, eval_dataset={"test": test},
            processing_class=processor,
        )
        trainer.train()
        trainer.save_model()
        ```
    """

    # The loss is divided by the tokens of the whole accumulated batch; without this the Trainer would divide again.
    loss_is_scaled_for_ga = True

    args: DistillationTrainingArguments
    train_dataset: Dataset | None
    control: TrainerControl

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        teacher_model: WhisperForConditionalGeneration | None = None,
        args: DistillationTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: WhisperProcessor | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        args = args or DistillationTrainingArguments()
        check_pair(model, teacher_model, args)
        check_evaluation(args, eval_dataset, processing_class, compute_metrics)
        check_compatible(model, teacher_model, processing_class)
        self._frozen_parts = freeze(model, args)
        self._lora = lora_student(model, args.lora, with_decoder=not args.freeze_decoder)
        if processing_class is not None:
            data_collator = data_collator or DataCollatorSpeechSeq2SeqWithPadding(processing_class)
            compute_metrics = compute_metrics or default_metrics(model, processing_class, args)
        self._streams = stream_reader(train_dataset, args)
        callbacks = [*(callbacks or []), *early_stopping(args), *mixture_callbacks(train_dataset)]
        callbacks += chunk_length_callbacks(model, train_dataset)
        callbacks += [self._streams] if self._streams is not None else []
        use_cache = model.config.use_cache
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        model.config.use_cache = use_cache  # upstream switches it off, and would save that
        self.add_callback(KeepTokenIdsCallback(model))
        self.configure_push(self._lora.save_merged if self._lora is not None else None)
        self.teacher_model = teacher_model
        self._settle_teacher()
        self._step_log = StepLog(args.device)
        self._eval_sums = LossSums(())
        self._gen_kwargs: dict[str, Any] = {}

    # Models

    def _settle_teacher(self) -> None:
        """Compares the encoders, and puts what is needed of the teacher on the device."""
        self.shares_encoder = False
        teacher, student = self.teacher_model, self.model
        if teacher is None:
            return
        teacher.requires_grad_(False)
        self.shares_encoder = self.args.freeze_encoder and same_encoder(student, teacher)
        if self.args.teacher_cache == "encoder" and not self.shares_encoder:
            raise ValueError(
                "--teacher_cache encoder keeps the states of one encoder for both models, but the student's encoder "
                "is not the teacher's. Set --teacher_cache both, which keeps what the teacher says too, or none: each "
                "will run its own."
            )
        dtype = _MIXED_PRECISION.get(self.args.mixed_precision, teacher.dtype)
        for module in (teacher.model.decoder, teacher.proj_out) if self.shares_encoder else (teacher,):
            module.to(self.args.device, dtype)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._streams is None:
            check_mixture(self.train_dataset, resume_from_checkpoint)
        else:
            self._streams.resume(self.args, resume_from_checkpoint)
        if self._lora is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._lora.load(resume_from_checkpoint)
        self._settle_teacher()  # the checkpoint's encoder may be another one than the student came with

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if self.model.config.tie_word_embeddings:  # saved once, as token embeddings: upstream warns that it is missing
            load_result.missing_keys[:] = [name for name in load_result.missing_keys if name != "proj_out.weight"]
        super()._issue_warnings_after_load(load_result)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = epoch_sampler(train_dataset or self.train_dataset, self.args)
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def get_train_dataloader(self) -> DataLoader:
        """The training batches; fills the teacher cache first, where `teacher_cache` asks for one."""
        if self._streams is not None:
            return self._streams.open(self.args, self.data_collator)
        rows = self.train_dataset
        if isinstance(rows, Sized) and not isinstance(rows, TeacherCacheDataset):
            dtype = _MIXED_PRECISION.get(self.args.mixed_precision, self.model.dtype)
            rows_per_epoch = min(len(rows), len(getattr(rows, "mixture", None) or rows))
            settings = CacheSettings.from_args(self.args, dtype, rows_per_epoch)
            self.train_dataset = rows if settings is None else self._fill_teacher_cache(settings)
        return super().get_train_dataloader()

    def _fill_teacher_cache(self, settings: CacheSettings) -> TeacherCacheDataset:
        with self.compute_loss_context_manager():
            cached = TeacherCacheDataset(
                self.train_dataset,
                self.model,
                self.teacher_model,
                settings,
                self.data_collator,
                shares_encoder=self.shares_encoder,
                process_index=self.accelerator.process_index,
                num_processes=self.accelerator.num_processes,
            )
        self.accelerator.wait_for_everyone()
        cached.reload()
        return cached

    def _encoder_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """States of the student's encoder, without gradient."""
        return inputs["encoder_states"] if "encoder_states" in inputs else encode(self.model, inputs["input_features"])

    def _run_teacher(self, inputs: dict[str, Tensor], student_states: Tensor | None) -> TeacherOutput:
        """The teacher's decoder on the batch: beside the student's encoder states where the encoder is shared."""
        if TEACHER_ARRAYS[0] in inputs:
            return TeacherOutput(kept=TopKLogits(*(inputs[name] for name in TEACHER_ARRAYS)))
        teacher = self.teacher_model
        if teacher is None:
            return TeacherOutput()
        teacher.eval()
        states = student_states if self.shares_encoder else None
        if states is None:
            states = encode(teacher, inputs["input_features"])
        head = teacher.proj_out.weight
        with torch.no_grad():
            output = teacher.model.decoder(
                input_ids=inputs["decoder_input_ids"],
                encoder_hidden_states=states.to(head.dtype),
                use_cache=False,
                output_hidden_states=self.args.mse_weight > 0,
            )
        return TeacherOutput(output.last_hidden_state, head, output.hidden_states)

    def _run_student(self, inputs: dict[str, Tensor], states: Tensor | None) -> Seq2SeqModelOutput:
        """The student on the batch; through its own encoder, with gradient, where no states are given."""
        source: dict[str, Any] = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
        if states is None:
            source = {"input_features": inputs["input_features"].to(self.model.dtype)}
        return self.model.model(
            **source,
            decoder_input_ids=inputs["decoder_input_ids"],
            use_cache=False,
            output_hidden_states=self.args.mse_weight > 0,
        )

    # Training

    def get_batch_samples(self, *args: Any) -> tuple[list, Tensor | int | None]:
        """Upstream's, with the time that it takes."""
        with self._step_log.waiting():
            return super().get_batch_samples(*args)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if missing := sorted({"decoder_input_ids", "labels"} - inputs.keys()):
            raise ValueError(
                f"A batch lacks {' and '.join(missing)}: student and teacher need the same decoder inputs. Use "
                "DataCollatorSpeechSeq2SeqWithPadding, or a collator that gives both."
            )
        return super()._prepare_inputs(inputs)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        """Mixed precision around the whole step: teacher and loss run outside the student's wrapped forward pass."""
        return self.accelerator.autocast()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The weighted losses, summed over the batch's tokens and divided by those of the whole accumulated batch.

        Raises a `ValueError` before the gradients of a batch whose losses are not numbers reach any weight.

        Args:
            model (`nn.Module`): the student as wrapped for training, for example by DDP.
            inputs (`dict[str, Tensor]`): one batch.
            return_outputs (`bool`, *optional*, defaults to `False`): also return the parts `kl`, `pl` and `mse`.
            num_items_in_batch (`Tensor`, *optional*): labels that count in the accumulated batch, over all processes
                unless `average_tokens_across_devices` is off. By default those of this batch.
        """
        self._freeze_modes()
        states = self._encoder_states(inputs) if self.args.freeze_encoder else None
        taught = self.args.kl_weight > 0 or self.args.mse_weight > 0
        teacher = self._run_teacher(inputs, states) if taught else TeacherOutput()
        scale = self._loss_scale(inputs["labels"], num_items_in_batch)

        def forward() -> tuple[Tensor, Tensor]:
            student = self._run_student(inputs, states)
            return batch_losses(student, self.model.proj_out.weight, teacher, inputs["labels"], self.args)

        with as_forward(self.model, forward):
            loss, parts = model()
        check_finite(parts)
        loss, parts = loss * scale, parts * scale
        if self.model.training:
            self._step_log.add(parts, ends_step=self.accelerator.sync_gradients)
        return (loss, dict(zip(PARTS, parts, strict=True))) if return_outputs else loss

    def _freeze_modes(self) -> None:
        """No dropout in frozen parts: upstream puts the whole student in train mode at every step."""
        for part in self._frozen_parts:
            part.eval()

    def _loss_scale(self, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """What a sum over this batch's tokens is multiplied with."""
        if num_items_in_batch is None:
            return 1 / (labels != IGNORE_INDEX).sum().clamp(min=1)
        # DDP will average the gradients over processes, but the count already goes over all of them.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return processes / torch.as_tensor(num_items_in_batch).clamp(min=1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the training logs what [`StepLog`] says of the steps since the last one."""
        if "loss" in logs and (taken := self._step_log.take(self.accelerator)):
            silent = set(PARTS) - set(self._logged_parts(training=True))
            logs.update({name: value for name, value in taken.items() if name not in silent})
        super().log(logs, start_time)

    def _logged_parts(self, training: bool) -> list[str]:
        with_kl = self.args.kl_weight > 0 or (not training and self.teacher_model is not None)
        return ["kl"] * with_kl + ["pl"] + ["mse"] * (self.args.mse_weight > 0)

    # Evaluation

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Evaluates one or several sets; several also get the macro-average of their WER.

        Args:
            eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): by default the trainer's own.
            ignore_keys (`list[str]`, *optional*): has no effect, no model outputs are gathered.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`): before the name of each metric.
            gen_kwargs: `num_beams` or `max_new_tokens`, for all sets.

        Returns:
            `dict[str, float]`: `eval_<set>_loss`, `_kl`, `_pl`, `_wer`, times, and `eval_macro_wer`.
        """
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        metrics: dict[str, float] = {}
        for name, dataset in sets.items():
            chosen = name if eval_dataset is None else dataset
            metrics.update(self.evaluate(chosen, ignore_keys, f"{metric_key_prefix}_{name}", **gen_kwargs))
        rates = [metrics[key] for name in sets if (key := f"{metric_key_prefix}_{name}_wer") in metrics]
        if rates:
            macro = {f"{metric_key_prefix}_macro_wer": sum(rates) / len(rates)}
            metrics.update(macro)
            self.log(macro)
            # Upstream reports each set by itself, before this average exists: early stopping would never see it.
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Upstream's loop, with each row counted once over all processes and losses averaged over tokens."""
        self.gather_function = self.accelerator.gather_for_metrics
        self._eval_sums = LossSums(["loss", *PARTS])
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._eval_sums.means()
        names = ["loss", *self._logged_parts(training=False)] if means else []
        output.metrics.update({f"{metric_key_prefix}_{name}": means[name] for name in names})
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Losses at temperature 1 and a transcript of one batch; keeps no logits.

        Returns:
            `tuple`: mean loss, generated tokens (batch, fixed length) padded with the pad token, labels; the last two
            are None where nothing is generated.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            states = self._encoder_states(inputs)
            student, teacher = self._run_student(inputs, states), self._run_teacher(inputs, states)
            rows = row_losses(student, self.model.proj_out.weight, teacher, labels, self.args)
            self._eval_sums.add(self.accelerator.gather_for_metrics(rows))
            loss = rows[:, 0].sum() / rows[:, -1].sum().clamp(min=1)
            if prediction_loss_only or not self.args.predict_with_generate:
                return loss, None, None
            tokens = generate_tokens_of(self.model, inputs, states, self.args.task, gen_kwargs or self._gen_kwargs)
        return loss, tokens, labels

    # Saving

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Saves the student with all that other runtimes read, not its teacher; a checkpoint of LoRA the adapter."""
        folder = str(output_dir or self.args.output_dir)
        if self._lora is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self._lora.save(folder)
            if not Path(folder).name.startswith(PREFIX_CHECKPOINT_DIR):
                self._lora.save_merged(folder)
            torch.save(self.args, Path(folder, TRAINING_ARGS_NAME))  # as upstream does
        if self.args.should_save:
            save_generation_config(self.model, folder)
            if self.processing_class is not None:
                save_processor(self.processing_class, folder)

    def _load_best_model(self) -> None:
        if self._lora is None:
            super()._load_best_model()
        else:
            self._lora.load(str(self.state.best_model_checkpoint))
