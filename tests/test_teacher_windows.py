"""Windows that the quickstart's teacher trains on: their features, and the rows that it should write."""

import itertools
import json

import numpy as np
import pytest
import teacher_model
import teacher_render
import teacher_speech
import teacher_windows
import torch
from teacher_windows import Frames, Recording, Window
from transformers import WhisperFeatureExtractor

from hf_distil_whisper import load_audio, load_processor, load_source
from toy_models import QUICKSTART


@pytest.fixture(scope="module")
def recordings() -> list[dict]:
    rows = load_source(QUICKSTART / "corpus", split="validation", max_samples=12)
    return [row | {"audio": load_audio(row["audio"])} for row in rows]


@pytest.fixture(scope="module")
def speech(recordings: list[dict], tmp_path_factory: pytest.TempPathFactory):
    """Twelve utterances of one speaker whose words take equal times, the last one held out."""
    folder, start = tmp_path_factory.mktemp("speech"), 0
    mels, index, times = [], [], []
    for row in recordings:
        mels.append(teacher_speech.log_mel(row["audio"]))  # (frames, mel bins)
        frames = len(mels[-1])
        index.append({"start": start, "frames": frames, "text": row["text"], "speaker": "flite-one"})
        marks = np.linspace(0, frames, len(row["text"].split()) + 1).round().astype(int).tolist()
        times.append({"start": start, "words": list(itertools.pairwise(marks))})
        start += frames
    (folder / "mel.f16").write_bytes(np.concatenate(mels).tobytes())
    for name, rows in (("index", index), ("times", times)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(folder / "index.jsonl", "a") as file:
        file.write("the line that is being written when a rendering stops\n")
    return teacher_windows.Speech(folder, timed=True, held_out=1)


@pytest.fixture(scope="module")
def render(speech):
    """Features of windows."""
    return lambda *windows: teacher_render.Renderer(speech.mel)(teacher_render.collate(windows))


@pytest.fixture(scope="module")
def alone(speech):
    """Makes a window of one utterance at its start."""

    def window(number: int, **recording):
        window = Window(Frames.silent(1000), Recording(**recording))
        row = speech.rows[number]
        teacher_windows._place(window, teacher_windows._said(row), teacher_windows._words(row, 0, 1.0), 0)
        return window

    return window


def test_features_are_those_of_the_extractor(alone, render, speech, recordings) -> None:
    extractor = WhisperFeatureExtractor(chunk_length=10)
    for number, ours in enumerate(render(*map(alone, range(3)))):
        frames = speech.rows[number]["frames"]
        theirs = extractor(recordings[number]["audio"], sampling_rate=16_000, return_tensors="pt").input_features[0]
        # Frames at the end reach into the silence behind the recording, where the extractor pads it.
        assert (ours - theirs)[:, : frames - 2].abs().max() < 0.01
        assert ours[:, frames + 2 :].max() == ours.min()


def test_noise_lies_as_far_below_the_speech_as_was_drawn(alone, render) -> None:
    noise = teacher_windows.Noise(clip=3, roll=700, swell=np.zeros(1000, np.float32), level=2.0)
    noisy, clean = render(alone(0, noise=noise), alone(0))
    loud = (4 * clean - 4).amax(dim=0).quantile(0.9)
    behind = (4 * noisy - 4)[:, -200:].mean(dim=1).max()
    assert float(loud - behind) == pytest.approx(2.0, abs=0.2)


def test_masks_zeros_and_a_telephone_change_what_they_are_named_after(alone, render, speech) -> None:
    frames = speech.rows[1]["frames"]
    changed = alone(1, gaps=[(10, 20)], bands=[(5, 9)], zero_from=frames)
    before, masked, muffled = render(alone(1), changed, alone(1, telephone=True))
    assert masked[:, 10:20].unique().numel() == 1
    assert masked[5:9, :frames].unique().numel() == 1
    assert not masked[:, frames:].any()
    assert torch.equal(masked[20:, 30:frames], before[20:, 30:frames])
    assert torch.equal(muffled[:57], before[:57])
    assert (muffled[57:] <= before[57:]).all()
    assert muffled[57:].max() < before[57:].max() - 0.25


def test_a_stretched_and_a_warped_utterance_say_the_same_elsewhere(speech) -> None:
    """Twice as many frames, every other one of which is a frame of the original."""
    row = speech.rows[0]
    slow = teacher_windows._said(row, (2 * row["frames"] - 1) / row["frames"])
    plan = teacher_render.collate([Window(slow, Recording())])
    joined = teacher_render.Renderer(speech.mel)._joined(plan)[0]
    assert torch.allclose(joined[::2], torch.from_numpy(speech.frames(row)), atol=1e-3)
    ramp = torch.arange(80.0).expand(2, 5, 80)
    warped = teacher_render._warp(ramp, torch.tensor([1.0, 0.5]))
    assert torch.equal(warped[0], ramp[0])
    assert torch.allclose(warped[1], ramp[1] / 2)


def test_windows_that_are_drawn_hold_what_they_say(speech) -> None:
    processor = load_processor(QUICKSTART / "teacher")
    rng = np.random.default_rng(0)
    windows = [teacher_windows.compose(speech, rng, 3000, single=0.2) for _ in range(40)]
    rows = [teacher_model.decoder_rows(processor.tokenizer, window, 0, rng) for window in windows]
    assert any(window.empty for window in windows)
    assert any(window.cut_start is not None for window in windows)
    assert any(window.previous for window in windows)
    for window, row in zip(windows, rows, strict=True):
        assert len(row["inputs"]) == len(row["targets"]) == len(row["spans"])
        written = [token for token in row["targets"] if token >= 0]
        text = processor.tokenizer.decode(written, skip_special_tokens=True).strip()
        assert window.text.startswith(text)
        assert window.cut_start is not None or text == window.text


def test_rows_of_a_batch_look_at_the_word_that_is_read_and_written() -> None:
    rows = [
        {"inputs": [1, 2, 3], "targets": [2, 3, 4], "spans": [None, (100, 140), (140, 200)]},
        {"inputs": [1], "targets": [4], "spans": [(20, 60)]},
    ]
    batch = teacher_model.collate_rows(rows, pad=9)
    assert batch["inputs"].tolist() == [[1, 2, 3], [1, 9, 9]]
    assert batch["targets"].tolist() == [[2, 3, 4], [4, -100, -100]]
    assert batch["writing"].tolist() == [[[0, 0], [49, 71], [69, 101]], [[9, 31], [0, 0], [0, 0]]]
    assert batch["reading"].tolist() == [[[0, 0], [0, 0], [49, 71]], [[0, 0], [0, 0], [0, 0]]]
