"""What is printed and stored: rates in percent, nothing where there is nothing, and counts that give the rates."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from hf_distil_whisper.evaluation.evaluate import COUNTS, KINDS, ROW_FEATURES, EvaluationResult
from hf_distil_whisper.evaluation.results import (
    averages,
    averages_text,
    left_out_text,
    long_form_summary,
    long_form_table,
    results_table,
    robustness,
    save_results,
    summarise_results,
    worst_utterances,
)
from hf_distil_whisper.metrics import WordErrors
from toy_results import scored

RESULTS = {
    "read": {
        "model": scored([("the cat sat", "the bat sat"), ("a dog", "a dog down"), ("yes", "yes")], unread=1),
        "teacher": scored([("the cat sat", "the cat sat"), ("a dog", "a dog"), ("yes", "yes"), ("no", "no")]),
    },
    "silence": {"model": scored([("", "thank you")]), "teacher": scored([(None, "")])},
    "chinese": {
        "model": scored([("今天天气", "今天天汽"), ("很好", "很好")], "zh"),
        "teacher": scored([("今天天气", "今天天气"), ("很好", "很好")], "zh"),
    },
}
GROUPS = {"read": "in distribution", "silence": "out of distribution", "chinese": "out of distribution"}


def measured(errors: WordErrors, repeated: int = 0) -> EvaluationResult:
    return EvaluationResult(errors, [{"wer": None, "repeated_5grams": repeated}], 1.0, 2.0)


def test_the_table_prints_percentages_and_the_paired_test() -> None:
    """A fraction printed as per cent is a hundred times too good."""
    text = results_table(RESULTS, GROUPS)
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["set", "model", "WER", "%"]
    assert lines[1] == "in distribution:"
    row = lines[2].split()
    assert (row[:3], row[5:8]) == (["read", "model", "33.33"], ["16.67", "0.00", "16.67"])
    assert lines.count("out of distribution:") == 1
    assert len({len(line) for line in lines if line.startswith("read ")}) == 1
    for part in (
        "read: model +33.33 %",
        "3 utterances, 1 left out that only one was scored on",
        "silence: model cannot be compared",
        "16.67*",
        "(*) of characters",
    ):
        assert part in text


def test_no_reference_is_no_perfect_score_and_rows_in_no_rate_are_counted_below_the_table() -> None:
    """0 % over nothing would win every table; scored on fewer rows than another, a model looks better or worse."""
    line = results_table({"silence": RESULTS["silence"]}).splitlines()[1]
    assert "no reference" in line
    assert "0.00" not in line.split("no reference")[0]
    row = summarise_results(RESULTS)["silence"]["model"]
    assert (row["wer"], row["cer"], row["wer_interval"], row["empty_references"]) == (None, None, None, 0)
    silent = {"rows": 1, "seconds": 2.0, "words": 2, "rows_with_words": 1, "words_per_minute": 60.0, "share": 1.0}
    assert row["non_speech"] == silent
    assert "  silence: model 60.0 per minute, on 100% of 1 rows" in results_table(RESULTS, GROUPS).splitlines()
    assert summarise_results(RESULTS)["read"]["model"]["non_speech"] is None
    assert left_out_text(RESULTS).splitlines() == [
        "rows left out of the rates:",
        "  read, model: 1 could not be read",
        "  silence, teacher: 1 without a reference",
    ]
    assert left_out_text(RESULTS) in results_table(RESULTS, GROUPS)
    assert left_out_text({"chinese": RESULTS["chinese"]}) == ""


def test_stored_counts_give_the_stored_rates_and_those_of_the_rows(tmp_path: Path) -> None:
    """What is averaged over sets and shards later has to be what was measured."""
    save_results(RESULTS, str(tmp_path / "out"), GROUPS)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(stored) == set(RESULTS)
    for name, by_model in RESULTS.items():
        for model, result in by_model.items():
            row = stored[name][model]
            for prefix, field in COUNTS.items():
                assert WordErrors(*(row[prefix + kind] for kind in KINDS)) == getattr(result, field)
            rows = Dataset.from_parquet(str(tmp_path / "out" / f"{name}.{model}.parquet"), cache_dir=str(tmp_path))
            assert rows.features == ROW_FEATURES  # without references, too: columns of nulls join no others
            assert rows.to_list() == result.rows
    assert stored["read"]["model"]["wer"] == 2 / 6
    assert (stored["read"]["model"]["rows"], stored["read"]["model"]["unreadable_rows"]) == (3, 1)
    assert stored["read"]["model"]["against_teacher"]["unpaired"] == 1
    assert stored["silence"]["model"]["against_teacher"] is None
    worst = (tmp_path / "out" / "read.model.worst.txt").read_text()
    assert worst.count("REF:") == 2
    assert (tmp_path / "out" / "silence.model.worst.txt").read_text() == "\n"


def test_averages_are_over_sets_with_those_over_words_in_brackets() -> None:
    """One large set would hide what became of the small ones; one without words has no rate to average."""
    text = averages_text(RESULTS, GROUPS)
    read, chinese = RESULTS["read"]["model"].errors, RESULTS["chinese"]["model"].errors
    macro, micro = (read.wer + chinese.wer) / 2, (read + chinese).wer
    assert text.splitlines() == [
        "average WER % over sets (over all words):",
        f"  short form: model {100 * macro:.2f} ({100 * micro:.2f}), teacher 0.00 (0.00)",
    ]
    assert text in results_table(RESULTS, GROUPS)
    assert averages_text({"read": RESULTS["read"]}, GROUPS) == ""


def test_a_set_without_references_costs_no_other_its_robustness(tmp_path: Path) -> None:
    """Recordings of noise are scored beside sets with texts; hours of scoring would end in an error."""
    german = {"model": scored([("ja", "nein")], "de"), "teacher": scored([("ja", "ja"), ("gut", "nein")], "de")}
    results = {**RESULTS, "german": german}
    groups = {**GROUPS, "chinese": "in distribution", "german": "out of distribution"}
    (table_6,) = robustness(results, groups, "read").values()
    assert list(table_6.model) == ["read", "german"]
    without = groups | {"german": "long form"}
    assert robustness(results, without, "read") == {}
    assert "no effective robustness: read, or every set" in results_table(results, without, "read")
    # Table 6: the reference first, then the sets out of distribution.
    lines = results_table(results, groups, "read").split("\n\n", 1)[1].splitlines()
    assert lines[0] == "| Dataset | teacher | model | RER |"
    assert [line.split(" |")[0] for line in lines[2:5]] == ["| read", "| german", "| Average"]
    assert lines[-1].startswith("Effective robustness of model, reference read: ")
    save_results(results, str(tmp_path), groups, "read")
    stored = json.loads((tmp_path / "averages.json").read_text())
    assert stored["robustness"]["model"]["effective_robustness"] == pytest.approx(table_6.effective_robustness)
    assert stored["robustness"]["model"]["relative_error_rates"] == {"read": None, "german": 1.0}
    assert stored["averages"]["short form"]["teacher"] == pytest.approx({"macro": 1 / 6, "micro": 1 / 15})


def test_models_need_not_be_scored_on_the_same_sets(tmp_path: Path) -> None:
    alone = {"model": RESULTS["chinese"]["model"]}
    groups = {"chinese": "in distribution", "read": "in distribution", "new": "out of distribution"}
    results = {"chinese": alone, "read": RESULTS["read"], "new": alone}
    means = averages(results, groups)["in distribution"]
    assert means["model"]["macro"] == pytest.approx((1 / 3 + 1 / 6) / 2)
    assert means["teacher"]["macro"] == 0
    assert robustness(results, groups, "read") == {}
    save_results(results, str(tmp_path), groups, "read")
    assert json.loads((tmp_path / "averages.json").read_text())["averages"]["in distribution"] == means


def test_long_recordings_have_their_own_averages_and_tables(tmp_path: Path) -> None:
    """Tables 17 and 19: in distribution, out of it, and all; Table 8 is the mean of all."""
    calls = {"model": scored([("a b", "a b")]), "teacher": scored([("a b", "a c")])}
    results = {"talks": RESULTS["read"], "calls": calls, "songs": RESULTS["silence"]}
    groups = {"talks": "long form", **dict.fromkeys(("calls", "songs"), "long form out of distribution")}
    means = averages_text(results, groups).splitlines()[1:]
    assert means == ["  long form, all sets: model 16.67 (25.00), teacher 25.00 (11.11)"]
    save_results(results, str(tmp_path), groups)
    table = (tmp_path / "long_form.md").read_text()
    assert "| model | 0 | - | - | - | - |" in table
    assert "| songs | 5-Dup. | 0 | 0 |\n|  | IER | - | - |" in table
    assert "|  | WER | 33.3 | 0.0 |" in table


def test_tables_of_long_form_are_those_of_the_paper() -> None:
    """Table 19 and Table 8; worked by hand."""
    large, small = measured(WordErrors(90, 5, 3, 2), 40), measured(WordErrors(80, 12, 8, 10), 1)
    talks = {"large": large, "small": small}
    assert long_form_table({"talks": talks}).splitlines() == [
        "| Dataset | Metric | large | small |",
        "|---|---|---:|---:|",
        "| talks | 5-Dup. | 40 | 1 |",
        "|  | IER | 2.0 | 10.0 |",
        "|  | SER | 5.1 | 12.0 |",
        "|  | DER | 3.1 | 8.0 |",
        "|  | WER | 10.2 | 30.0 |",
    ]
    results = {"talks": talks, "calls": {"large": measured(WordErrors(50, 25, 25, 50), 2)}}
    table = long_form_table(results)
    assert "| calls | 5-Dup. | 2 | - |" in table
    assert "| Average | 5-Dup. | 21 | - |" in table
    assert table.endswith("|  | WER | 55.1 | - |")
    assert long_form_summary(results).splitlines()[::2] == [
        "| Model | 5-Dup. | IER | SER | DER | WER |",
        "| large | 21 | 26.0 | 15.1 | 14.0 | 55.1 |",
    ]


def test_worst_utterances_cost_the_most_errors() -> None:
    """By the rate alone, every "yes" transcribed as "yeah" would stand before a lost paragraph."""
    pairs = [("yes", "yeah"), ("the cat sat on the mat", "the"), ("a b", "a b"), (None, "uh"), ("a b c d e", "a x")]
    worst = worst_utterances(scored(pairs))
    assert [text.split(",")[0] for text in worst] == ["row-1: 5 errors", "row-4: 4 errors", "row-0: 1 error"]
    assert worst[2].split() == "row-0: 1 error, WER 100.0% REF: yes HYP: yeah S".split()
    assert len(worst_utterances(scored(pairs), k=1)) == 1
    with pytest.raises(ValueError, match="k >= 1, got 0"):
        worst_utterances(scored(pairs), k=0)
    # An hour in one line cannot be read; without spaces the whole sentence would be one wrong word.
    (text,) = worst_utterances(scored([("the cat sat on a mat " * 40, "the bat sat on a mat " * 40)]))
    assert max(map(len, text.splitlines())) <= 120
    (text,) = worst_utterances(scored([("今天天气", "今天汽")], "zh"))
    assert text.startswith("row-0: 2 errors, WER 50.0%")
