"""Model cards: metadata that the Hub reads, text that is true, code that runs, and no secret."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from matplotlib.figure import Figure
from transformers import TrainingArguments

from hf_distil_whisper.evaluation.results import save_results
from hf_distil_whisper.hub.callbacks import ModelCardCallback
from hf_distil_whisper.hub.model_card import (
    CardFacts,
    Evaluation,
    check_card,
    curves_over_steps,
    eval_result_files,
    find_license,
    generate_model_card,
    inline,
    latest_word_errors,
    loss_curves,
    public_name,
    public_url,
    read_evaluation,
    save_model_card,
    teacher_facts,
    versions,
    word_error_curves,
)
from hf_distil_whisper.hub.push import folder_files, student_files
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hub_server import ALICE, HubServer
from toy_files import write_toy_model
from toy_models import toy_audio, toy_whisper
from toy_results import scored

GOLDEN = Path(__file__).with_name("expected_model_card.md")
LOG = [
    {"loss": 3.0, "kl": 1.0, "pl": 2.0, "step": 1},
    {"eval_test_loss": 2.5, "eval_test_wer": 0.4, "eval_macro_wer": 0.4, "step": 1},
    {"loss": 2.0, "kl": 0.5, "pl": 1.5, "step": 2},
    {"eval_test_loss": 2.0, "eval_test_wer": 0.2, "eval_macro_wer": 0.2, "step": 2},
]
"""Of a training of two steps, each followed by a validation."""
LIBRISPEECH = {"path": "openslr/librispeech_asr", "config": "clean", "split": "test"}


def card_of(**facts: Any) -> ModelCard:
    """The card of a toy."""
    return generate_model_card(toy_whisper(), **{"name": "me/toy", **facts})


def test_the_whole_card(tmp_path: Path) -> None:
    """A golden test: read the difference, and if it is meant, write the new text into the file."""
    args = DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=100, learning_rate=1e-4)
    card = generate_model_card(
        toy_whisper(decoder_layers=2),
        name="someone/distil-toy.en",
        teacher="openai/whisper-toy.en",
        teacher_revision="9ccd4bd39e5a01b1",
        teacher_config=toy_whisper().config,
        teacher_parameters=toy_whisper().num_parameters(),
        datasets=["openslr/librispeech_asr", "my_recordings"],
        dataset_licenses={"openslr/librispeech_asr": "cc-by-4.0"},
        license="mit",
        evaluation=Evaluation(
            results={"test": 0.0512, "unseen": 0.1, "talks": 0.2},
            teacher_results={"test": 0.05, "talks": 0.19},
            groups={"test": "in distribution", "unseen": "out of distribution", "talks": "long form"},
            rtf=(0.01, 0.02),
            speed=1.9,
        ),
        result_sources={"test": LIBRISPEECH},
        figures={"Word error rate over training steps": "wer_curves.png"},
        step=50,
        run_url="https://wandb.ai/someone/distil/runs/1",
        training_args=args,
    )
    text = str(card)
    for package, number in versions().items():
        text = text.replace(f"| {package} | {number} |", f"| {package} | <version> |")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_what_is_not_known_is_left_out() -> None:
    """A card with a made-up licence, teacher or score is worse than a short one."""
    card = card_of()
    assert "Not measured yet." in card.text
    assert not [word for word in ("assistant", "licence") if word in card.text]
    assert (card.data.license, card.data.eval_results) == (None, None)


def test_a_multilingual_model_gets_its_language() -> None:
    model = toy_whisper()
    model.generation_config.is_multilingual = True
    card = generate_model_card(model, name="student", language="hi")
    assert '"language": "hi", "task": "transcribe"' in card.text
    assert "distilled for the language `hi`" in card.text
    assert card.data.language == "hi"


def test_a_given_optimizer_is_named(tmp_path: Path) -> None:
    """The training arguments hold a learning rate that was never used: a card with it misleads who repeats the run."""
    args = DistillationTrainingArguments(output_dir=str(tmp_path), learning_rate=5e-5)
    named = card_of(training_args=args, optimizer="Muon (2e-3)").text
    assert "| optim | Muon (2e-3) |" in named
    assert "5e-05" not in named
    assert "| learning_rate | 5e-05 |" in card_of(training_args=args).text


def test_the_code_in_the_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code in a card is what most users of a model ever read of it."""
    monkeypatch.chdir(tmp_path)
    write_toy_model(Path("teacher"))
    write_toy_model(Path("student"))  # the same weights: an assistant needs the teacher's encoder
    soundfile.write("speech.flac", toy_audio(1.0), 16_000)
    soundfile.write("talk.flac", toy_audio(2.0), 16_000)
    card = generate_model_card(toy_whisper(), name="student", teacher="teacher")
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    words = ("pipeline", "transcribe_chunked", "create_assistant", "faster_whisper")
    assert [word in block for word, block in zip(words, blocks, strict=True)] == [True] * 4
    for block in blocks:
        exec(block.replace('"max_new_tokens": 200', '"max_new_tokens": 20'), {})
    assert capsys.readouterr().out.count("\n") == 4


# Scores


def test_results_of_an_evaluation_are_read(tmp_path: Path) -> None:
    """A card that is filled in by hand holds the scores of the model before."""
    by_model = {"model": scored([("a cat", "a dog")]), "teacher": scored([("a cat", "a cat")])}
    results = {"test": by_model, "talks": by_model}
    save_results(results, str(tmp_path), {"test": "out of distribution", "talks": "long form"})
    scores = read_evaluation(tmp_path)
    assert scores.results == {"test": 0.5, "talks": 0.5}
    assert scores.teacher_results["test"] == 0.0
    assert scores.groups == {"test": "out of distribution", "talks": "long form"}
    assert scores.rtf[0] == pytest.approx(by_model["model"].rtf)  # of the short form alone
    card = card_of(teacher="openai/whisper-toy.en", evaluation=tmp_path)
    assert "| WER %, test (out of distribution) | 50.00 |" in card.text
    assert len(card.data.eval_results) == 2


def test_a_set_without_references_has_no_rate(tmp_path: Path) -> None:
    row = {"wer": None, "group": "in distribution", "seconds": 1.0, "audio_seconds": 2.0}
    row["non_speech"] = {"words_per_minute": 3.0}
    scored = row | {"wer": 0.25, "non_speech": None}
    (tmp_path / "results.json").write_text(json.dumps({"silent": {"model": row}, "test": {"model": scored}}))
    scores = read_evaluation(tmp_path)
    assert scores.results == {"test": 0.25}
    assert scores.teacher_results == {}
    assert scores.rtf == (0.5, None)
    assert "| words per minute where nothing is spoken, silent | 3.0 |" in card_of(evaluation=tmp_path).text
    with pytest.raises(ValueError, match="'other'"):
        read_evaluation(tmp_path, student="other")
    with pytest.raises(FileNotFoundError, match="--output_dir"):
        read_evaluation(tmp_path / "nowhere")


def test_facts_and_their_fields_give_the_same_card() -> None:
    """A misspelt field that is ignored is missing on the card, which nobody notices."""
    fields = {"teacher": "openai/whisper-toy.en", "license": "mit"}
    facts = CardFacts("me/toy", **fields)
    cards = [card_of(**fields), generate_model_card(toy_whisper(), facts)]
    cards.append(generate_model_card(toy_whisper(), replace(facts, license=None), license="mit"))
    assert len(set(map(str, cards))) == 1
    for refuses in (ModelCardCallback, card_of):
        with pytest.raises(TypeError, match="licence"):
            refuses(licence="mit")
    facts = CardFacts("me/toy", evaluation=Evaluation(results={"a": 0.1, "b": 0.2}), results={"a": 0.3})
    scores = replace(facts, groups={"b": "long form"}).scores()  # what is given wins over an evaluation
    assert scores == Evaluation({"a": 0.3, "b": 0.2}, groups={"b": "long form"})


def test_eval_results_name_data_sets_of_the_hub_only(tmp_path: Path) -> None:
    """The Hub puts these on the leaderboard of the data set: a folder's name would land on somebody else's."""
    sources = {
        "clean": LIBRISPEECH | {"revision": "abc"},
        "other": LIBRISPEECH | {"config": "other", "revision": None},
        "mine": {"path": str(tmp_path), "config": None, "split": "test"},
    }
    rates = {"clean": 0.0312, "other": 0.07, "mine": 0.5, "unknown": 0.6}
    files = eval_result_files(rates, sources, date="2026-01-01")
    assert list(files) == ["openslr--librispeech_asr.yaml"]
    entries = parse_eval_result_entries(yaml.safe_load(yaml.safe_dump(files["openslr--librispeech_asr.yaml"])))
    known = [(entry.task_id, entry.value, entry.dataset_revision, entry.date) for entry in entries]
    assert known == [("clean", 3.12, "abc", "2026-01-01"), ("other", 7.0, None, "2026-01-01")]
    card = card_of(results={"clean": 0.0312, "mine": 0.5}, result_sources=sources)
    assert [result.dataset_type for result in card.data.eval_results] == ["openslr/librispeech_asr", "mine"]
    assert str(tmp_path) not in str(card)


# Files beside the weights, names and secrets


def test_curves_are_those_of_the_log() -> None:
    assert word_error_curves(LOG) == {"test": [(1, 0.4), (2, 0.2)]}
    assert word_error_curves([{"eval_wer": 0.1, "step": 3}]) == {"validation": [(3, 0.1)]}
    curves = loss_curves(LOG)
    assert curves["loss, training"] == [(1, 3.0), (2, 2.0)]
    assert curves["loss, test"] == [(1, 2.5), (2, 2.0)]
    assert set(curves) == {"loss, training", "kl, training", "pl, training", "loss, test"}
    log = [{"eval_a_wer": 0.5}, {"eval_a_wer": 0.4, "eval_b_wer": 0.2, "eval_macro_wer": 0.3, "eval_a_kl": 1.0}]
    assert latest_word_errors(log) == {"a": 0.4, "b": 0.2}


def test_the_hub_takes_a_saved_card_with_its_pictures_and_results(hub: HubServer, tmp_path: Path) -> None:
    """Metadata that it refuses stop a push at its very end; a picture that is not uploaded is a hole in the page."""
    sources = {"test": LIBRISPEECH}
    card = save_model_card(tmp_path, toy_whisper(), name="me/toy", log_history=LOG, result_sources=sources)
    written = {path for path in folder_files(tmp_path) if not path.startswith("hf-home")}
    assert written == {"README.md", "loss_curves.png", "wer_curves.png", ".eval_results/openslr--librispeech_asr.yaml"}
    assert set(student_files(tmp_path, only_card=True)) == written
    assert "![Word error rate over training steps](wer_curves.png)" in card.text
    assert "![Loss per token over training steps](loss_curves.png)" in card.text
    assert "| WER %, test | 20.00 |" in card.text
    (entry,) = yaml.safe_load((tmp_path / ".eval_results/openslr--librispeech_asr.yaml").read_text())
    assert entry["value"] == 20.0
    assert check_card(card) is None
    save_model_card(tmp_path, toy_whisper(), name="me/toy")  # nothing of an earlier card stays
    assert student_files(tmp_path) == ["README.md"]


def test_a_card_is_checked_without_ever_failing(hub: HubServer) -> None:
    """The check is a help: a Hub that is down must not end what it belongs to."""
    wrong = card_of(license="my own licence")
    assert "license" in str(check_card(wrong))
    hub.stop()
    assert check_card(wrong) is None


def test_names_with_markup_are_shown_and_do_nothing(tmp_path: Path) -> None:
    """Set names and folders come from users and file names: one `|` shifts every column behind it."""
    name = 'a|b\n# c <script> "d" [x](http://y)'
    card = card_of(teacher=name, results={name: 0.5}, datasets=[name])
    assert not [markup for markup in ("<script>", "\n# c", "[x](") if markup in card.text]
    rows = [line for line in card.text.splitlines() if line.startswith("| WER")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 3
    assert ModelCard(str(card)).data.eval_results[0].metric_value == 50.0
    assert inline("one\r\ntwo") == "one two"


def test_no_secret_and_no_folder_reaches_a_card(tmp_path: Path) -> None:
    """A card is public: it is the first place where somebody looks for a token."""
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, hub_token=ALICE)
    (tmp_path / "corpus").mkdir()
    address = f"https://me:{ALICE}@host.example/rows.parquet?token={ALICE}"
    card = card_of(
        name=str(tmp_path / "my-student"),
        teacher="/data/elsewhere/my-teacher",
        base_model=f"{tmp_path}/gone/base",
        datasets=[address, "~/speech", f"a{ALICE}", str(tmp_path / "corpus")],
        run_url=f"https://me:{ALICE}@wandb.example/run?key={ALICE}",
        training_args=args,
    )
    text = str(card)
    for secret in (ALICE, str(tmp_path), "/data/elsewhere", "~/"):
        assert secret not in text
    assert card.data.base_model is None
    assert card.data.datasets is None
    for public in (
        'model="my-student"', "distilled from my-teacher", "It began as base.", ", corpus.",
        "https://host.example/rows.parquet, speech", "<https://wandb.example/run>",
    ):  # fmt: skip
        assert public in text


def test_public_forms_of_names_and_addresses() -> None:
    assert public_name("openai/whisper-tiny") == "openai/whisper-tiny"
    assert public_name("../runs/teacher/") == "teacher"
    assert public_name("C:\\models\\teacher") == "teacher"
    assert public_name("s3://key:secret@bucket/labels?x=1") == "s3://bucket/labels"
    assert public_url("javascript:alert(1)") == public_url("https://a.example/x y") == ""


def test_licence_and_revision_are_those_of_the_teachers_card(hub: HubServer, tmp_path: Path) -> None:
    """A licence that is guessed, or left behind, is worse than a missing one."""
    folder = write_toy_model(tmp_path / "toy")
    (tmp_path / "toy" / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n# Toy\n")
    HfApi().create_repo("alice/toy")
    commit = HfApi().upload_folder(repo_id="alice/toy", folder_path=folder)
    teacher_facts("alice/toy")  # loads the config, as a training has loaded the whole model
    for name, revision in ((folder, None), ("alice/toy", commit.oid)):
        facts = teacher_facts(name)
        assert (facts.license, facts.teacher_revision) == ("cc-by-sa-4.0", revision)
        assert facts.teacher_config.decoder_layers == 4
    hub.stop()
    assert find_license("alice/other") is None  # nobody answers


def test_curves_of_a_training_stand_over_whole_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Step 1.5 does not exist; and a validation that started later must not be drawn from the first step."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    curves_over_steps({"training": [(1, 3.0), (4, 2.0)], "test": [(2, 2.5)]}, "loss per token", tmp_path / "loss.png")
    axes = figures[0].axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 4], [2]]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert axes.get_ylim()[0] == 0
