"""`DistillationTrainer`: a `Seq2SeqTrainer` whose student learns from a Whisper teacher (arXiv 2311.00430, section 4).

Knows both models and one batch at a time: who runs which encoder, what is lost, logged and saved. The formulas are in
`losses`, the data in `data`. The notes on upstream behaviour refer to transformers 5.
"""

from collections.abc import Callable, Sized
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqModelOutput
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from hf_distil_whisper.checkpoints import check_compatible, save_generation_config, save_processor
from hf_distil_whisper.data.collator import TEACHER_ARRAYS, DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.inference.encoder_cache import encode
from hf_distil_whisper.training.batch_losses import batch_losses, check_finite, row_losses
from hf_distil_whisper.training.callbacks import KeepTokenIdsCallback, early_stopping
from hf_distil_whisper.training.chunk_length import chunk_length_callbacks
from hf_distil_whisper.training.fused_loss import TopKLogits
from hf_distil_whisper.training.lora import lora_student
from hf_distil_whisper.training.losses import IGNORE_INDEX
from hf_distil_whisper.training.pairing import TeacherOutput, as_forward, check_pair, freeze, same_encoder
from hf_distil_whisper.training.pushing import PushingTrainer
from hf_distil_whisper.training.sampling import check_mixture, epoch_sampler, mixture_callbacks
from hf_distil_whisper.training.step_log import StepLog
from hf_distil_whisper.training.streaming import stream_reader
from hf_distil_whisper.training.teacher_cache import CacheSettings, TeacherCacheDataset, cache_settings
from hf_distil_whisper.training.training_args import DistillationTrainingArguments
from hf_distil_whisper.training.validation import (
    PARTS,
    LossSums,
    check_evaluation,
    default_metrics,
    generate_tokens_of,
)

_MIXED_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
        self.settle_pushes(self._lora.save_merged if self._lora is not None else None)
        self.teacher_model = teacher_model
        self._settle_teacher()
        self._step_log = StepLog(args.device)
        self._gap_epoch = -1
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
            epoch_rows = min(len(rows), len(getattr(rows, "mixture", None) or rows))
            settings = cache_settings(len(rows), epoch_rows, self.model.config, dtype, self.args)
            self.train_dataset = rows if settings is None else self._fill_teacher_cache(settings)
        return super().get_train_dataloader()

    def _fill_teacher_cache(self, settings: CacheSettings) -> TeacherCacheDataset:
        args = self.args
        with self.compute_loss_context_manager():
            cached = TeacherCacheDataset(
                self.train_dataset,
                self.model,
                self.teacher_model,
                settings,
                self.data_collator,
                shares_encoder=self.shares_encoder,
                batch_size=args.per_device_eval_batch_size,
                num_workers=args.dataloader_num_workers,
                part=(self.accelerator.process_index, self.accelerator.num_processes),
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
        if teacher.kept is not None and self.model.training:
            self._measure_gap(inputs, states)
        loss, parts = loss * scale, parts * scale
        if self.model.training:
            self._step_log.add(parts, ends_step=self.accelerator.sync_gradients)
        return (loss, dict(zip(PARTS, parts, strict=True))) if return_outputs else loss

    def _freeze_modes(self) -> None:
        """No dropout in frozen parts: upstream puts the whole student in train mode at every step."""
        for part in self._frozen_parts:
            part.eval()

    def _measure_gap(self, inputs: dict[str, Tensor], states: Tensor | None) -> None:
        """How far the KL of the cache lies below the teacher's own, on the first batch of every epoch."""
        epoch = int(self.state.epoch or 0)
        heard = states is not None if self.shares_encoder else "input_features" in inputs
        if epoch == self._gap_epoch or self.teacher_model is None or not heard:
            return
        self._gap_epoch = epoch
        asked = {name: value for name, value in inputs.items() if name not in TEACHER_ARRAYS}
        self.model.eval()  # with dropout, the two would differ by chance
        with torch.no_grad():
            student = self._run_student(inputs, states)
            head, labels = self.model.proj_out.weight, inputs["labels"]
            exact, kept = (
                batch_losses(student, head, self._run_teacher(given, states), labels, self.args)[1][0]
                for given in (asked, inputs)
            )
        self.model.train()
        self._freeze_modes()
        self._step_log.note(kl_gap=((exact - kept) / (labels != IGNORE_INDEX).sum().clamp(min=1)).item())

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
