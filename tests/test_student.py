"""Which layers a student gets, and that nothing else of the teacher changes on the way."""

import copy

import pytest
import torch
from transformers import WhisperConfig, WhisperForAudioClassification

from hf_distil_whisper.student import create_student, select_layers
from toy_models import toy_processor, toy_whisper
from toy_training import assert_same_weights


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [(32, 2, [0, 31]), (12, 4, [0, 3, 7, 11]), (8, 3, [0, 3, 7]), (5, 1, [0]), (4, 4, [0, 1, 2, 3]), (1, 1, [0])],
)
def test_layers_are_spaced_as_in_the_published_students(teacher, student, expected):
    """Rounding up instead of down would still train, from other layers than the paper's."""
    assert select_layers(teacher, student) == expected


def test_a_copy_with_all_layers_is_bit_identical_to_the_teacher(tmp_path):
    """Any weight that is left out would stay random; the name of a folder must not take another path."""
    teacher = toy_whisper()
    teacher.save_pretrained(tmp_path)
    features, tokens = torch.randn(1, 80, 3000), torch.tensor([[301, 407, 5]])
    for source in (teacher, str(tmp_path)):
        student = create_student(source, decoder_layers=4)
        assert_same_weights(student, teacher)
        with torch.no_grad():
            logits = [m(input_features=features, decoder_input_ids=tokens).logits for m in (teacher, student)]
        assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("options", "selected"),
    [
        ({"decoder_layers": 2, "encoder_layers": 3}, {"decoder": [0, 3], "encoder": [0, 2, 4]}),
        ({"decoder_layer_ids": [0, -1], "encoder_layer_ids": [-5, 2]}, {"decoder": [0, 3], "encoder": [0, 2]}),
    ],
)
def test_each_layer_is_the_selected_layer_of_the_teacher(options, selected):
    """`--decoder_layers_numbers 0 -1` of the reference script silently keeps teacher layer 1 as the last one."""
    teacher = toy_whisper(encoder_layers=5)
    student = create_student(teacher, **options)
    expected = {name: weight for name, weight in teacher.state_dict().items() if ".layers." not in name}
    for part, indices in selected.items():
        assert getattr(student.config, f"{part}_layers") == len(indices)
        for number, index in enumerate(indices):
            layer = getattr(teacher.model, part).layers[index].state_dict()
            expected |= {f"model.{part}.layers.{number}.{name}": weight for name, weight in layer.items()}
    torch.testing.assert_close(dict(student.state_dict()), expected, rtol=0, atol=0)


def test_the_student_shares_no_memory_with_the_teacher_and_ties_its_own_head():
    """Training the student would train the teacher; an untied head would be saved and trained twice."""
    teacher = toy_whisper()
    before = copy.deepcopy(teacher.state_dict())
    student = create_student(teacher)
    assert student.proj_out.weight is student.model.decoder.embed_tokens.weight
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_the_student_is_in_float32_and_eval_mode_whatever_the_teacher_is():
    """A student in half precision trains into nothing at small learning rates."""
    teacher = toy_whisper().to(torch.bfloat16).train()
    student = create_student(teacher)
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert student.config.dtype == torch.float32
    assert not student.training
    assert teacher.training
    assert not student.model.encoder.embed_positions.weight.requires_grad  # sinusoids, in every Whisper the same


def test_the_generation_config_fits_the_student_and_forces_nothing():
    """A forced language refuses all others, a missing length cuts at 20 tokens, and heads of missing layers crash.

    The Trainer replaces token ids that are not the tokenizer's, with a warning; English-only configs have such a bos.
    """
    teacher = toy_whisper()
    teacher.config.bos_token_id = teacher.generation_config.bos_token_id = teacher.config.decoder_start_token_id
    changes = {"alignment_heads": [[1, 0], [3, 1], [0, 1]], "forced_decoder_ids": [[1, 302]], "max_length": None}
    for name, value in changes.items():
        setattr(teacher.generation_config, name, value)
    teacher.config.forced_decoder_ids = [[1, 302]]
    student = create_student(teacher)
    settings = student.generation_config
    assert (settings.alignment_heads, settings.max_length, settings.num_beams) == ([[1, 1], [0, 1]], 448, 1)
    assert (settings.forced_decoder_ids, student.config.forced_decoder_ids) == (None, None)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = {getattr(one, name) for one in (settings, student.config, toy_processor().tokenizer)}
        assert len(ids) == 1
    assert {name: getattr(teacher.generation_config, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_layers": 5}, "Expected 1 to 4 layers for the student, got 5"),
        ({"decoder_layers": 0}, "Expected 1 to 4 layers for the student, got 0"),
        ({"encoder_layers": 3}, "Expected 1 to 2 layers for the student, got 3"),
        ({"decoder_layer_ids": [0, 4]}, "--decoder_layer_ids: the teacher's decoder has the layers 0 to 3.*got 4"),
        ({"decoder_layer_ids": [-5]}, "got -5"),
        ({"encoder_layer_ids": []}, "--encoder_layer_ids: expected at least one layer"),
        ({"decoder_layer_ids": [0, 3, -1]}, r"each layer can be copied once, got \[0, 3, -1\], that is \[0, 3, 3\]"),
    ],
)
def test_impossible_students_are_refused_with_the_flag_to_change(changes, message):
    """Each would otherwise end in a stack trace, or in a student with other layers than asked for."""
    with pytest.raises(ValueError, match=message):
        create_student(toy_whisper(), **changes)


def test_a_teacher_that_is_no_whisper_with_a_head_is_refused():
    """A classifier has the same encoder: copying would only fail at the decoder, with a missing key."""
    config = WhisperConfig(**{**toy_whisper().config.to_dict(), "architectures": None})
    with pytest.raises(ValueError, match="Expected a WhisperForConditionalGeneration as teacher, got WhisperForAudio"):
        create_student(WhisperForAudioClassification(config))
