"""What a validation logs: losses per token at temperature 1, WER and macro-averages; early stopping on them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.metrics import errors_in_language
from hf_distil_whisper.training.trainer import DistillationTrainer
from hf_distil_whisper.training.validation import WordErrorMetrics
from talking_models import count_encoder_windows
from toy_training import (
    RandomWindows,
    assert_same_weights,
    logged,
    plain_losses,
    small_args,
    small_pair,
    small_processor,
    small_trainer,
    trained,
)

TWO_SETS = {"one": RandomWindows(4), "two": RandomWindows(6)}


def validated(folder: Path, **settings) -> DistillationTrainer:
    """A trainer with a processor, so that its validations generate transcripts."""
    return small_trainer(folder, *small_pair(), **{"processor": small_processor(), **settings})


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_losses_are_means_over_tokens_at_temperature_1(tmp_path, batch_size):
    """Upstream averages over batches: the loss then depends on the batch size, and short rows weigh more."""
    student, teacher = small_pair()
    expected = plain_losses(student, teacher, RandomWindows(7), temperature=1.0)
    trainer = small_trainer(tmp_path, student, teacher, per_device_eval_batch_size=batch_size)
    metrics = trainer.evaluate(RandomWindows(7))
    assert metrics["eval_kl"] == pytest.approx(expected["kl"], rel=1e-4)
    assert metrics["eval_pl"] == pytest.approx(expected["pl"], rel=1e-4)
    assert metrics["eval_loss"] == pytest.approx(0.8 * expected["kl"] + expected["pl"], rel=1e-4)


def test_wer_is_that_of_generated_transcripts_at_no_second_run_of_the_encoder(tmp_path):
    """A WER of teacher-forced predictions looks far better than what a user will get."""
    windows = RandomWindows(6)
    trainer = validated(tmp_path)
    encoded = count_encoder_windows(trainer.model)
    wer = trainer.evaluate(windows)["eval_wer"]
    assert encoded() == 6  # once a window: loss and transcript need the same hidden states
    tokenizer = small_processor().tokenizer
    items = [windows[index] for index in range(6)]
    references = [
        tokenizer.decode([token for token in item["labels"] if token >= 0], skip_special_tokens=True) for item in items
    ]
    features = torch.stack([item["input_features"] for item in items])
    sequences = generate_tokens(trainer.model, features, max_new_tokens=10)
    hypotheses = [tokenizer.decode(sequence.tokens, skip_special_tokens=True) for sequence in sequences]
    assert wer == pytest.approx(errors_in_language(references, hypotheses, "en").wer)
    assert any(hypotheses)


def test_the_macro_average_of_several_sets_chooses_the_best_model_and_stops_early(tmp_path, caplog):
    """Over rows the largest set would decide; upstream's callback never sees the average, and trains to the end."""
    settings = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 10,
        "load_best_model_at_end": True, "metric_for_best_model": "macro_wer", "early_stopping_patience": 2,
    }  # fmt: skip
    trainer = validated(tmp_path, evaluation=TWO_SETS, learning_rate=1e-2, **settings)
    loop, rates = trainer.evaluation_loop, iter([0.8, 1.0, 0.2, 0.4, 0.5, 0.5, 0.4, 0.4])

    def with_rate(*args, metric_key_prefix, **kwargs):
        output = loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_wer"] = next(rates)
        return output

    trainer.evaluation_loop = with_rate
    trainer.train()
    for name in TWO_SETS:
        assert all(len(logged(trainer, f"eval_{name}_{metric}")) == 4 for metric in ("loss", "kl", "pl", "wer"))
    assert logged(trainer, "eval_macro_wer") == pytest.approx([0.9, 0.3, 0.5, 0.4])
    assert trainer.state.global_step == 4
    assert "early stopping required" not in caplog.text
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert trainer.state.best_metric == pytest.approx(0.3)
    assert_same_weights(type(trainer.model).from_pretrained(tmp_path / "checkpoint-2"), trainer.model)


def test_an_evaluation_returns_no_logits_and_leaves_the_configs_alone(tmp_path):
    """Logits of one validation set fill the memory; upstream writes 25 defaults and a length of 20 into the config."""
    trainer = validated(tmp_path)
    config, generation = trainer.model.config, trainer.model.generation_config
    generation.max_length = None
    before = generation.to_dict(), config.to_dict()
    assert trainer.predict(RandomWindows(5)).predictions.shape == (5, 10)
    assert (generation.to_dict(), config.to_dict()) == before
    output = validated(tmp_path, predict_with_generate=False).predict(RandomWindows(5))
    assert output.predictions is None
    assert output.metrics["test_kl"] > 0


def test_generation_settings_reach_every_set_and_unknown_ones_are_refused(tmp_path, monkeypatch):
    """Upstream drops them for the sets of a dictionary."""
    seen = []
    monkeypatch.setattr(
        "hf_distil_whisper.training.validation.generate_tokens",
        lambda *args, **kwargs: (
            seen.append((kwargs["num_beams"], kwargs["max_new_tokens"])) or generate_tokens(*args, **kwargs)
        ),
    )
    trainer = validated(tmp_path, evaluation=TWO_SETS)
    trainer.evaluate(num_beams=2, max_new_tokens=3)
    trainer.evaluate()
    assert seen == [(2, 3)] * 3 + [(1, 10)] * 3  # batches of 4 rows
    with pytest.raises(ValueError, match=r"unknown \['do_sample'\]"):
        trainer.evaluate(do_sample=True)
    validated(tmp_path, evaluation=TWO_SETS["one"], generation_max_length=None).evaluate()
    assert seen[-1] == (1, 224)


def test_kl_is_logged_beside_a_baseline_whose_loss_does_not_use_it(tmp_path):
    """Only so can a student trained on labels be compared with a distilled one."""
    trainer = trained(tmp_path, kl_weight=0.0, evaluation=RandomWindows(4), max_steps=1)
    metrics = trainer.evaluate()
    assert metrics["eval_kl"] > 0
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_pl"])
    assert logged(trainer, "kl") == []


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # Silence with an empty reference makes the rate infinite, or the run crash.
        ([(" The quick brown fox", " The quick brown fox"), ("", " The quick brown fox")], {"wer": 0.0}),
        ([("", "")], {}),
        # Special tokens in the text would be counted as errors of every row.
        ([("<|notimestamps|> Hello, World.", "<|0.00|> hello<|0.50|><|0.50|> world<|1.20|>")], {"wer": 0.0}),
    ],
    ids=["no words in the reference", "no words at all", "timestamps and case"],
)
def test_only_words_count_as_errors(pairs, expected):
    tokenizer = small_processor().tokenizer
    references, transcripts = (
        tokenizer([f"{text}<|endoftext|>" for text in texts], add_special_tokens=False, padding=True).input_ids
        for texts in zip(*pairs, strict=True)
    )
    labels = [[-100, *row] for row in references]
    metrics = WordErrorMetrics(small_processor(), "en")
    assert metrics(EvalPrediction(predictions=transcripts, label_ids=labels)) == expected


def test_the_normaliser_is_the_languages_unless_named(tmp_path):
    """The English one joins spoken digits: each string of digits would be a single word."""
    assert validated(tmp_path).compute_metrics.language == "en"
    assert validated(tmp_path, normalizer="basic").compute_metrics.language == "basic"


def test_each_label_is_scored_in_the_language_that_it_names():
    """In English "um" is a filler, in German a word: one normaliser for both gives rates that no evaluation gives."""
    tokenizer, metrics = small_processor().tokenizer, WordErrorMetrics(small_processor())
    for code, wer in (("en", 0.0), ("de", 0.5)):
        label, tokens = (
            np.array(
                [tokenizer(f"<|{code}|><|transcribe|><|notimestamps|>{text}", add_special_tokens=False).input_ids]
            )
            for text in (" um zehn", " zehn")
        )
        assert metrics(EvalPrediction(tokens, label))["wer"] == wer


def test_metrics_that_cannot_exist_are_refused_before_training(tmp_path):
    """The trainer would fail at the first evaluation, hours later."""
    sets = {"one": RandomWindows(4)}
    with pytest.raises(ValueError, match=r"no 'wer' with several validation sets \(one\).*macro_wer.*one_wer"):
        validated(tmp_path, processor=None, evaluation=sets, metric_for_best_model="wer")
    with pytest.raises(ValueError, match="macro_wer is an average over several validation sets"):
        validated(tmp_path, processor=None, evaluation=sets["one"], metric_for_best_model="eval_macro_wer")
    args, metrics = small_args(tmp_path, predict_with_generate=False), WordErrorMetrics(small_processor(), "en")
    with pytest.raises(ValueError, match="--predict_with_generate is off"):
        DistillationTrainer(*small_pair(), args, compute_metrics=metrics)
