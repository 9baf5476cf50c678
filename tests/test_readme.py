"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest

from inputs import LoadedModel

ROOT = Path(__file__).parents[1]


@pytest.mark.real
def test_the_python_of_the_readme_runs_in_order(
    tiny_en: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """A renamed function would break every newcomer's first try, and no other test reads the README."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/teacher").symlink_to(request.config.cache.mkdir("whisper") / "tiny.en")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "runs/readme/student/model.safetensors").exists()
    alone = names["transcribe"](names["teacher"], names["processor"], names["audio"])[0].text
    assert alone in capsys.readouterr().out.splitlines(), (
        "the assisted teacher printed another text than it writes alone"
    )


def test_every_path_that_the_readme_names_is_there() -> None:
    """A moved file leaves a dead link."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:src|configs|examples|docs|tests)/[\w./-]*)`", text) + re.findall(
        r"\]\(([\w./-]+)\)", text
    )
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert paths
    assert not missing
