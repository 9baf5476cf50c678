"""Training arguments: those of `Seq2SeqTrainingArguments`, and the paper's (arXiv 2311.00430, Table 15)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_distil_whisper.training.fused_loss import DEFAULT_CHUNK_SIZE
from hf_distil_whisper.training.lora import lora_settings

TEACHER_CACHES = ("none", "encoder", "logits", "both")
CACHES_OF_STATES, CACHES_OF_LOGITS = ("encoder", "both"), ("logits", "both")
_ERRORS = ("wer", "cer", "kl", "pl", "mse")
_RUN_FILES = ("config.json", "model.safetensors", "trainer_state.json", "checkpoint-*")


def _argument(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DistillationTrainingArguments(Seq2SeqTrainingArguments):
    """Arguments of [`DistillationTrainer`]; all of `Seq2SeqTrainingArguments` apply too.

    The inherited defaults are the paper's as well: linear schedule, gradients clipped to norm 1.0, AdamW with betas
    0.9 and 0.999, epsilon 1e-8, no weight decay. Batch size, steps, learning rate and precision depend on the scale
    and are set by the recipes. Three defaults differ from transformers': `predict_with_generate` is on, so that
    evaluation logs a WER; `remove_unused_columns` and `ddp_find_unused_parameters` are off.

    Args:
        > Model

        freeze_encoder (`bool`, *optional*, defaults to `True`): do not train the encoder. It runs once per batch for
            student and teacher if their encoders are equal.
        freeze_embed_positions (`bool`, *optional*, defaults to `False`): do not train the decoder's position
            embeddings.
        freeze_embed_tokens (`bool`, *optional*, defaults to `False`): do not train the token embeddings, which are
            also the language-model head. From a few hours of speech a student learns faster without, and a step takes
            less time: most weights of a small decoder are embeddings.
        freeze_decoder (`bool`, *optional*, defaults to `False`): do not train the decoder, except for the token
            embeddings, which are also the language-model head.
        lora (`dict`, *optional*): train LoRA adapters beside the frozen weights; see [`LoraSettings`] for the keys, an
            empty dictionary takes the defaults. Checkpoints hold only the adapters; a saved or pushed student is
            complete, with the adapter in its folder `adapter`.

        > Data

        language (`str`, *optional*): of labels, evaluation and WER, for multilingual models.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate", for multilingual models.
        timestamp_probability (`float`, *optional*, defaults to 0.5): share of samples with timestamps (Table 15).
        condition_on_prev_probability (`float`, *optional*, defaults to 0.2): share of samples prompted with the
            previous text, as for the published distil-large-v3.
        normalizer (`str`, *optional*): language of the text normaliser for WER, or "basic"; by default `language`.

        > Objective

        kl_weight (`float`, *optional*, defaults to 0.8): weight of the KL divergence from the teacher (equation 12).
        pl_weight (`float`, *optional*, defaults to 1.0): weight of the cross-entropy with the pseudo-labels (equation
            12).
        mse_weight (`float`, *optional*, defaults to 0.0): weight of the distance between decoder hidden states
            (equation 10), which gained nothing in the paper (Table 21). Needs a student as wide as the teacher.
        temperature (`float`, *optional*, defaults to 2.0): softens both distributions of the KL divergence in
            training; evaluation uses 1.
        loss_chunk_size (`int`, *optional*, defaults to 256): tokens whose logits are in memory at once.

        > Cache

        teacher_cache (`str`, *optional*, defaults to `"none"`): "encoder" stores the frozen encoder's hidden states of
            all training rows, so that it runs once per row instead of once per row and epoch; "logits" what the
            teacher's logits are computed from, the last hidden states of its decoder, of all label variants that will
            be drawn, so that the teacher does not run during training; "both" both. With `mse_weight` above 0,
            "logits" and "both" also store the decoder layers that are compared with the student's.
        teacher_cache_dir (`str`, *optional*): folder on a local disk, shared by runs with the same models and rows; by
            default the cache is in memory. It is filled in batches of `per_device_eval_batch_size`.

        > Evaluation

        early_stopping_patience (`int`, *optional*): evaluations without a better `metric_for_best_model` after which
            training ends.
        early_stopping_threshold (`float`, *optional*, defaults to 0.0): minimum improvement of the metric.

    Raises:
        ValueError: on values, or combinations of them, without meaning; names the flag, what was expected and what
            came.

    Example:
        ```python
        args = DistillationTrainingArguments(output_dir="student", learning_rate=1e-4, max_steps=5000, bf16=True)
        ```
    """

    # Model
    freeze_encoder: bool = _argument(True, "Do not train the encoder, which then runs once per batch for both models.")
    freeze_embed_positions: bool = _argument(False, "Do not train the decoder's position embeddings.")
    freeze_embed_tokens: bool = _argument(False, "Do not train the token embeddings, which are also the head.")
    freeze_decoder: bool = _argument(False, "Do not train the decoder, except for the token embeddings.")
    lora: dict | str | None = field(
        default=None,
        metadata={"help": "Train LoRA adapters only: {r, alpha, dropout, target_modules, encoder}; {} for defaults."},
    )
    # Data
    language: str | None = _argument(None, "Language of labels and evaluation; multilingual models only.")
    task: str = _argument("transcribe", "'transcribe' or 'translate'; multilingual models only.")
    timestamp_probability: float = _argument(0.5, "Share of samples labelled with timestamps (Table 15).")
    condition_on_prev_probability: float = _argument(
        0.2, "Share of samples prompted with the previous text, as for distil-large-v3."
    )
    normalizer: str | None = _argument(None, "Language of the text normaliser for WER, or 'basic'. Default: language.")
    # Objective
    kl_weight: float = _argument(0.8, "Weight of the KL divergence from the teacher (equation 12).")
    pl_weight: float = _argument(1.0, "Weight of the cross-entropy with the pseudo-labels (equation 12).")
    mse_weight: float = _argument(0.0, "Weight of the distance between decoder hidden states (equation 10).")
    temperature: float = _argument(2.0, "Temperature of the KL divergence in training; evaluation uses 1.")
    loss_chunk_size: int = _argument(DEFAULT_CHUNK_SIZE, "Tokens whose logits are in memory at once.")
    # Cache
    teacher_cache: str = _argument(
        "none",
        "Compute once per row: 'encoder' hidden states, the teacher's 'logits' (for MSE also its layers), 'both' or "
        "'none'.",
    )
    teacher_cache_dir: str | None = _argument(None, "Local folder of the teacher cache. Default: in memory.")
    # Evaluation
    early_stopping_patience: int | None = _argument(
        None, "Evaluations without a better metric_for_best_model after which training ends."
    )
    early_stopping_threshold: float = _argument(0.0, "Minimum improvement of metric_for_best_model.")
    # Other defaults than transformers'
    greater_is_better: bool | None = _argument(
        None, "Whether a larger metric_for_best_model is better. Default: false for error rates and losses."
    )
    predict_with_generate: bool = _argument(True, "Generate transcripts in evaluation and log their WER.")
    remove_unused_columns: bool | None = _argument(
        False, "Remove columns before the collator, which picks what the models read itself."
    )
    ddp_find_unused_parameters: bool | None = _argument(
        False, "Search for parameters without gradient; all trained weights take part in every step."
    )

    def __post_init__(self) -> None:
        if str(self.teacher_cache).lower() in ("false", "off"):  # YAML 1.1 reads `off` as False
            self.teacher_cache = "none"
        if self.generation_config is not None:
            raise ValueError(
                "--generation_config would replace the student's, with its language and timestamp tokens, in every "
                "checkpoint. Evaluation takes --generation_max_length and --generation_num_beams, and suppressed "
                "tokens from the student's own generation_config.json: change them there."
            )
        self._check_objective()
        self._check_data()
        self._check_cache()
        if self.lora is not None:
            self.lora = self._checked_lora(self.lora)
        if (self.metric_for_best_model or "").endswith(_ERRORS):
            # Left at None, transformers takes the metric for an accuracy and keeps the model with the most errors.
            self.greater_is_better = bool(self.greater_is_better)
        super().__post_init__()
        if self.early_stopping_patience is not None:
            self._check_early_stopping(self.early_stopping_patience)

    def _check_objective(self) -> None:
        weights = {name: getattr(self, name) for name in ("kl_weight", "pl_weight", "mse_weight")}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"--{name}: expected 0 or more, got {weight}.")
        if not any(weights.values()):
            raise ValueError("--kl_weight, --pl_weight and --mse_weight are all 0: there is nothing to learn from.")
        if self.freeze_encoder and self.freeze_decoder and self.freeze_embed_tokens:
            raise ValueError(
                "--freeze_encoder, --freeze_decoder and --freeze_embed_tokens are all on: nothing would be trained. "
                "Leave one out."
            )
        if self.temperature <= 0:
            raise ValueError(f"--temperature: expected a number above 0 (2 in the paper), got {self.temperature}.")
        if self.loss_chunk_size < 1:
            raise ValueError(f"--loss_chunk_size: expected at least 1 token, got {self.loss_chunk_size}.")
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"--label_smoothing_factor: expected 0, got {self.label_smoothing_factor}. The teacher's distribution "
                "replaces it; lower --pl_weight to trust the labels less."
            )

    def _check_data(self) -> None:
        for name in ("timestamp_probability", "condition_on_prev_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name}: expected a probability from 0 to 1, got {getattr(self, name)}.")
        if self.task not in ("transcribe", "translate"):
            raise ValueError(f"--task: expected 'transcribe' or 'translate', got {self.task!r}.")

    def _check_cache(self) -> None:
        cache = f"--teacher_cache {self.teacher_cache}"
        if self.teacher_cache not in TEACHER_CACHES:
            raise ValueError(
                f"--teacher_cache: expected one of {', '.join(TEACHER_CACHES)}, got {self.teacher_cache!r}."
            )
        if self.teacher_cache in CACHES_OF_STATES and not self.freeze_encoder:
            raise ValueError(
                f"{cache} stores the hidden states of a frozen encoder, but --freeze_encoder is off: they would be "
                "out of date after one step. Freeze the encoder, or set --teacher_cache none."
            )
        if self.teacher_cache in CACHES_OF_LOGITS and self.kl_weight == self.mse_weight == 0:
            raise ValueError(
                f"{cache} stores the teacher's decoder states, but --kl_weight and --mse_weight are 0: nothing would "
                "be learned from them. Raise one, or set --teacher_cache encoder."
            )
        if self.teacher_cache_dir is not None and self.teacher_cache == "none":
            raise ValueError(
                f"--teacher_cache_dir is {self.teacher_cache_dir}, but --teacher_cache is none: nothing would be "
                "stored there. Set --teacher_cache to encoder, logits or both, or --teacher_cache_dir null."
            )

    def _checked_lora(self, lora: dict | str) -> dict:
        values = yaml.safe_load(lora) if isinstance(lora, str) else lora
        if not isinstance(values, dict):
            raise ValueError(f"--lora: expected a mapping such as {{r: 32}}, got {lora!r}.")
        encoder = lora_settings(values).encoder
        if encoder == self.freeze_encoder:
            raise ValueError(
                f"--lora.encoder is {str(encoder).lower()} and --freeze_encoder {str(self.freeze_encoder).lower()}: "
                "with adapters on the encoder it is trained, without them it is frozen. Set one of them."
            )
        if self.freeze_decoder and not encoder:
            raise ValueError("--lora puts its adapters on the decoder, but --freeze_decoder is on. Leave one out.")
        return values

    def _check_early_stopping(self, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"--early_stopping_patience: expected at least 1 evaluation, got {patience}.")
        if self.eval_strategy == "no" or self.metric_for_best_model is None:
            raise ValueError(
                "--early_stopping_patience needs evaluations: set --eval_strategy to steps or epoch, and "
                "--metric_for_best_model, for example to macro_wer."
            )


def check_output_dir(output_dir: str | Path, resume_from_checkpoint: str | bool | None = None) -> str | None:
    """Checks that a run neither overwrites another one nor resumes from nothing.

    Args:
        output_dir (`str` or `Path`): output folder of the run.
        resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint's folder, or `True` for the last one in
            `output_dir`.

    Returns:
        `str`, *optional*: the checkpoint to resume from, None for a new run.

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
                f"{last or folder}, there is none. Name such a folder, or leave the flag out to start a new run."
            )
        return last
    if folder.is_file():
        raise ValueError(f"--output_dir: expected a folder, {folder} is a file. Choose another one.")
    if folder.is_dir() and any(folder.iterdir()):
        run = [path.name for pattern in _RUN_FILES for path in sorted(folder.glob(pattern))]
        names = run or sorted(path.name for path in folder.iterdir())
        raise ValueError(
            f"--output_dir: {folder} holds {'another run' if run else 'files'} ({', '.join(names[:3])}), which would "
            "be overwritten. Choose an empty folder, or continue that run with --resume_from_checkpoint true."
        )
    return None
