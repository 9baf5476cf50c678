"""Memory of long recordings: what a file of hours takes beyond one of minutes."""

from pathlib import Path

import pytest

from long_form_memory import long_form_memory
from toy_files import write_toy_model


@pytest.mark.slow
def test_three_hours_take_the_memory_of_five_minutes(tmp_path: Path) -> None:
    """Decoded whole, stereo of 3 h at 44.1 kHz takes 3.8 GB before the first word."""
    model = write_toy_model(tmp_path / "toy", encoder_layers=1, decoder_layers=1)
    found = long_form_memory(model, minutes=(5, 180), rate=44_100)
    assert found[180] - found[5] < 30e6
