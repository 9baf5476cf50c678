"""`DistillationTrainer`: a `Seq2SeqTrainer` that distils a Whisper teacher into a student (arXiv 2311.00430)."""

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

from hf_distil_whisper.checkpoints import check_compatible, save_generation_config, save_processor
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.dataset import SpeechDataset
from hf_distil_whisper.data.mixture import Mixture, check_same_sources
from hf_distil_whisper.data.streaming import SpeechStream
from hf_distil_whisper.hub.push import PushingTrainer
from hf_distil_whisper.inference.chunked import CHUNK_LENGTH_ENTRY, chunk_length_after
from hf_distil_whisper.inference.encoder import encode
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.fused_loss import (
    distillation_token_losses,
    fused_distillation_loss,
)
from hf_distil_whisper.training.lora import LoraStudent, lora_settings
from hf_distil_whisper.training.losses import IGNORE_INDEX, hidden_state_mse_loss, paired_layers
from hf_distil_whisper.training.teacher_cache import CacheSettings, TeacherCacheDataset
from hf_distil_whisper.training.validation import (
    COMPONENTS,
    LossSums,
    check_evaluation,
    default_metrics,
    generate_tokens_of,
)

logger = logging.get_logger(__name__)

GROUP_BATCHES = 50
"""Steps whose rows are sorted by length together, as in transformers' `LengthGroupedSampler`."""
MIXTURE_FILE = "mixture.json"
"""In a checkpoint: the sources that the training mixes."""
STREAMS_FILE = "streams.json"
"""In a checkpoint: the streams that the training reads; each process writes its position beside it."""

_MIXED_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ENCODER_SHAPE = (
    *("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
    *("activation_function", "num_mel_bins", "max_source_positions"),
)


class TeacherOutput(NamedTuple):
    """The teacher's forward pass on a batch, or what a cache stored of it; all None without a teacher.

    Args:
        last_hidden_state (`Tensor`, *optional*): of the decoder, (batch, length, width).
        head (`Tensor`, *optional*): weight of the language-model head, (vocab, width).
        layers (`tuple[Tensor, ...]`, *optional*): decoder states to compare with each layer of the student, for MSE.
    """

    last_hidden_state: Tensor | None = None
    head: Tensor | None = None
    layers: tuple[Tensor, ...] | None = None


class DistillationTrainer(PushingTrainer):
    """Trains a student on a teacher's distributions and pseudo-labels, or on labels alone without a teacher.

    A batch holds `input_features`, `decoder_input_ids` and `labels` (-100 on prompt and padding); student and teacher
    get the same decoder inputs. A frozen encoder that equals the teacher's (the weights are compared) runs once per
    batch for both. The loss is a mean over the tokens of the whole accumulated batch of all processes.

    Args:
        model (`WhisperForConditionalGeneration`): the student. `args` choose what of it is frozen.
        teacher_model (`WhisperForConditionalGeneration`, *optional*): is frozen, put in eval mode, moved to the device
            and, in mixed precision, cast to its dtype; an encoder equal to the student's stays where it is. Without a
            teacher, `kl_weight` and `mse_weight` must be 0.
        args (`DistillationTrainingArguments`, *optional*): the settings.
        data_collator (`Callable`, *optional*): by default a `DataCollatorSpeechSeq2SeqWithPadding`.
        train_dataset (`torch.utils.data.Dataset`, *optional*): for example a `SpeechDataset` or a `SpeechStream`.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): several sets log `eval_<name>_loss`, `_kl`, `_pl`
            and `_wer`, and the macro-average `eval_macro_wer`.
        processing_class (`WhisperProcessor`, *optional*): is saved with every checkpoint.
        compute_metrics (`Callable`, *optional*): by default [`default_metrics`], if there is a processor.
        callbacks (`list[TrainerCallback]`, *optional*): besides early stopping, which `args` switch on.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`): instead of the optimizer and scheduler of `args`.

    Raises:
        ValueError: on models, processor and settings that do not go together; says what to change.

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

    # `compute_loss` divides by the tokens of the whole accumulated batch, so the Trainer must not divide by the
    # accumulation steps. Left to itself, it decides by whether the model's forward takes **kwargs.
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
        self._frozen_modules = freeze(model, args)
        self._lora: LoraStudent | None = None
        if isinstance(args.lora, dict):
            self._lora = LoraStudent(model, lora_settings(args.lora), with_decoder=not args.freeze_decoder)
        if processing_class is not None:
            data_collator = data_collator or DataCollatorSpeechSeq2SeqWithPadding(processing_class)
            compute_metrics = compute_metrics or default_metrics(model, processing_class, args)
        self._streams = stream_reader(train_dataset, args)
        callbacks = [*(callbacks or []), StudentConfigCallback(model, train_dataset)]
        if args.early_stopping_patience is not None:
            patience, threshold = args.early_stopping_patience, args.early_stopping_threshold
            callbacks.append(MacroEarlyStoppingCallback(patience, threshold))
        if self._streams is not None:
            callbacks.append(self._streams)
        elif (mixture := _mixture(train_dataset)) is not None:
            callbacks.append(MixtureCallback(mixture))
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
        self.configure_push(self._lora.save_merged if self._lora is not None else None)
        self.teacher_model = teacher_model
        self._prepare_teacher()
        self._step_log = StepLog(args.device)
        self._eval_sums = LossSums(())
        self._gen_kwargs: dict[str, Any] = {}

    def _prepare_teacher(self) -> None:
        """Freezes the teacher, compares the encoders, and moves what will run of the teacher to the device."""
        self.shares_encoder = False
        teacher, student = self.teacher_model, self.model
        if teacher is None:
            return
        teacher.requires_grad_(False)
        self.shares_encoder = self.args.freeze_encoder and same_encoder(student, teacher)
        if self.args.teacher_cache == "encoder" and not self.shares_encoder:
            raise ValueError(
                "--teacher_cache encoder stores the hidden states of one encoder for both models, but the student's "
                "encoder is not the teacher's. Set --teacher_cache both, which stores the teacher's logits too, or "
                "none: each model will run its own encoder."
            )
        dtype = _MIXED_PRECISION.get(self.args.mixed_precision, teacher.dtype)
        for module in (teacher.model.decoder, teacher.proj_out) if self.shares_encoder else (teacher,):
            module.to(self.args.device, dtype)

    # Training

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of equation 12, kl_weight * KL + pl_weight * CE (+ mse_weight * MSE), as a mean over tokens.

        Args:
            model (`nn.Module`): the student as wrapped for training, for example by DDP.
            inputs (`dict[str, Tensor]`): one batch.
            return_outputs (`bool`, *optional*, defaults to `False`): also return the components `kl`, `pl` and `mse`.
            num_items_in_batch (`Tensor`, *optional*): labelled tokens of the whole accumulated batch, over all
                processes unless `average_tokens_across_devices` is off. By default those of this batch.

        Raises:
            ValueError: if the loss is NaN or Inf, before its gradients reach any weight.
        """
        # Upstream calls model.train() at every step, which would switch on dropout in modules that cannot adapt to it.
        for module in self._frozen_modules:
            module.eval()
        # One encoder pass for both models when the frozen encoders are identical: (batch, frames, width). An encoder
        # that is trained runs inside the student's forward pass instead, with gradient.
        encoder_states = self._encode(inputs) if self.args.freeze_encoder else None
        needs_teacher = self.args.kl_weight > 0 or self.args.mse_weight > 0
        teacher = self._teacher_forward(inputs, encoder_states) if needs_teacher else TeacherOutput()
        # Run the student inside the DDP/FSDP wrapper so that its gradient hooks fire, but return the fused loss
        # instead of (batch, length, vocab) logits.
        with redirect_forward(self.model, lambda: self._student_loss(inputs, encoder_states, teacher)):
            loss, components = model()  # sums over the batch's tokens: (), and (3,) for KL, cross-entropy and MSE
        # The Trainer leaves NaN out of the logged mean and trains on.
        raise_if_not_finite(components)
        scale = self._loss_scale(inputs["labels"], num_items_in_batch)
        loss, components = loss * scale, components * scale
        if self.model.training:
            self._step_log.add(components, ends_step=self.accelerator.sync_gradients)
        return (loss, dict(zip(COMPONENTS, components, strict=True))) if return_outputs else loss

    def _encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """The student's encoder states without gradient, from the cache if the batch holds them."""
        return inputs["encoder_states"] if "encoder_states" in inputs else encode(self.model, inputs["input_features"])

    def _teacher_forward(self, inputs: dict[str, Tensor], encoder_states: Tensor | None) -> TeacherOutput:
        """The teacher's decoder on the batch; reads the student's encoder states if the encoder is shared."""
        teacher = self.teacher_model
        if teacher is None:
            return TeacherOutput()
        head = teacher.proj_out.weight  # (vocab, teacher width)
        with_layers = self.args.mse_weight > 0
        if "teacher_states" in inputs:  # from the teacher cache, (batch, length, layers * teacher width)
            layers = inputs["teacher_states"].to(head.dtype).split(head.shape[1], dim=-1)
            return TeacherOutput(layers[-1], head, layers if with_layers else None)
        teacher.eval()
        states = encoder_states if self.shares_encoder else None
        if states is None:
            states = encode(teacher, inputs["input_features"])  # (batch, frames, teacher width)
        with torch.no_grad():
            # The decoder alone: the fused loss forms the logits itself, a chunk of tokens at a time.
            output = teacher.model.decoder(
                input_ids=inputs["decoder_input_ids"],
                encoder_hidden_states=states.to(head.dtype),
                use_cache=False,
                output_hidden_states=with_layers,
            )
        if not with_layers:
            return TeacherOutput(output.last_hidden_state, head)
        paired = paired_layers(self.model.config.decoder_layers, teacher.config.decoder_layers)
        return TeacherOutput(output.last_hidden_state, head, tuple(output.hidden_states[layer] for layer in paired))

    def _student_forward(self, inputs: dict[str, Tensor], encoder_states: Tensor | None) -> Seq2SeqModelOutput:
        """The student without its head; runs its encoder, with gradient, if no states are given."""
        # As `BaseModelOutput`: transformers accepts a bare tensor too, and computes other logits from it.
        source: dict[str, Any] = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoder_states)}
        if encoder_states is None:
            source = {"input_features": inputs["input_features"].to(self.model.dtype)}
        # Not `labels`: models that shift them by themselves read start-of-transcript in place of the prompt.
        return self.model.model(
            **source,
            decoder_input_ids=inputs["decoder_input_ids"],
            use_cache=False,
            output_hidden_states=self.args.mse_weight > 0,
        )

    def _student_loss(
        self, inputs: dict[str, Tensor], encoder_states: Tensor | None, teacher: TeacherOutput
    ) -> tuple[Tensor, Tensor]:
        """The loss of equation 12, and its detached KL, cross-entropy and MSE, (3,): sums over the tokens."""
        args, labels = self.args, inputs["labels"]
        settings: dict[str, Any] = {
            "temperature": args.temperature,
            "kl_weight": args.kl_weight,
            "pl_weight": args.pl_weight,
            "chunk_size": args.loss_chunk_size,
            "reduction": "sum",
        }
        student = self._student_forward(inputs, encoder_states)
        states, head = student.last_hidden_state, self.model.proj_out.weight  # (batch, length, width), (vocab, width)
        fused = fused_distillation_loss(states, head, teacher.last_hidden_state, teacher.head, labels, **settings)
        loss, mse = fused.loss, torch.zeros_like(fused.kl)
        if (layers := teacher.layers) is not None:
            mse = hidden_state_mse_loss(student.decoder_hidden_states, layers, labels, range(len(layers)), "sum")
            loss = loss + args.mse_weight * mse
        return loss, torch.stack([fused.kl, fused.pl, mse.detach()])

    def _loss_scale(self, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """The factor that makes sums over this batch's tokens a share of the mean over the accumulated batch."""
        if num_items_in_batch is None:
            return 1 / (labels != IGNORE_INDEX).sum().clamp(min=1)
        # The count spans all micro-batches and, with `average_tokens_across_devices`, all processes. DDP averages the
        # gradients over processes on top of that, which the factor undoes: 8x1, 2x4 and 1x8 samples x accumulation
        # steps give the same loss and gradient norm on any number of processes.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return processes / torch.as_tensor(num_items_in_batch).clamp(min=1)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if missing := sorted({"decoder_input_ids", "labels"} - inputs.keys()):
            raise ValueError(
                f"A batch lacks {' and '.join(missing)}: student and teacher need the same decoder inputs. Use "
                "DataCollatorSpeechSeq2SeqWithPadding, or a collator that returns both."
            )
        return super()._prepare_inputs(inputs)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        """Mixed precision around the whole step: teacher and loss run outside the student's wrapped forward pass."""
        return self.accelerator.autocast()

    def get_batch_samples(self, *args: Any) -> tuple[list, Tensor | int | None]:
        """Upstream's, timed for `data_wait`."""
        with self._step_log.waiting():
            return super().get_batch_samples(*args)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss components and `data_wait` to the training logs; see [`StepLog`]."""
        if "loss" in logs and (values := self._step_log.pop(self.accelerator)):
            hidden = set(COMPONENTS) - set(self._logged_components(training=True))
            logs.update({name: value for name, value in values.items() if name not in hidden})
        super().log(logs, start_time)

    def _logged_components(self, training: bool) -> list[str]:
        with_kl = self.args.kl_weight > 0 or (not training and self.teacher_model is not None)
        return ["kl"] * with_kl + ["pl"] + ["mse"] * (self.args.mse_weight > 0)

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """The training batches; fills the teacher cache first, if `teacher_cache` asks for one."""
        if self._streams is not None:
            return self._streams.open(self.args, self.data_collator)
        rows = self.train_dataset
        # Filled once: a second training of this trainer would cache what comes out of the cache.
        if self.args.teacher_cache != "none" and not isinstance(rows, TeacherCacheDataset) and isinstance(rows, Sized):
            dtype = _MIXED_PRECISION.get(self.args.mixed_precision, self.model.dtype)
            rows_per_epoch = min(len(rows), len(getattr(rows, "mixture", None) or rows))
            self.train_dataset = self._fill_teacher_cache(CacheSettings.from_args(self.args, dtype, rows_per_epoch))
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
        # Each process has filled its part of a folder; none may start with a step before all are written.
        self.accelerator.wait_for_everyone()
        cached.reload()
        return cached

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = epoch_sampler(train_dataset or self.train_dataset, self.args)
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

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
            eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): by default that of the trainer.
            ignore_keys (`list[str]`, *optional*): has no effect, since no model outputs are gathered.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`): prefix of each metric's name.
            gen_kwargs: `num_beams` or `max_new_tokens`, for all sets.

        Returns:
            `dict[str, float]`: `eval_<set>_loss`, `_kl`, `_pl`, `_wer`, times, and `eval_macro_wer`.
        """
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        # Not left to upstream, which drops the generation settings for the sets of a dictionary.
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
        """Upstream's loop, with losses averaged over tokens instead of batches."""
        # Seq2SeqTrainer gathers with `gather`, which counts the rows that pad the last batch of several processes.
        self.gather_function = self.accelerator.gather_for_metrics
        self._eval_sums = LossSums(["loss", *COMPONENTS])
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._eval_sums.means()
        names = ["loss", *self._logged_components(training=False)] if means else []
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
        """Losses at temperature 1 and a transcript of one batch; returns no logits.

        Returns:
            `tuple`: mean loss, generated tokens (batch, fixed length) padded with the pad token, labels; the last two
            are None if nothing is generated.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        # Upstream's step never calls `compute_loss` if it generates: eval_loss would be the cross-entropy alone. If it
        # does not, the predictions hold the logits and encoder states of the whole set.
        with torch.no_grad(), self.compute_loss_context_manager():
            encoder_states = self._encode(inputs)  # one pass for both losses and the transcript
            student = self._student_forward(inputs, encoder_states)
            teacher = self._teacher_forward(inputs, encoder_states)
            sums = self._row_losses(student, teacher, labels)
            self._eval_sums.add(self.accelerator.gather_for_metrics(sums))
            loss = sums[:, 0].sum() / sums[:, -1].sum().clamp(min=1)
            if prediction_loss_only or not self.args.predict_with_generate:
                return loss, None, None
            settings = gen_kwargs or self._gen_kwargs
            tokens = generate_tokens_of(self.model, inputs, encoder_states, self.args.task, settings)
        return loss, tokens, labels

    def _row_losses(self, student: Seq2SeqModelOutput, teacher: TeacherOutput, labels: Tensor) -> Tensor:
        """Loss at temperature 1, KL, cross-entropy, MSE and number of tokens of each row, (batch, 5): sums."""
        args = self.args
        kl, ce = distillation_token_losses(
            student.last_hidden_state,
            self.model.proj_out.weight,
            teacher.last_hidden_state,
            teacher.head,
            labels,
            temperature=1.0,
            chunk_size=args.loss_chunk_size,
        )
        mse = torch.zeros_like(ce)
        if (layers := teacher.layers) is not None:
            mse = hidden_state_mse_loss(student.decoder_hidden_states, layers, labels, range(len(layers)), "none")
        loss = args.kl_weight * kl + args.pl_weight * ce + args.mse_weight * mse
        return torch.stack([values.sum(1) for values in (loss, kl, ce, mse, (labels != IGNORE_INDEX).to(ce))], dim=1)

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Saves the student, without its teacher, with all files that other runtimes read; of LoRA the adapter."""
        folder = str(output_dir or self.args.output_dir)
        if self._lora is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self._lora.save(folder)
            # A complete student at the end only: of a large model, each checkpoint would take gigabytes more.
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._streams is None:
            check_mixture(self.train_dataset, resume_from_checkpoint)
        else:
            self._streams.resume(self.args, resume_from_checkpoint)
        if self._lora is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._lora.load(resume_from_checkpoint)
        self._prepare_teacher()  # the checkpoint's encoder may differ from the one that was compared before

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if self.model.config.tie_word_embeddings:  # saved once, as token embeddings: upstream warns that it is missing
            load_result.missing_keys[:] = [name for name in load_result.missing_keys if name != "proj_out.weight"]
        super()._issue_warnings_after_load(load_result)


# The training step


def raise_if_not_finite(components: Tensor) -> None:
    """Ends a training before the gradients of a broken batch destroy the student's weights."""
    kl, ce, mse = components.tolist()  # waits for the device, as the Trainer's check of the loss does
    if not math.isfinite(ce):
        raise ValueError(
            f"The cross-entropy of the student with the labels is {ce}: the student's weights or activations are NaN "
            "or Inf. Resume from an earlier checkpoint with a lower --learning_rate, or with --bf16 instead of --fp16."
        )
    if not math.isfinite(kl + mse):
        raise ValueError(
            f"The teacher's hidden states are NaN or Inf (KL {kl}, MSE {mse}) and would destroy the student's "
            "weights. Half precision may be too narrow for it: set --bf16 instead of --fp16. If that changes nothing, "
            "its checkpoint is damaged: score it alone with `hf-distil-whisper evaluate`."
        )


@contextmanager
def redirect_forward(module: nn.Module, function: Callable) -> Iterator[None]:
    """Makes whatever wraps `module` run `function` as its forward pass (TRL's forward redirection).

    DDP and FSDP synchronise gradients and gather weights only inside the wrapped forward pass; the module's original
    one would form the logits of all tokens. Works without a wrapper too.
    """
    original = vars(module).get("forward")
    module.forward = function
    try:
        yield
    finally:
        del module.forward
        if original is not None:  # accelerate's mixed precision sets one on the instance
            module.forward = original


class StepLog:
    """Averages the loss components over the steps between two logs, and times the wait for batches."""

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(len(COMPONENTS), device=device)
        self._steps = 0
        self._waited = 0.0
        self._start: float | None = None

    def add(self, components: torch.Tensor, ends_step: bool) -> None:
        """Adds the components of one batch, (3,); `ends_step` marks the last batch of an accumulated one."""
        self._sums += components
        self._steps += int(ends_step)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times the fetching of batches."""
        now = time.perf_counter()
        if self._start is None:  # count from the first batch: filling a cache before it is not training
            self._start = now
        yield
        self._waited += time.perf_counter() - now

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Averages over steps and processes since the last call, and `data_wait`: the share of time without a batch.

        Every process must call it. Empty without a step.
        """
        if not self._steps or self._start is None:
            return {}
        means = (accelerator.reduce(self._sums, reduction="mean") / self._steps).tolist()
        now = time.perf_counter()
        values = dict(zip(COMPONENTS, means, strict=True)) | {"data_wait": self._waited / (now - self._start)}
        self._sums.zero_()
        self._steps, self._waited, self._start = 0, 0.0, now
        return values


# Student and teacher


def check_pair(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration | None,
    args: DistillationTrainingArguments,
) -> None:
    """Raises a `ValueError` if the two models cannot be trained with the settings."""
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
            f"--mse_weight is {args.mse_weight}, but the student's hidden states are {student.config.d_model} wide "
            f"and the teacher's {teacher.config.d_model}: different widths cannot be compared. Set --mse_weight 0; KL "
            "and pseudo-labels work with any width."
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
    """Freezes the modules that `args` name; returns those that must stay in eval mode."""
    frozen: list[nn.Module] = []
    if args.freeze_encoder:
        frozen.append(student.model.encoder)
    if args.freeze_decoder:
        frozen.append(student.model.decoder)
    for module in frozen:
        module.requires_grad_(False)
    if args.freeze_embed_positions:
        student.model.decoder.embed_positions.requires_grad_(False)
    # The head is the token embeddings, tied to it; `freeze_decoder` leaves it out.
    student.proj_out.requires_grad_(not args.freeze_embed_tokens)
    if args.freeze_embed_tokens:
        student.model.decoder.embed_tokens.requires_grad_(False)
    return frozen


def same_encoder(student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration) -> bool:
    """Whether both encoders compute the same hidden states: same shape and, weight by weight, same values."""
    if any(getattr(student.config, name) != getattr(teacher.config, name) for name in _ENCODER_SHAPE):
        return False
    ours, theirs = student.model.encoder.state_dict(), teacher.model.encoder.state_dict()
    if ours.keys() != theirs.keys():
        return False
    for name, weight in ours.items():
        other = theirs[name].to(weight.device)
        # In the lower precision: a teacher in bfloat16 has the encoder of the float32 student made from it.
        lower = min(weight.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
        if not torch.equal(weight.to(lower), other.to(lower)):
            return False
    return True


class StudentConfigCallback(TrainerCallback):
    """Saves token ids as they were, and as `chunk_length_s` the best one for the mean duration of the training rows.

    The entry decides about long recordings (Table 23); without a known duration none is written.
    """

    def __init__(self, model: WhisperForConditionalGeneration, dataset: Dataset | None):
        self.model = model
        self.rows = dataset if isinstance(dataset, SpeechStream) else _speech_rows(dataset)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        configs = (model.config, model.generation_config)
        self._token_ids = [(config, name, getattr(config, name)) for config in configs for name in names]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first step, so that every checkpoint has them."""
        # `Trainer.train` replaces the token ids by those of the tokenizer. Whisper's tokenizers begin a sentence with
        # <|endoftext|>, the configs of English-only models with <|startoftranscript|>.
        for config, name, value in self._token_ids:
            setattr(config, name, value)
        if self.rows is not None and (mean := self.rows.mean_duration()) is not None:
            setattr(self.model.generation_config, CHUNK_LENGTH_ENTRY, chunk_length_after(mean))


class MacroEarlyStoppingCallback(EarlyStoppingCallback):
    """Early stopping on a metric that exists only after all validation sets, such as `eval_macro_wer`."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Counts an evaluation if it holds `metric_for_best_model`."""
        # The Trainer reports each set first; upstream's callback disables itself when a report lacks the metric.
        name = str(args.metric_for_best_model)
        if (name if name.startswith("eval_") else f"eval_{name}") in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


# Order of the training data


class EpochSampler(Sampler[int]):
    """Row indices of an epoch, in an order that depends on seed and epoch alone and is the same in every process.

    Args:
        dataset ([`SpeechDataset`]): its epoch, mixture and text lengths decide the order.
        group_size (`int`, *optional*): rows of a step of all processes, to draw rows of similar length together.
    """

    # Without `set_epoch`: with several processes, accelerate would call it in place of the dataset's.

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
            rows = _group_by_length(rows, self._lengths[rows], self.group_size, random)
        return iter(rows.tolist())


def epoch_sampler(dataset: Dataset | None, args: TrainingArguments) -> EpochSampler | None:
    """The sampler for a mixture or for `group_by_length`; None if the Trainer's does."""
    rows = _speech_rows(dataset)
    if rows is None or args.train_sampling_strategy not in ("random", "group_by_length"):
        return None
    if args.train_sampling_strategy == "group_by_length":
        return EpochSampler(rows, args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
    return EpochSampler(rows) if rows.mixture is not None else None


def _group_by_length(
    rows: np.ndarray, lengths: np.ndarray, group_size: int, random: np.random.Generator
) -> np.ndarray:
    """Steps of rows of similar length in random order, but the longest first and an incomplete one last."""
    steps: list[np.ndarray] = []
    for start in range(0, len(rows), GROUP_BATCHES * group_size):
        order = start + np.argsort(-lengths[start : start + GROUP_BATCHES * group_size], kind="stable")
        steps += np.split(order, range(group_size, len(order), group_size))
    complete = [step for step in steps if len(step) == group_size]
    random.shuffle(complete)
    if complete:  # the longest first: a batch that exceeds the memory fails at once, not after hours
        longest = max(range(len(complete)), key=lambda number: lengths[complete[number][0]])
        complete[0], complete[longest] = complete[longest], complete[0]
    return rows[np.concatenate(complete + [step for step in steps if len(step) < group_size])]


def _speech_rows(dataset: Dataset | None) -> SpeechDataset | None:
    """The rows of speech behind a training's dataset, cached or not; None if it has none."""
    rows = dataset.dataset if isinstance(dataset, TeacherCacheDataset) else dataset
    return rows if isinstance(rows, SpeechDataset) else None


def _mixture(dataset: Dataset | None) -> Mixture | None:
    rows = _speech_rows(dataset)
    return None if rows is None else rows.mixture


class MixtureCallback(TrainerCallback):
    """Saves the sources of a mixture with every checkpoint, for [`check_mixture`]."""

    def __init__(self, mixture: Mixture):
        self.mixture = mixture

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes `mixture.json` into the checkpoint."""
        if state.is_world_process_zero:
            _write_json(_checkpoint(args, state) / MIXTURE_FILE, self.mixture.state())


def check_mixture(dataset: Dataset | None, checkpoint: str) -> None:
    """Raises a `ValueError` if a checkpoint is of a training on other sources."""
    mixture, file = _mixture(dataset), Path(checkpoint, MIXTURE_FILE)
    if mixture is not None and file.is_file():
        check_same_sources(mixture.state(), json.loads(file.read_text(encoding="utf-8")))


class StreamReader(TrainerCallback):
    """The data loader of a stream for one process, whose position is saved with every checkpoint."""

    def __init__(self, stream: SpeechStream):
        self.stream = stream
        self.loader: StatefulDataLoader | None = None
        self._position: dict[str, Any] | None = None

    def open(self, args: TrainingArguments, collate: Callable) -> StatefulDataLoader:
        """The endless batches of this process; from a checkpoint's position after [`resume`]."""
        self._assign(args)
        # The loader's workers restore their positions; upstream would read and discard all batches up to the step.
        args.ignore_data_skip = True
        self.loader = StatefulDataLoader(
            self.stream,
            batch_size=args.train_batch_size,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            pin_memory=args.dataloader_pin_memory and torch.accelerator.is_available(),
        )
        if self._position is not None:
            self.loader.load_state_dict(self._position)
        return self.loader

    def resume(self, args: TrainingArguments, checkpoint: str) -> None:
        """Continues at a checkpoint's position, in the open loader or in the next one; a `ValueError` without one."""
        self._assign(args)
        identity = Path(checkpoint, STREAMS_FILE)
        if not identity.is_file():
            raise ValueError(
                f"--resume_from_checkpoint: {checkpoint} holds no {STREAMS_FILE}, so it is not of a training on "
                "streams. Start a new training in another --output_dir."
            )
        check_same_sources(self.stream.identity(), json.loads(identity.read_text(encoding="utf-8")))
        self._position = torch.load(self._file(checkpoint), weights_only=True)
        if self.loader is not None:
            self.loader.load_state_dict(self._position)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes this process's position into the checkpoint, and which streams it is in."""
        if self.loader is None:
            return
        folder = _checkpoint(args, state)
        torch.save(self.loader.state_dict(), self._file(folder))
        if state.is_world_process_zero:
            _write_json(folder / STREAMS_FILE, self.stream.identity())

    def _assign(self, args: TrainingArguments) -> None:
        self.stream.assign(args.process_index, args.world_size, args.dataloader_num_workers)

    def _file(self, folder: str | Path) -> Path:
        return Path(folder, f"stream-{self.stream.process}.pt")


def stream_reader(dataset: Dataset | None, args: DistillationTrainingArguments) -> StreamReader | None:
    """The reader of the training samples if they are a stream; a `ValueError` if a setting needs countable rows."""
    if dataset is not None and not isinstance(dataset, Sized) and args.teacher_cache != "none":
        raise ValueError(
            f"--teacher_cache {args.teacher_cache} stores what is computed once for every training row, but a stream "
            "does not come back to its rows. Set it to none, or load the rows without streaming."
        )
    if not isinstance(dataset, SpeechStream):
        return None
    if args.max_steps < 1:
        raise ValueError(f"--max_steps: a stream has no end, expected the number of steps, got {args.max_steps}.")
    return StreamReader(dataset)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
