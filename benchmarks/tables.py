"""Tables, the rates and names in them, and result files."""

import json
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` are aligned to the right."""
    rule = "---|" * left + "---:|" * (len(heads) - left)
    return "\n".join([f"| {' | '.join(heads)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)])


class Timed:
    """Rates of work that was timed several times; its rows name the two fields among their own."""

    seconds: tuple[float, ...]  # of work on all recordings, one entry per repetition
    audio_seconds: float  # length of the recordings, without padding and the overlap of chunks

    @property
    def median(self) -> float:
        """Seconds of work on all recordings, median over the repetitions."""
        return statistics.median(self.seconds)

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of audio; smaller is faster."""
        return self.median / self.audio_seconds


def save_json(file: str | Path, content: Any) -> None:
    """Writes results; makes the folder."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Names of models and files for a table: the shortest end of each path that no other path has.

    `runs/tiny` and `noise/pub.flac` are "tiny" and "pub", `runs/a/student` and `runs/b/student` are "a/student" and
    "b/student". A path that is the end of another one stays whole.
    """
    ends = {path: _path_ends(path) for path in paths}
    number = Counter(end for ends_of_path in ends.values() for end in ends_of_path)
    return {next((end for end in ends[path] if number[end] == 1), path): path for path in ends}


def _path_ends(name: str) -> list[str]:
    """The last part of a path, the last two, and so on up to the whole; a file's without its suffix."""
    path = Path(name)
    parts = (path.with_suffix("") if path.is_file() else path).parts
    return [str(Path(*parts[start:])) for start in reversed(range(len(parts)))]


def machine() -> str:
    """The machine that figures are measured on, for example `"NVIDIA H200 (AVX512), 16 threads, torch 2.13.0"`."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} processor"
    level = torch.backends.cpu.get_cpu_capability()
    return f"{device} ({level}), {torch.get_num_threads()} threads, torch {torch.__version__}"
