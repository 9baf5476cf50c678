"""Settings of a distillation: those of `Seq2SeqTrainingArguments` and the paper's (arXiv 2311.00430, Table 15).

Knows which values make sense together; what they do is known by the trainer. Defaults are the paper's where they do
not depend on scale: batch size, steps, learning rate and precision stand in the recipes.
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_distil_whisper.training.fused_loss import DEFAULT_CHUNK_SIZE
from hf_distil_whisper.training.lora import lora_settings

TEACHER_CACHES = ("none", "encoder", "logits", "both")
CACHES_OF_STATES, CACHES_OF_LOGITS = ("encoder", "both"), ("logits", "both")
_ERRORS = ("wer", "cer", "kl", "pl", "mse")
_RUN_FILES = ("config.json", "model.safetensors", "trainer_state.json", "checkpoint-*")


@dataclass
class DistillationTrainingArguments(Seq2SeqTrainingArguments):
    """Settings of [`DistillationTrainer`]; all of `Seq2SeqTrainingArguments` apply too.

    The inherited defaults are the paper's as well: linear schedule, gradients clipped to norm 1.0, AdamW with betas
    0.9 and 0.999, epsilon 1e-8, no weight decay. Three differ from transformers': `predict_with_generate` is on, so
    that evaluation logs a WER, `remove_unused_columns` and `ddp_find_unused_parameters` are off.

    Args:
        kl_weight (`float`, *optional*, defaults to 0.8): of the KL divergence from the teacher (equation 12).
        pl_weight (`float`, *optional*, defaults to 1.0): of the cross-entropy with the pseudo-labels (equation 12).
        mse_weight (`float`, *optional*, defaults to 0.0): of the distance between decoder states (equation 10); found
            to gain nothing (Table 21). Needs a student as wide as the teacher.
        temperature (`float`, *optional*, defaults to 2.0): softens both distributions of the KL divergence in
            training; evaluation uses 1.
        freeze_encoder (`bool`, *optional*, defaults to `True`): the encoder keeps its weights and runs once per batch,
            for student and teacher if their encoders are equal.
        freeze_embed_positions (`bool`, *optional*, defaults to `False`): the decoder's positions keep their weights.
        freeze_decoder (`bool`, *optional*, defaults to `False`): the decoder keeps its weights, except for the token
            embeddings, which are also the language-model head.
        loss_chunk_size (`int`, *optional*, defaults to 256): tokens whose logits are held at once.
        teacher_cache (`str`, *optional*, defaults to `"none"`): "encoder" keeps the frozen encoder's states of all
            training rows, so that it runs once per row instead of once per row and epoch; "logits" the teacher's
            likeliest tokens of all variants that a row can be drawn as, so that it runs no more while training, with
            a KL that is a bound from below of the exact one; "both" both.
        teacher_cache_dir (`str`, *optional*): folder on a local disk for what is kept, so that other runs with the
            same models and rows find it; by default it is in memory. It is filled in batches of
            `per_device_eval_batch_size`.
        teacher_cache_top_k (`int`, *optional*, defaults to 64): tokens of the vocabulary that are kept for "logits".
        lora (`dict`, *optional*): trains small matrices beside the student's frozen ones (see [`LoraSettings`] for the
            keys; an empty one takes the defaults). Checkpoints hold only those; a saved or pushed student is complete,
            with the adapter in its folder `adapter`.
        timestamp_probability (`float`, *optional*, defaults to 0.5): share of samples with timestamps (Table 15).
        condition_on_prev_probability (`float`, *optional*, defaults to 0.2): share of samples prompted with the
            previous text, as for the published distil-large-v3.
        language (`str`, *optional*): of labels, evaluation and WER, for multilingual models.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate", for multilingual models.
        normalizer (`str`, *optional*): language of the text normaliser for WER, or "basic"; by default `language`.
        early_stopping_patience (`int`, *optional*): evaluations without a better `metric_for_best_model` after which
            training ends.
        early_stopping_threshold (`float`, *optional*, defaults to 0.0): how much better it has to be.

    Example:
        ```python
        args = DistillationTrainingArguments(output_dir="student", learning_rate=1e-4, max_steps=5000, bf16=True)
        ```
    """

    kl_weight: float = field(default=0.8, metadata={"help": "Weight of the KL divergence from the teacher (eq. 12)."})
    pl_weight: float = field(default=1.0, metadata={"help": "Weight of the pseudo-label cross-entropy (eq. 12)."})
    mse_weight: float = field(default=0.0, metadata={"help": "Weight of the hidden-state distance (eq. 10)."})
    temperature: float = field(default=2.0, metadata={"help": "Of the KL divergence in training; 1 in evaluation."})
    freeze_encoder: bool = field(default=True, metadata={"help": "Keep the encoder's weights; run it once per batch."})
    freeze_embed_positions: bool = field(default=False, metadata={"help": "Keep the decoder's positions."})
    freeze_decoder: bool = field(default=False, metadata={"help": "Keep the decoder but for the token embeddings."})
    loss_chunk_size: int = field(
        default=DEFAULT_CHUNK_SIZE, metadata={"help": "Tokens whose logits are held in memory at once."}
    )
    teacher_cache: str = field(
        default="none",
        metadata={
            "help": "What is computed once and kept: 'encoder' states, the teacher's 'logits', 'both' or 'none'."
        },
    )
    teacher_cache_dir: str | None = field(
        default=None, metadata={"help": "Local folder for the teacher cache. Default: in memory."}
    )
    teacher_cache_top_k: int = field(
        default=64, metadata={"help": "Tokens kept of each of the teacher's distributions."}
    )
    lora: dict | str | None = field(
        default=None, metadata={"help": "Train adapters: {r, alpha, dropout, target_modules, encoder}."}
    )
    timestamp_probability: float = field(default=0.5, metadata={"help": "Share of samples with timestamps."})
    condition_on_prev_probability: float = field(
        default=0.2, metadata={"help": "Share of samples prompted with the previous text."}
    )
    language: str | None = field(
        default=None, metadata={"help": "Of labels and evaluation; multilingual models only."}
    )
    task: str = field(
        default="transcribe", metadata={"help": "'transcribe' or 'translate'; multilingual models only."}
    )
    normalizer: str | None = field(
        default=None, metadata={"help": "Language of the text normaliser for WER, or 'basic'. Default: language."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better metric_for_best_model before training ends."}
    )
    early_stopping_threshold: float = field(default=0.0, metadata={"help": "How much better it has to be."})
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Of metric_for_best_model. Default: false for error rates and losses."}
    )
    predict_with_generate: bool = field(default=True, metadata={"help": "Evaluate the WER of generated transcripts."})
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "The collator picks what the models read, so nothing is removed before it."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "All weights that are trained take part in every step."}
    )

    def __post_init__(self) -> None:
        """Checks the settings together.

        Raises:
            ValueError: names the flag, what was expected and what came.
        """
        if str(self.teacher_cache).lower() in ("false", "off"):  # YAML 1.1 reads `off` as False
            self.teacher_cache = "none"
        self._check_losses()
        self._check_rest()
        if (self.metric_for_best_model or "").endswith(_ERRORS):
            # None means False here; transformers would take it for True and keep the model with the most errors.
            self.greater_is_better = bool(self.greater_is_better)
        super().__post_init__()
        if self.early_stopping_patience is not None:
            self._check_early_stopping(self.early_stopping_patience)

    def _check_losses(self) -> None:
        weights = {name: getattr(self, name) for name in ("kl_weight", "pl_weight", "mse_weight")}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"--{name}: expected 0 or more, got {weight}.")
        if not any(weights.values()):
            raise ValueError("--kl_weight, --pl_weight and --mse_weight are all 0: there is nothing to learn from.")
        if self.temperature <= 0:
            raise ValueError(f"--temperature: expected a number above 0 (2 in the paper), got {self.temperature}.")
        if self.loss_chunk_size < 1:
            raise ValueError(f"--loss_chunk_size: expected at least 1 token, got {self.loss_chunk_size}.")
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"--label_smoothing_factor: expected 0, got {self.label_smoothing_factor}. The teacher's distribution "
                "takes its place; lower --pl_weight to trust the labels less."
            )

    def _check_rest(self) -> None:
        for name in ("timestamp_probability", "condition_on_prev_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name}: expected a probability from 0 to 1, got {getattr(self, name)}.")
        if self.teacher_cache not in TEACHER_CACHES:
            raise ValueError(
                f"--teacher_cache: expected one of {', '.join(TEACHER_CACHES)}, got {self.teacher_cache!r}."
            )
        self._check_cache()
        if self.lora is not None:
            self.lora = self._check_lora(self.lora)
        if self.task not in ("transcribe", "translate"):
            raise ValueError(f"--task: expected 'transcribe' or 'translate', got {self.task!r}.")

    def _check_cache(self) -> None:
        cache = f"--teacher_cache {self.teacher_cache}"
        if self.teacher_cache in CACHES_OF_STATES and not self.freeze_encoder:
            raise ValueError(
                f"{cache} keeps the states of a frozen encoder, but --freeze_encoder is off: they "
                "would be out of date after one step. Freeze the encoder, or set --teacher_cache none."
            )
        if self.teacher_cache in CACHES_OF_LOGITS:
            if self.kl_weight == 0:
                raise ValueError(
                    f"{cache} keeps the teacher's distributions, but --kl_weight is 0: nothing would be learned from "
                    "them. Raise it, or set --teacher_cache encoder."
                )
            if self.mse_weight > 0:
                raise ValueError(
                    f"{cache} keeps no hidden states of the teacher, but --mse_weight is {self.mse_weight}. Set it to "
                    "0, or set --teacher_cache encoder."
                )
        if self.teacher_cache_top_k < 1:
            raise ValueError(f"--teacher_cache_top_k: expected at least 1 token, got {self.teacher_cache_top_k}.")
        if self.teacher_cache_dir is not None and self.teacher_cache == "none":
            raise ValueError(
                f"--teacher_cache_dir is {self.teacher_cache_dir}, but --teacher_cache is none: nothing would be kept "
                "there. Set --teacher_cache to encoder, logits or both."
            )

    def _check_lora(self, lora: dict | str) -> dict:
        given = yaml.safe_load(lora) if isinstance(lora, str) else lora
        if not isinstance(given, dict):
            raise ValueError(f"--lora: expected a mapping such as {{r: 32}}, got {lora!r}.")
        encoder = lora_settings(given).encoder
        if encoder == self.freeze_encoder:
            raise ValueError(
                f"--lora.encoder is {str(encoder).lower()} and --freeze_encoder {str(self.freeze_encoder).lower()}: "
                "with adapters on the encoder it is trained, without them it is frozen. Set one of them."
            )
        if self.freeze_decoder and not encoder:
            raise ValueError("--lora puts its adapters on the decoder, but --freeze_decoder is on. Leave one out.")
        return given

    def _check_early_stopping(self, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"--early_stopping_patience: expected at least 1 evaluation, got {patience}.")
        if self.eval_strategy == "no" or self.metric_for_best_model is None:
            raise ValueError(
                "--early_stopping_patience watches an evaluation: set --eval_strategy to steps or epoch, and "
                "--metric_for_best_model, for example to macro_wer."
            )


def check_output_dir(output_dir: str | Path, resume_from_checkpoint: str | bool | None = None) -> str | None:
    """Makes sure that a run neither overwrites another one nor resumes from nothing.

    Args:
        output_dir (`str` or `Path`): where the run will write.
        resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint's folder, or `True` for the last one in
            `output_dir`.

    Returns:
        `str`, *optional*: the checkpoint's folder to resume from, None for a new run.

    Raises:
        ValueError: if the folder holds files and nothing is to be resumed, or if there is no checkpoint.
    """
    folder = Path(output_dir)
    if resume_from_checkpoint:
        if resume_from_checkpoint is True:
            last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        else:
            last = str(resume_from_checkpoint)
        if last is None or not (Path(last) / "trainer_state.json").is_file():
            raise ValueError(
                f"--resume_from_checkpoint: expected a folder checkpoint-<step> with a trainer_state.json in "
                f"{last or folder}, found none. Name such a folder, or leave the flag out to start anew."
            )
        return last
    if folder.is_file():
        raise ValueError(f"--output_dir: expected a folder, {folder} is a file. Choose another one.")
    if folder.is_dir() and any(folder.iterdir()):
        left = [path.name for pattern in _RUN_FILES for path in sorted(folder.glob(pattern))]
        found = left or sorted(path.name for path in folder.iterdir())
        raise ValueError(
            f"--output_dir: {folder} holds {'another run' if left else 'files'} ({', '.join(found[:3])}), which would "
            "be overwritten. Choose an empty folder, or go on with that run by --resume_from_checkpoint true."
        )
    return None
