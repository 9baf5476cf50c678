"""Training arguments: the paper's defaults, combinations without meaning, and folders that hold another run."""

import dataclasses

import pytest
from transformers import HfArgumentParser

from hf_distil_whisper.training.args import DistillationTrainingArguments, check_output_dir


def arguments(tmp_path, **changes) -> DistillationTrainingArguments:
    return DistillationTrainingArguments(str(tmp_path), use_cpu=True, **changes)


def test_defaults_are_the_papers_where_they_do_not_depend_on_scale(tmp_path):
    """The reference script has the weights of KL and PL exchanged, and another timestamp probability."""
    args = arguments(tmp_path)
    assert (args.kl_weight, args.pl_weight, args.mse_weight, args.temperature) == (0.8, 1.0, 0.0, 2.0)
    assert (args.timestamp_probability, args.condition_on_prev_probability) == (0.5, 0.2)
    assert (args.lr_scheduler_type, args.max_grad_norm, args.weight_decay) == ("linear", 1.0, 0.0)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert args.freeze_encoder
    assert not args.freeze_decoder
    assert args.predict_with_generate


def test_every_setting_of_ours_has_a_help_text_and_can_be_given_as_a_flag(tmp_path):
    """A field that the parser cannot convert fails only on somebody's command line."""
    ours = set(DistillationTrainingArguments.__annotations__)
    fields = [field for field in dataclasses.fields(DistillationTrainingArguments) if field.name in ours]
    assert all(field.metadata["help"] for field in fields)
    parser = HfArgumentParser(DistillationTrainingArguments)
    flags = ["--freeze_encoder", "false", "--kl_weight", "1e-1", "--language", "no", "--early_stopping_patience", "3"]
    given = ["--eval_strategy", "steps", "--eval_steps", "5", "--metric_for_best_model", "macro_wer", "--use_cpu"]
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), *flags, *given])
    assert (args.freeze_encoder, args.kl_weight, args.language, args.early_stopping_patience) == (False, 0.1, "no", 3)


@pytest.mark.parametrize("metric", ["macro_wer", "eval_test_wer", "wer", "test_kl", "loss"])
def test_fewer_errors_are_better(tmp_path, metric):
    """Transformers takes every metric that does not end in `loss` for an accuracy, and keeps the worst model."""
    assert arguments(tmp_path, metric_for_best_model=metric).greater_is_better is False
    assert arguments(tmp_path, metric_for_best_model="accuracy").greater_is_better is True


@pytest.mark.parametrize("off", [False, "off", "false", "none"])
def test_a_cache_that_yaml_switches_off_is_off(tmp_path, off):
    """YAML reads `off` as False, which is no name of a cache."""
    assert arguments(tmp_path, teacher_cache=off).teacher_cache == "none"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_weight": -0.1}, "--kl_weight: expected 0 or more, got -0.1"),
        ({"kl_weight": 0, "pl_weight": 0}, "all 0: there is nothing to learn from"),
        ({"temperature": 0}, "--temperature: expected a number above 0"),
        ({"loss_chunk_size": 0}, "--loss_chunk_size: expected at least 1 token, got 0"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor: expected 0"),
        ({"generation_config": "folder"}, "--generation_config would replace .*--generation_num_beams"),
        ({"timestamp_probability": 1.5}, "--timestamp_probability: expected a probability from 0 to 1, got 1.5"),
        ({"condition_on_prev_probability": -1}, "--condition_on_prev_probability: expected a probability"),
        ({"teacher_cache": "decoder"}, "--teacher_cache: expected one of none, encoder, logits, both, got .decoder."),
        ({"teacher_cache": "logits", "kl_weight": 0}, "--kl_weight and --mse_weight are 0: nothing would be learned"),
        ({"teacher_cache": "both", "freeze_encoder": False}, "--freeze_encoder is off: they would be out of date"),
        ({"freeze_decoder": True, "freeze_embed_tokens": True}, "--freeze_embed_tokens are all on: nothing would be"),
        ({"teacher_cache_dir": "x"}, "--teacher_cache_dir is x, but --teacher_cache is none"),
        ({"teacher_cache": "encoder", "freeze_encoder": False}, "--freeze_encoder is off: they would be out of date"),
        ({"task": "summarise"}, "--task: expected 'transcribe' or 'translate', got 'summarise'"),
        ({"early_stopping_patience": 2}, "set --eval_strategy to steps or epoch, and --metric_for_best_model"),
        ({"early_stopping_patience": 0}, "--early_stopping_patience: expected at least 1 evaluation, got 0"),
    ],
)
def test_settings_without_meaning_name_their_flag(tmp_path, changes, message):
    """Each would be noticed after hours, or never."""
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


def test_a_run_neither_overwrites_another_one_nor_resumes_from_nothing(tmp_path):
    """Two runs in one folder leave checkpoints of both; one that starts anew overwrites days of work."""
    run, notes = tmp_path / "run", tmp_path / "notes.txt"
    assert check_output_dir(tmp_path) is None
    assert check_output_dir(run) is None
    notes.touch()
    with pytest.raises(ValueError, match=r"holds files \(notes.txt\), which would be overwritten"):
        check_output_dir(tmp_path)
    for step in (5, 10):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert check_output_dir(run, True) == str(run / "checkpoint-10")
    assert check_output_dir(run, str(run / "checkpoint-5")) == str(run / "checkpoint-5")
    for message, folder, checkpoint in (
        (r"--output_dir: .* holds another run \(checkpoint-10, .*resume_from_checkpoint", run, None),
        ("is a file", notes, None),
        ("--resume_from_checkpoint: expected a folder checkpoint-<step>", tmp_path, True),
        ("there is none", run, str(run / "checkpoint-7")),
    ):
        with pytest.raises(ValueError, match=message):
            check_output_dir(folder, checkpoint)
