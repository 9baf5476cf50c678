"""Word times of two transcripts side by side: what is compared, counted and left out."""

from pathlib import Path

import pytest

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.inference.output import Word
from hf_distil_whisper.inference.word_timestamps import set_alignment_heads
from talking_models import talking_whisper
from toy_files import write_toy_corpus
from toy_models import toy_processor
from word_timestamps import WordTimeErrors, main


def words(*spoken: tuple[float, float, str]) -> list[Word]:
    return [Word(start, end, text, 1.0) for start, end, text in spoken]


def test_differences_worked_by_hand() -> None:
    """The start of the first word is 0 by construction: counted, it would make every model look better."""
    teacher = words((0.0, 0.5, "The"), (0.5, 1.0, "cat,"), (1.0, 2.0, "sat"), (2.0, 2.5, "there."))
    student = words((0.0, 0.4, "the"), (0.4, 1.0, "cat"), (1.0, 1.5, "was"), (1.5, 2.5, "There"))
    errors = WordTimeErrors()
    errors.add(words((0, 1, "a")), words((0, 1, "b")))
    assert errors.row("x") == "| x | - | - | - | 0 of 1 |"  # a median of nothing is NaN
    errors.add(teacher, student)
    assert errors.differences == pytest.approx([0.1, 0.1, 0.0, 0.5, 0.0])
    assert errors.row("x") == "| x | 0.10 s | 0.34 s | 66.7% | 3 of 5 |"


def test_a_model_differs_by_0_from_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = talking_whisper(4)
    set_alignment_heads(model, [[3, 0], [3, 1]])
    save_checkpoint(model, toy_processor(), tmp_path / "model")
    corpus = write_toy_corpus(tmp_path / "corpus", seconds=6.0)
    main([str(tmp_path / "model"), str(tmp_path / "model"), corpus, "--heads", "config", "last-layer", "[[0, 0]]"])
    config, last_layer, other = capsys.readouterr().out.splitlines()[2:]
    assert "| 0.00 s | 0.00 s | 100.0% |" in config
    assert last_layer.removeprefix("| last-layer") == config.removeprefix("| config")
    assert other.removeprefix("| [[0, 0]]") != config.removeprefix("| config")
