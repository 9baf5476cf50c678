"""LoRA for a student: trains adapters beside its frozen weights, and saves only them (arXiv 2106.09685)."""

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig, LoraModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

ADAPTER_FOLDER = "adapter"
"""Inside the folder of a complete student, which must not look like an adapter's itself."""
_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
"""Of every weight's name in a file, as peft's wrapper writes it."""


@dataclass(frozen=True)
class LoraSettings:
    """The keys under `lora` in a recipe.

    Args:
        r (`int`, *optional*, defaults to 32): rank of the adapters.
        alpha (`float`, *optional*, defaults to 64): adapters are scaled by alpha / r.
        dropout (`float`, *optional*, defaults to 0.0): of their inputs.
        target_modules (`tuple[str, ...]`, *optional*): names of the linear layers; by default all of a layer.
        encoder (`bool`, *optional*, defaults to `False`): put adapters on the encoder too, for example one with fewer
            layers than the teacher's. Needs `freeze_encoder` off.
    """

    r: int = 32
    alpha: float = 64
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    encoder: bool = False


def lora_settings(values: dict[str, Any]) -> LoraSettings:
    """Checks the keys under `lora`; those left out get their defaults.

    Raises:
        ValueError: names the key, what was expected and what came.
    """
    names = [item.name for item in fields(LoraSettings)]
    if unknown := [name for name in values if name not in names]:
        raise ValueError(f"--lora: unknown key {unknown[0]!r}, expected {', '.join(names)}.")
    modules, known = values.get("target_modules"), LoraSettings.target_modules
    targets = known if modules is None else (modules,) if isinstance(modules, str) else tuple(modules)
    if not targets or set(targets) - set(known):
        raise ValueError(f"--lora.target_modules: expected some of {', '.join(known)}, got {modules!r}.")
    settings = LoraSettings(**{**values, "target_modules": targets})
    for name, value, least in (("r", settings.r, 1), ("alpha", settings.alpha, 0), ("dropout", settings.dropout, 0)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
            raise ValueError(f"--lora.{name}: expected a number of at least {least}, got {value!r}.")
    if not isinstance(settings.r, int):
        raise ValueError(f"--lora.r: expected a whole number, got {settings.r!r}.")
    if settings.dropout >= 1:
        raise ValueError(f"--lora.dropout: expected a share below 1, got {settings.dropout}.")
    return settings


class LoraStudent:
    """A student whose adapters are the only weights that are trained.

    Args:
        student (`WhisperForConditionalGeneration`): gets the adapters; all its other weights are frozen.
        settings ([`LoraSettings`]): where the adapters are, and how large.
        with_decoder (`bool`, *optional*, defaults to `True`): put adapters on the decoder.
    """

    def __init__(self, student: WhisperForConditionalGeneration, settings: LoraSettings, with_decoder: bool = True):
        # A pattern: a list of names would put adapters on the frozen encoder too. Without `task_type`: of an adapter
        # for SEQ_2_SEQ_LM, peft makes a model that cannot run Whisper's forward.
        stacks = ["decoder"] * with_decoder + ["encoder"] * settings.encoder
        self.student = student
        self.config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=rf"model\.({'|'.join(stacks)})\.layers\..*\.({'|'.join(settings.target_modules)})",
            base_model_name_or_path=student.name_or_path or None,
        )
        self._tuner = LoraModel(student, self.config, "default")

    def save(self, folder: str | Path) -> None:
        """Writes the adapter into the subfolder `adapter`, as `peft.PeftModel.from_pretrained` reads it."""
        target = Path(folder, ADAPTER_FOLDER)
        target.mkdir(parents=True, exist_ok=True)
        weights = {_PEFT_PREFIX + name: weight.detach().cpu().contiguous() for name, weight in self._weights().items()}
        save_file(weights, target / _WEIGHTS, metadata={"format": "pt"})
        self.config.save_pretrained(str(target))

    def load(self, folder: str | Path) -> None:
        """Loads the adapter that [`save`] wrote; a `ValueError` if there is none, or one of another shape."""
        file = Path(folder, ADAPTER_FOLDER, _WEIGHTS)
        if not file.is_file():
            raise ValueError(
                f"{folder}: expected {ADAPTER_FOLDER}/{_WEIGHTS}, the checkpoint of a training with --lora. Resume "
                "from one, or leave --lora out."
            )
        weights = {name.removeprefix(_PEFT_PREFIX): weight for name, weight in load_file(file).items()}
        if _shapes(weights) != _shapes(self._weights()):
            raise ValueError(
                f"{file}: adapters on other modules or of another rank. Resume with the same settings of --lora."
            )
        set_peft_model_state_dict(self.student, weights)

    def save_merged(self, folder: str | Path) -> None:
        """Writes a complete student, the adapters merged into its weights; the one in training is not changed."""
        copy.deepcopy(self._tuner).merge_and_unload(safe_merge=True).save_pretrained(str(folder))

    def _weights(self) -> dict[str, Any]:
        return get_peft_model_state_dict(self.student, save_embedding_layers=False)


def _shapes(weights: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
