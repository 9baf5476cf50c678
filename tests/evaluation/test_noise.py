"""Noise at a given level: that of the mixture; the speech stays, and the noise is the same for every model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset

from hf_distil_whisper.data.audio import encode_flac, load_audio
from hf_distil_whisper.evaluation.evaluate import evaluate_model
from hf_distil_whisper.evaluation.noise import SNRS, add_noise, evaluate_in_noise
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor

NOISE = Path(__file__).parents[2].parent / "shared" / "speech" / "noise" / "adt_pub_restaurant08.flac"


def measured_snr(speech: np.ndarray, mixed: np.ndarray) -> float:
    """Ratio of speech to all that was added, in dB."""
    added = mixed.astype(np.float64) - speech
    return float(10 * np.log10(np.sum(np.square(speech, dtype=np.float64)) / np.sum(np.square(added))))


def recorded(seconds: float, seed: int = 0) -> np.ndarray:
    """A recorded noise whose loudness changes tenfold from second to second."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal(int(16_000 * seconds))
    return (samples * rng.uniform(0.01, 0.1, len(samples) // 16_000 + 1).repeat(16_000)[: len(samples)]).astype("f4")


def toy_set(count: int = 4) -> list[dict]:
    return [{"id": f"row-{n}", "audio": toy_audio(1 + n, seed=n), "text": "the fox"} for n in range(count)]


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param("white", id="white"),
        pytest.param(recorded(20.0), id="longer"),
        pytest.param(recorded(0.7), id="shorter"),
        pytest.param(NOISE, marks=pytest.mark.skipif(not NOISE.is_file(), reason="needs ../shared/speech"), id="pub"),
    ],
)
@pytest.mark.parametrize("snr", [*SNRS, 3.7, 100.0])
def test_mixture_has_the_ratio_asked_for(noise: str | Path | np.ndarray, snr: float) -> None:
    """A level set from the whole noise file is wrong wherever the segment is louder or softer."""
    for seed in range(3):
        speech = 0.1 * toy_audio(2.3, seed=seed)
        assert measured_snr(speech, add_noise(speech, noise, snr, seed=seed)) == pytest.approx(snr, abs=0.05)


def test_loud_mixtures_are_not_clipped_and_arguments_and_silence_stay() -> None:
    """By hand: power of the speech 0.25, of the noise 4, at 20 dB: divided by 40. Clipping changes the speech."""
    mixed = add_noise(np.full(8, 0.5, dtype=np.float32), np.tile([2.0, -2.0], 4), 20.0)
    assert mixed == pytest.approx(np.tile([0.55, 0.45], 4))
    assert (mixed.dtype, mixed.shape) == (np.float32, (8,))
    speech, silence = toy_audio(1.0), np.zeros(1_600, dtype=np.float32)
    before = speech.copy()
    mixed = add_noise(speech, "white", -10.0)
    assert np.abs(mixed).max() > 1.5
    np.testing.assert_array_equal(speech, before)
    assert add_noise(10 * speech, "white", -10.0) == pytest.approx(10 * mixed, abs=1e-5)
    # Silence has no ratio to anything.
    np.testing.assert_array_equal(add_noise(silence, "white", 0.0), silence)


def test_seed_chooses_the_noise_and_nothing_else_does() -> None:
    """Curves of two models over different noise differ by chance."""
    speech, long, short = toy_audio(1.0), recorded(10.0), recorded(0.3)
    for noise in ("white", long, short):
        first = add_noise(speech, noise, 10.0, seed=1)
        np.testing.assert_array_equal(first, add_noise(speech, noise, 10.0, seed=1))
        assert np.abs(first - add_noise(speech, noise, 10.0, seed=2)).max() > 1e-3
        quiet, loud = (add_noise(speech, noise, snr, seed=1).astype("f8") - speech for snr in (20.0, 0.0))
        assert 10 * quiet == pytest.approx(loud, abs=1e-5)


def test_short_noise_goes_round_and_long_noise_is_cut_anywhere() -> None:
    """Padded, a short noise would leave half of the utterance clean; cut at its start, a long one is one segment."""
    speech = np.full(10, 1.0)
    loop = np.array([1.0, 2.0, 3.0])
    added = add_noise(speech, loop, 0.0, seed=4) - speech
    assert added[3:] == pytest.approx(added[:-3], abs=1e-6)
    assert sorted(added[:3] / added.min()) == pytest.approx([1, 2, 3], abs=1e-5)
    added = add_noise(speech, np.arange(1.0, 101.0), 0.0, seed=4) - speech
    assert np.diff(added) == pytest.approx(np.full(9, np.diff(added)[0]), abs=1e-5)
    whole = add_noise(speech, np.arange(1.0, 11.0), 0.0, seed=4) - speech
    assert np.argmin(whole) == 0
    speech, noise = np.ones(2), np.arange(1.0, 6.0)
    ratios = {round(float(np.divide(*(add_noise(speech, noise, 0.0, seed=seed) - speech))), 3) for seed in range(60)}
    assert ratios == {0.5, 0.667, 0.75, 0.8}  # the offsets reach both ends


@pytest.mark.parametrize(
    ("audio", "noise", "snr", "message"),
    [
        (np.zeros(0), "white", 10, "the speech: expected audio, got 0 samples"),
        (np.ones(9), np.zeros(0), 10, "the noise: expected audio, got 0 samples"),
        (np.array([1.0, np.nan]), "white", 10, "the speech: 1 of 2 samples are NaN"),
        (np.ones(9), np.array([1.0, np.inf]), 10, "the noise: 1 of 2 samples are NaN or infinite"),
        (np.ones(9), "pub", 10, "pub: no such file; expected 'white' or the path of a recorded noise"),
        (np.ones(9), np.zeros(100), 10, "the noise: every sample is 0; expected a noise"),
        (
            np.ones(160),
            np.append(np.zeros(16_000), 1.0),
            10,
            r"starting at 0\.\d\d s, .* is silent.*another seed",
        ),
        (np.ones(9), b"no audio", 10, "the noise"),
        (np.ones(9), "white", np.nan, "`snr_db`: expected a ratio from -100 to 100 dB, got nan"),
        (np.ones(9), "white", 101, "`snr_db`: expected a ratio from -100 to 100 dB, got 101"),
    ],
)
def test_bad_input_is_named(audio: np.ndarray, noise: object, snr: float, message: str) -> None:
    """Divided by the power of nothing, an utterance turns into NaN, which a model transcribes as something."""
    with pytest.raises(ValueError, match=message):
        add_noise(audio, noise, snr)


def test_stereo_at_44_khz_is_mixed_down_first(tmp_path: Path) -> None:
    """Noise laid over samples at 44.1 kHz as if they were 16 kHz would have another spectrum and length."""
    stereo = np.stack([toy_audio(2.0), toy_audio(2.0, seed=1)], axis=1)
    soundfile.write(tmp_path / "speech.wav", stereo, 44_100, subtype="FLOAT")
    speech = load_audio(tmp_path / "speech.wav")
    for noise in ("white", str(tmp_path / "speech.wav")):
        mixed = add_noise(str(tmp_path / "speech.wav"), noise, 5.0)
        assert len(mixed) == len(speech) == round(2 * 16_000 / 44_100 * 16_000)
        assert measured_snr(speech, mixed) == pytest.approx(5.0, abs=0.05)


def test_each_row_is_transcribed_in_its_own_noise() -> None:
    """One noise for all rows, or rows beside the wrong noise after sorting by length, cannot be seen in a rate."""
    model, processor = talking_whisper(4), toy_processor()
    clean, rows = evaluate_model(model, toy_set(), processor), toy_set()
    results = evaluate_in_noise(model, rows, processor, snrs=[100, -5.0], batch_size=3)
    assert list(results) == [100.0, -5.0]
    assert [row["prediction"] for row in results[100.0].rows] == [row["prediction"] for row in clean.rows]
    noisy = [row["prediction"] for row in results[-5.0].rows]
    assert noisy != [row["prediction"] for row in clean.rows]
    assert [row["id"] for row in results[-5.0].rows] == ["row-0", "row-1", "row-2", "row-3"]
    assert results[-5.0].audio_seconds == clean.audio_seconds
    stored = [{**row, "audio": {"bytes": encode_flac(row["audio"]), "path": None}} for row in rows]
    again = evaluate_in_noise(model, Dataset.from_list(stored[::-1]), processor, snrs=[-5.0], batch_size=1)
    assert [row["prediction"] for row in again[-5.0].rows] == noisy[::-1]


def test_rows_meet_different_noise_that_depends_on_seed_and_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise on every utterance makes a rate over one draw; another noise at every ratio a ragged curve."""
    noises: dict[tuple, np.ndarray] = {}

    def listen(model: object, rows: list, processor: object, load: Callable, **options: object) -> float:
        for number, row in enumerate(rows):
            noises[len(noises) // 2, number] = np.float64(load(row["audio"], name=row["id"])) - row["audio"]
        return 0.0

    monkeypatch.setattr("hf_distil_whisper.evaluation.noise.evaluate_model", listen)
    clean = toy_audio(1.0)
    rows = [{"id": name, "audio": clean, "text": "x"} for name in "ab"]
    evaluate_in_noise(talking_whisper(), rows, toy_processor(), snrs=[20.0, 0.0])
    evaluate_in_noise(talking_whisper(), rows[::-1], toy_processor(), snrs=[0.0], seed=0)
    evaluate_in_noise(talking_whisper(), rows, toy_processor(), snrs=[0.0], seed=1)
    assert noises[1, 0] == pytest.approx(10 * noises[0, 0], abs=1e-5)
    assert abs(np.corrcoef(noises[1, 0], noises[1, 1])[0, 1]) < 0.05
    np.testing.assert_array_equal(noises[2, 1], noises[1, 0])
    assert abs(np.corrcoef(noises[3, 0], noises[1, 0])[0, 1]) < 0.05


def test_bad_rows_cost_the_row_at_every_ratio(caplog: pytest.LogCaptureFixture) -> None:
    """A broken file in row 2,000 must not end the run, nor must eight copies of one list hide what else is said."""
    rows = toy_set(2)
    for name, audio, text in (
        ("gone", "nowhere.wav", "the"),
        ("long", toy_audio(31), "the"),
        ("broken", np.full(800, np.nan), "the"),
        ("silence", np.zeros(16_000), "the"),
        ("short", toy_audio(0.01), "the"),
        ("wordless", toy_audio(1), None),
    ):
        rows.append({"id": name, "audio": audio, "text": text})
    with caplog.at_level("WARNING", logger="hf_distil_whisper"):
        results = evaluate_in_noise(talking_whisper(4), rows, toy_processor(), noise=recorded(0.5), snrs=[10, 0])
    assert len([record for record in caplog.records if "nowhere.wav" in record.message]) == 1
    for result in results.values():
        assert dict(result.row_errors).keys() == {"gone", "long", "broken"}
        assert [row["id"] for row in result.rows] == ["row-0", "row-1", "silence", "short", "wordless"]
        assert result.empty_references == 1
    assert "expected at most the model's window of 30 s" in dict(results[0.0].row_errors)["long"]


def test_a_pause_in_the_noise_costs_the_row_that_meets_it() -> None:
    """At no ratio would there be noise on it: scored as noisy, it makes the model look better."""
    pause = np.concatenate([np.zeros(160_000), recorded(1.0)])
    result = evaluate_in_noise(talking_whisper(4), toy_set(), toy_processor(), noise=pause, snrs=[0])[0.0]
    assert 0 < len(result.row_errors) < 4
    assert all(message.startswith(f"{row}: the segment of noise") for row, message in result.row_errors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snrs": []}, "`snrs` is empty"),
        ({"snrs": [10, 10.0]}, "`snrs`: 10 dB is given 2 times"),
        ({"snrs": [10, float("inf")]}, "`snrs`: expected a ratio from -100 to 100 dB, got inf"),
        ({"noise": np.zeros(5)}, "the noise: every sample is 0"),
        ({"noise": "nowhere.wav"}, "nowhere.wav: no such file"),
        ({"text_column": "sentence"}, "no column 'sentence'; it has id, audio, text"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(options: dict, message: str) -> None:
    """The last ratio of a night's run is the one with the slip of the pen."""
    with pytest.raises(ValueError, match=message):
        evaluate_in_noise(talking_whisper(), toy_set(), toy_processor(), **options)
