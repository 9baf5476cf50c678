"""Human speech through labelling and filter: a teacher that does not understand it must leave nothing to train on."""

from pathlib import Path

import pytest
from datasets import Dataset

from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import (
    RowErrors,
    load_source,
)
from hf_distil_whisper.pseudo_labels.filtering import (
    EmptyFilterError,
    filter_by_wer,
)
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset
from talking_models import talking_whisper
from toy_models import toy_processor

SPEECH = Path(__file__).parents[2].parent / "shared" / "speech"


@pytest.mark.parametrize(("corpus", "hours"), [("librispeech", 0.128), ("ljspeech", 0.29)])
@pytest.mark.skipif(not SPEECH.is_dir(), reason="the recordings are not at ../shared/speech")
def test_labels_of_a_teacher_that_understands_nothing_are_all_dropped(
    tmp_path: Path, corpus: str, hours: float
) -> None:
    """Instead of an error, training on what a random teacher said would end with a random student."""
    utterances, errors = load_source(SPEECH / corpus), RowErrors()
    rows = Dataset.from_list(list(pack_utterances(utterances, errors=errors)))
    labelled = pseudo_label_dataset(
        rows, talking_whisper(2), toy_processor(), output_dir=tmp_path, max_new_tokens=20, errors=errors
    )
    assert not errors
    assert sum(len(ids) for ids in labelled["ids"]) == len(utterances)
    assert sum(labelled["duration"]) / 3600 == pytest.approx(hours, abs=0.01)
    with pytest.raises(EmptyFilterError, match=rf"None of {len(labelled)} rows") as error:
        filter_by_wer(labelled)
    assert "hours kept" in str(error.value)
