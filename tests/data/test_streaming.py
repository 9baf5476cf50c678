"""An endless stream gives every row once a pass, on one worker, as often as its weight says, and continues exactly."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from datasets import Audio, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.sources import load_source
from hf_distil_whisper.data.streaming import SpeechStream
from toy_models import toy_audio
from toy_training import collate, small_processor


def write_source(folder: Path, files: int, rows: int, bad: tuple[int, ...] = (), form: str = "{name} {number}") -> str:
    """Parquet files of labelled rows; the text of each is `<name of the folder> <number>`."""
    folder.mkdir(parents=True)
    for file in range(files):
        numbers = range(file * rows, (file + 1) * rows)
        audio = [b"none" if number in bad else encode_flac(toy_audio(0.1, seed=number)) for number in numbers]
        texts = [form.format(name=folder.name, number=number) for number in numbers]
        columns = {"id": texts, "audio": [{"bytes": content, "path": None} for content in audio], "text": texts}
        part = Dataset.from_dict({**columns, "whisper_transcript": texts}).cast_column("audio", Audio(decode=False))
        part.to_parquet(folder / f"train-{file:05d}-of-{files:05d}.parquet")
    return str(folder)


def speech(sources: dict[str, str], **changes: object) -> SpeechStream:
    streams = {name: load_source(path, streaming=True) for name, path in sources.items()}
    return SpeechStream(streams, small_processor(), **{"shuffle_buffer": 3, **changes})


def texts(samples) -> list[str]:
    tokens = ([token for token in sample["labels"] if token >= 0] for sample in samples)
    return [text.strip() for text in small_processor().batch_decode(list(tokens), skip_special_tokens=True)]


@pytest.mark.parametrize("files", [4, 3, 1])
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 0), (4, 0), (2, 2)])
def test_each_row_comes_once_a_pass_on_one_worker_of_one_process(
    tmp_path: Path, files: int, processes: int, workers: int
) -> None:
    """By files where that makes parts of one size, else each process takes every n-th row."""
    source = write_source(tmp_path / "row", files, 4)
    seen: Counter[str] = Counter()
    for process in range(processes):
        stream = speech({"source": source})
        stream.assign(process, processes, workers)
        loader = StatefulDataLoader(stream, batch_size=None, num_workers=workers)
        share = Counter(texts(islice(loader, 2 * files * 4 // processes)))
        assert set(share.values()) == {2}
        assert not seen.keys() & share.keys()
        seen += share
    assert len(seen) == files * 4


def test_every_pass_has_another_order(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 3, 4)
    drawn = texts(islice(speech({"source": source}), 24))
    assert sorted(drawn[:12]) == sorted(drawn[12:])
    assert drawn[:12] != drawn[12:]
    assert drawn == texts(islice(speech({"source": source}), 24))
    assert drawn != texts(islice(speech({"source": source}, seed=7), 24))


def test_sources_are_drawn_by_their_weights(tmp_path: Path) -> None:
    sources = {"read": write_source(tmp_path / "read", 2, 6), "spoken": write_source(tmp_path / "spoken", 2, 3)}
    drawn = texts(islice(speech(sources, weights={"read": 1.0, "spoken": 3.0}), 400))
    assert 0.68 < sum(text.startswith("spoken") for text in drawn) / 400 < 0.82


def test_the_stopping_strategy_decides_what_follows_the_end_of_a_source(tmp_path: Path) -> None:
    sources = {"long": write_source(tmp_path / "long", 1, 12), "short": write_source(tmp_path / "short", 1, 3)}
    once = texts(islice(speech(sources, stopping_strategy="all_exhausted_without_replacement"), 30))
    assert Counter(once[:15]) == Counter(once[15:]) == Counter(dict.fromkeys(once, 1))
    again = Counter(texts(islice(speech(sources, stopping_strategy="all_exhausted"), 40)))
    assert again["short 0"] > again["long 0"] >= 1
    first = texts(islice(speech(sources, stopping_strategy="first_exhausted", shuffle_buffer=1), 60))
    assert first.count("long 0") > 2
    assert "long 11" not in first  # both start again when the short one ends


def test_variants_are_drawn_anew_in_each_pass(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 1, 1, form="<|0.00|> a<|0.10|>")
    lengths = Counter(len(sample["labels"]) for sample in islice(speech({"a": source}), 40))
    assert len(lengths) == 2
    assert min(lengths.values()) > 8


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("strategy", ["all_exhausted", "first_exhausted", "all_exhausted_without_replacement"])
def test_a_loader_continues_exactly_from_its_state(tmp_path: Path, workers: int, strategy: str) -> None:
    sources = {"read": write_source(tmp_path / "read", 4, 4, bad=(2,))}
    sources["spoken"] = write_source(tmp_path / "spoken", 2, 3)

    def loader() -> StatefulDataLoader:
        stream = speech(sources, stopping_strategy=strategy, weights={"read": 2.0, "spoken": 1.0})
        return StatefulDataLoader(stream, batch_size=2, num_workers=workers, collate_fn=collate)

    whole = [batch["labels"].tolist() for batch in islice(loader(), 24)]
    for stop in (1, 5, 14):
        first = loader()
        batches = iter(first)
        begun = [next(batches)["labels"].tolist() for _ in range(stop)]
        state = first.state_dict()
        second = loader()
        second.load_state_dict(state)
        rest = [batch["labels"].tolist() for batch in islice(second, 24 - stop)]
        assert begun + rest == whole
        # The state of a loader that was given one and has not read from there yet is that one.
        third, fourth = loader(), loader()
        third.load_state_dict(state)
        fourth.load_state_dict(third.state_dict())
        assert next(iter(fourth))["labels"].tolist() == whole[stop]


def test_a_bad_row_costs_that_row_and_a_source_of_them_the_training(tmp_path: Path) -> None:
    """It would be read over and over, for nothing."""
    stream = speech({"source": write_source(tmp_path / "row", 2, 3, bad=(1,))})
    assert Counter(texts(islice(stream, 10))) == {f"row {number}": 2 for number in (0, 2, 3, 4, 5)}
    assert stream.num_skipped == 2
    stream = speech({"broken": write_source(tmp_path / "source", 1, 2, bad=(0, 1))})
    with pytest.raises(ValueError, match="broken: this worker's part of it holds no row that can be used"):
        next(iter(stream))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"other": 1.0}}, "expected weights for source"),
        ({"weights": {"source": 0.0}}, "a weight above 0"),
        ({"stopping_strategy": "never"}, "expected one of first_exhausted"),
        ({"shuffle_buffer": 0}, "`shuffle_buffer`: expected at least 1 row"),
        ({"transcript_column": "label"}, "source: no column 'label'; there are"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    source = write_source(tmp_path / "source", 1, 1)
    with pytest.raises(ValueError, match=message):
        speech({"source": source}, **changes)
