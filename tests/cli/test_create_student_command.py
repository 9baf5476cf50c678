"""`create-student` on a toy teacher."""

from transformers import WhisperForConditionalGeneration


def test_it_writes_a_student_that_loads(toys, tmp_path, printed):
    argv = ["--teacher_model_name_or_path", toys / "teacher", "--decoder_layer_ids", 0, -1]
    printed("create-student", *argv, "--output_dir", tmp_path / "student")
    student = WhisperForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert student.config.decoder_layers == 2
    assert (tmp_path / "student" / "preprocessor_config.json").is_file()
