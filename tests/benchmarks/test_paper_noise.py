"""Figure 2: table, file and picture show the same; babble is mixed from voices of one power."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_scripts import Printed, write_texts

import noise
from hf_distil_whisper import WordErrors
from noise import babble
from toy_files import spoil, write_toy_corpus
from toy_models import toy_audio


def test_table_results_and_picture_show_the_same(pair: list[str], tmp_path: Path, printed: Printed) -> None:
    """A column of the student under the teacher's name is noticed by nobody."""
    pub = tmp_path / "pub.wav"
    soundfile.write(pub, toy_audio(0.5, seed=9), 16_000)
    corpus = write_toy_corpus(tmp_path / "speakers", train=8)
    argv = [*pair, "--noises", "white", pub, "babble", "--babble_dataset", corpus, "--snrs", 10, -5, "--seed", 3]
    text = printed(noise.main, *argv, "--output_dir", tmp_path / "out")
    assert "| noise | SNR / dB | student WER % | teacher WER % |" in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["models"] == {"student": pair[1], "teacher": pair[3]}
    assert results["noises"] == {"white": "white", "pub": str(pub), "babble": "babble"}
    assert (results["seed"], results["dataset"]["split"]) == (3, "test")
    for kind in ("white", "pub", "babble"):
        for snr in ("10", "-5"):
            student, teacher = (results["wer_by_noise_and_snr"][kind][snr][name] for name in ("student", "teacher"))
            assert f"| {kind} | {snr} | {100 * student['wer']:.2f} | {100 * teacher['wer']:.2f} |" in text
            counts = (student[name] for name in ("hits", "substitutions", "deletions", "insertions"))
            assert WordErrors(*counts).wer == student["wer"]
    assert (tmp_path / "out" / "wer_over_snr.png").read_bytes().startswith(b"\x89PNG")


def test_bad_rows_are_counted_and_rows_without_a_reference_have_no_rate(
    pair: list[str], tmp_path: Path, printed: Printed
) -> None:
    """0 % over nothing would be the best curve of the picture."""
    corpus = write_toy_corpus(tmp_path / "corpus", train=4)
    spoil(corpus, 1)
    mute = write_texts(write_toy_corpus(tmp_path / "mute", train=1, test=1), None)
    texts, rows = [], []
    for dataset in (f"{{path: {corpus}, split: train}}", mute):
        folder = tmp_path / str(len(rows))
        texts.append(printed(noise.main, *pair[:-1], dataset, "--snrs", 10, "--output_dir", folder))
        rows.append(json.loads((folder / "results.json").read_text())["wer_by_noise_and_snr"]["white"]["10"])
    assert "in every noise: 2 could not be read" in texts[0]
    assert rows[0]["student"]["unreadable_rows"] == rows[0]["teacher"]["unreadable_rows"] == 2
    assert "| white | 10 | - | - |" in texts[1]
    assert "in every noise: 1 without a reference" in texts[1]
    assert rows[1]["student"]["wer"] is None


def test_babble_is_the_sum_of_voices_of_one_power() -> None:
    """Two tones, one of them a hundred times as loud: each is half of the power, however they are laid out."""
    time = np.arange(16_000) / 16_000
    soft, loud = (level * np.sin(2 * np.pi * pitch * time) for level, pitch in ((0.01, 400), (1.0, 1_000)))
    mixed = babble([soft, loud], speakers=2, seconds=1.0)
    assert (mixed.dtype, mixed.shape) == (np.float32, (16_000,))
    power = np.abs(np.fft.rfft(mixed.astype(np.float64)) / 16_000) ** 2 * 2
    assert power[400] == pytest.approx(power[1_000], rel=1e-3) == pytest.approx(0.005, rel=1e-3)


def test_babble_depends_on_its_seed_and_leaves_out_what_is_silent_or_broken(caplog: pytest.LogCaptureFixture) -> None:
    """A voice of silence or NaN would make the noise softer, or end the run."""
    recordings = [np.zeros(100), "nowhere.wav", *(toy_audio(0.3, seed=seed) for seed in range(5))]
    first, again, other = (babble(recordings, speakers=3, seconds=2.0, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all()
    assert np.abs(first - other).max() > 1e-3
    assert "Not in the babble: 2 rows left out" in caplog.text
    with pytest.raises(ValueError, match=r"each of 3 speakers, got 2 of 4\. 2 rows left out"):
        babble(recordings[:4], speakers=3, seconds=1.0)
