"""LoRA on a student: small matrices beside frozen ones are trained, checkpoints hold only them (arXiv 2106.09685).

Knows a student's modules and peft; when to save and to load is the trainer's business.
"""

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig, LoraModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

ADAPTER_FOLDER = "adapter"
"""Beside a complete student, whose own folder must not look like an adapter's."""
_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
"""What peft's own wrapper puts before the name of every weight in a file."""


@dataclass(frozen=True)
class LoraSettings:
    """Where adapters are put, and how large they are: the keys under `lora` in a recipe.

    Args:
        r (`int`, *optional*, defaults to 32): rank of the added matrices.
        alpha (`float`, *optional*, defaults to 64): they are scaled by alpha / r.
        dropout (`float`, *optional*, defaults to 0.0): of their inputs.
        target_modules (`tuple[str, ...]`, *optional*): names of the linear layers; by default all of a layer.
        encoder (`bool`, *optional*, defaults to `False`): put adapters on the encoder too, for example one that was
            cut. Needs `freeze_encoder` off.
    """

    r: int = 32
    alpha: float = 64
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    encoder: bool = False


def lora_settings(given: dict[str, Any]) -> LoraSettings:
    """Reads the keys under `lora`.

    Args:
        given (`dict[str, Any]`): those that differ from the defaults.

    Raises:
        ValueError: names the key, what was expected and what came.
    """
    names = [item.name for item in fields(LoraSettings)]
    for name in given:
        if name not in names:
            raise ValueError(f"--lora: unknown key {name!r}, expected {', '.join(names)}.")
    settings = LoraSettings(**{**given, "target_modules": _names(given.get("target_modules"))})
    for name, value, least in (("r", settings.r, 1), ("alpha", settings.alpha, 0), ("dropout", settings.dropout, 0)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
            raise ValueError(f"--lora.{name}: expected a number of at least {least}, got {value!r}.")
    if not isinstance(settings.r, int):
        raise ValueError(f"--lora.r: expected a whole number, got {settings.r!r}.")
    if settings.dropout >= 1:
        raise ValueError(f"--lora.dropout: expected a share below 1, got {settings.dropout}.")
    return settings


def _names(given: Any) -> tuple[str, ...]:
    known = LoraSettings.target_modules
    names = known if given is None else (given,) if isinstance(given, str) else tuple(given)
    if not names or set(names) - set(known):
        raise ValueError(f"--lora.target_modules: expected some of {', '.join(known)}, got {given!r}.")
    return names


class LoraStudent:
    """A student with adapters, which are the only weights that are trained.

    Args:
        student (`WhisperForConditionalGeneration`): gets the adapters, and loses the gradients of all else.
        settings ([`LoraSettings`]): where and how large.
        with_decoder (`bool`, *optional*, defaults to `True`): `False` leaves the decoder alone.
    """

    def __init__(self, student: WhisperForConditionalGeneration, settings: LoraSettings, with_decoder: bool = True):
        parts = ["decoder"] * with_decoder + ["encoder"] * settings.encoder
        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=rf"model\.({'|'.join(parts)})\.layers\..*\.({'|'.join(settings.target_modules)})",
            base_model_name_or_path=student.name_or_path or None,
        )
        self.student, self.config = student, config
        self._tuner = LoraModel(student, config, "default")

    def save(self, folder: str | Path) -> None:
        """Writes the adapter into the folder `adapter` there, as `peft.PeftModel.from_pretrained` reads it."""
        place = Path(folder, ADAPTER_FOLDER)
        place.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(self.student, save_embedding_layers=False)
        named = {_PEFT_PREFIX + name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
        save_file(named, place / _WEIGHTS, metadata={"format": "pt"})
        self.config.save_pretrained(str(place))

    def load(self, folder: str | Path) -> None:
        """Takes the weights that [`save`] has written.

        Raises:
            ValueError: where there are none, or those of other adapters.
        """
        file = Path(folder, ADAPTER_FOLDER, _WEIGHTS)
        if not file.is_file():
            raise ValueError(
                f"{folder}: expected {ADAPTER_FOLDER}/{_WEIGHTS}, the checkpoint of a training with --lora. Resume "
                "from one, or leave --lora out."
            )
        found = {name.removeprefix(_PEFT_PREFIX): weight for name, weight in load_file(file).items()}
        there = get_peft_model_state_dict(self.student, save_embedding_layers=False)
        shapes = {name: tuple(weight.shape) for name, weight in there.items()}
        if shapes != {name: tuple(weight.shape) for name, weight in found.items()}:
            raise ValueError(f"{file}: adapters of other places or sizes. Resume with the same settings of --lora.")
        set_peft_model_state_dict(self.student, found)

    def save_merged(self, folder: str | Path) -> None:
        """Writes a complete student, the adapters added to its weights; the one in training stays as it is."""
        copy.deepcopy(self._tuner).merge_and_unload(safe_merge=True).save_pretrained(str(folder))


def lora_student(student: WhisperForConditionalGeneration, lora: Any, with_decoder: bool = True) -> LoraStudent | None:
    """Puts adapters on a student where the settings of a training ask for them.

    Args:
        student (`WhisperForConditionalGeneration`): to train.
        lora (`dict`, *optional*): as [`lora_settings`] takes it; None for none.
        with_decoder (`bool`, *optional*, defaults to `True`): `False` leaves the decoder alone.
    """
    return None if lora is None else LoraStudent(student, lora_settings(lora), with_decoder)
