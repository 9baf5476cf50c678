"""Synthetic voices: text → flite or espeak-ng → sox → room, noise and level, as float audio at 16 kHz.

Needs the Debian packages flite, espeak-ng and sox. Every draw comes from the generator that is handed in, so that one
seed gives one recording.
"""

import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 16_000


@dataclass(frozen=True)
class Voice:
    """A synthesiser and its voice: `flite` (`awb`, …) or `espeak-ng` (`en-gb+f2`, …).

    A voice in disguise is shifted by `cents`, pitch and formants alike, and (flite only) speaks at a mean of `hertz`.
    """

    engine: str
    name: str
    cents: int = 0
    hertz: int | None = None

    @property
    def label(self) -> str:
        """The name of the speaker in the corpus."""
        disguise = f"{self.cents:+d}-{self.hertz}" if self.hertz else ""
        return f"{self.engine}-{self.name}{disguise}"


TRAIN_VOICES = [
    Voice("flite", "awb"), Voice("flite", "slt"), Voice("flite", "kal16"),
    Voice("espeak-ng", "en-us"), Voice("espeak-ng", "en-gb"), Voice("espeak-ng", "en-us+f2"),
    Voice("espeak-ng", "en-gb-scotland+m3"), Voice("espeak-ng", "en-gb-x-rp+f4"), Voice("espeak-ng", "en-us+m7"),
    Voice("espeak-ng", "en-gb+f1"), Voice("espeak-ng", "en-gb-x-gbcwmd+m1"),
]  # fmt: skip
RECORDED_VOICES = [voice for voice in TRAIN_VOICES if voice.engine == "flite"]
"""Made from recordings of people, and so harder to read than espeak-ng's formants."""
UNSEEN_VOICES = [Voice("flite", "rms"), Voice("espeak-ng", "en-us+f5"), Voice("espeak-ng", "en-gb-x-gbclan+m6")]
EXTRA_VOICES = [
    Voice("espeak-ng", f"{accent}+{variant}")
    for accent in ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland")
    for variant in "m1 m2 m3 m4 m5 m8 f1 f2 f3 f4 Annie Alex david linda steph".split()
]
DISGUISED_VOICES = [
    Voice("flite", name, cents, hertz)
    for name in ("awb", "slt", "kal16")
    for cents in (-480, -320, -160, 160, 320, 480)
    for hertz in (85, 120, 170)
]
"""These two lists occur only in the teacher's training speech."""


def _synthesise(voice: Voice, text: str, path: Path, rng: random.Random) -> None:
    if voice.engine == "flite":
        stretch = ["--setf", f"duration_stretch={rng.uniform(0.85, 1.2):.2f}"]
        if voice.hertz:
            stretch += ["--setf", f"int_f0_target_mean={voice.hertz * rng.uniform(0.9, 1.1):.0f}"]
        command = ["flite", "-voice", voice.name, *stretch, "-t", text, "-o", str(path)]
    else:
        speed, pitch = rng.randint(135, 185), rng.randint(30, 70)
        command = ["espeak-ng", "-v", voice.name, "-s", str(speed), "-p", str(pitch), "-w", str(path), text]
    subprocess.run(command, check=True, capture_output=True)


def _trim(audio: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Cuts the silence that a synthesiser leaves before and after the speech, so that its times are known."""
    loud = np.flatnonzero(np.abs(audio) > threshold * np.abs(audio).max())
    return audio[loud[0] : loud[-1] + 1]


def render(voice: Voice, text: str, rng: random.Random, pitch_cents: float = 120.0) -> np.ndarray:
    """Speaks `text` once.

    Args:
        voice (`Voice`): who speaks.
        text (`str`): one sentence.
        rng (`random.Random`): draws tempo and pitch.
        pitch_cents (`float`, *optional*, defaults to 120.0): largest shift of the pitch up or down, in cents.

    Returns:
        `np.ndarray`: clean speech, float32 at 16 kHz, without silence at its ends, peak 0.5.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw, shaped = Path(folder, "raw.wav"), Path(folder, "shaped.wav")
        _synthesise(voice, text, raw, rng)
        effects = [
            "pitch",
            f"{voice.cents + rng.uniform(-pitch_cents, pitch_cents):.0f}",
            "tempo",
            "-s",
            f"{rng.uniform(0.92, 1.1):.3f}",
        ]
        subprocess.run(["sox", "-D", "-G", str(raw), "-c", "1", "-r", str(RATE), str(shaped), *effects], check=True,
                       capture_output=True)  # fmt: skip
        audio, _ = sf.read(shaped, dtype="float32")
    audio = _trim(audio)
    return 0.5 * audio / np.abs(audio).max()


def room(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light reverberation: a decaying random impulse response 8 to 30 dB below the direct sound."""
    length = int(RATE * rng.uniform(0.05, 0.3))
    tail = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    tail *= 10 ** (-rng.uniform(8, 30) / 20) / np.sqrt(np.sum(tail**2))
    spectrum = np.fft.rfft(audio, len(audio) + length) * np.fft.rfft(tail, len(audio) + length)
    return (audio + np.fft.irfft(spectrum)[: len(audio)]).astype(np.float32)


def noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit power whose spectrum falls with a random slope, from white to brown."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20) ** rng.uniform(0, 1)
    wave = np.fft.irfft(spectrum, length)
    return (wave / np.sqrt(np.mean(wave**2) + 1e-12)).astype(np.float32)


def record(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulates a microphone: reverberation half of the time, noise 20 to 45 dB below the speech, any level."""
    power = float(np.mean(audio**2))
    if rng.random() < 0.5:
        audio = room(audio, rng)
    audio = audio + noise(len(audio), rng) * np.sqrt(power * 10 ** (-rng.uniform(20, 45) / 10))
    level = 10 ** (rng.uniform(-18, -1) / 20)
    return (level * audio / np.abs(audio).max()).astype(np.float32)
