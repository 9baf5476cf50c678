"""Settings of sequential long form that commands share: when a window is transcribed again."""

from dataclasses import field, fields
from typing import Any

from hf_distil_whisper.cli.plans import Plan
from hf_distil_whisper.cli.recipes import InputError, nearest, parse_yaml
from hf_distil_whisper.inference.sequential import TemperatureFallback


def fallback_setting() -> Any:
    """Field of an arguments dataclass for [`as_fallback`]; the flag alone stands for true."""
    text = "Sequential only: repeat unlikely windows; true, or thresholds such as {logprob_threshold: -0.8}."
    return field(default=None, metadata={"help": text, "nargs": "?", "const": "true"})


def as_fallback(value: Any) -> bool | TemperatureFallback:
    """Reads `temperature_fallback` from what a recipe or flag gives.

    Args:
        value (`bool`, `str`, `dict` or [`TemperatureFallback`], *optional*): true, false, or a mapping of its fields,
            or the YAML text of one of these.

    Raises:
        InputError: on an unknown key, or a value of the wrong type.
    """
    flag = "--temperature_fallback"
    value = parse_yaml(value) if isinstance(value, str) else value
    if value is None or isinstance(value, bool | TemperatureFallback):
        return value or False
    names = [item.name for item in fields(TemperatureFallback)]
    if not isinstance(value, dict):
        raise InputError(f"{flag}: expected true, false or a mapping with {', '.join(names)}, got {value!r}")
    settings = dict(value)
    for name, number in value.items():
        if name not in names:
            raise InputError(f"{flag}: unknown key {name!r}{nearest(str(name), names)}. Keys: {', '.join(names)}")
        if name == "temperatures":
            settings[name] = numbers = tuple(number if isinstance(number, list) else [number])
            if not all(isinstance(one, int | float) for one in numbers):
                raise InputError(f"{flag}.{name}: expected numbers such as [0.0, 0.4, 0.8], got {number!r}")
        elif number is not None and not isinstance(number, int | float):
            raise InputError(f"{flag}.{name}: expected a number or null, got {number!r}")
    try:
        return TemperatureFallback(**settings)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error


def check_method(plan: Plan, method: str, flag: str, chunked: dict[str, Any], sequential: dict[str, Any]) -> None:
    """Notes settings that the chosen algorithm of long form would not read.

    Args:
        plan (`Plan`): takes the problems.
        method (`str`): "chunked" or "sequential".
        flag (`str`): that chooses it.
        chunked (`dict[str, Any]`): settings of the one by name; what is None or False was not given.
        sequential (`dict[str, Any]`): of the other.
    """
    other, settings = ("sequential", sequential) if method == "chunked" else ("chunked", chunked)
    for name, value in settings.items():
        if value is not None and value is not False:
            plan.problems.append(f"--{name}: belongs to --{flag} {other}, but it is {method}. Leave one of them out")
