"""Tokens of a batch of windows: the same as transformers', bounded, without side effects, with right statistics."""

import copy

import pytest
import torch

from hf_distil_whisper.inference.generation import GenerationSettings, generate_tokens
from hf_distil_whisper.inference.prompt import max_generated_tokens, timestamp_begin
from hf_distil_whisper.metrics import language_code
from talking_models import count_encoder_windows, multilingual_whisper, talking_whisper
from talking_models import toy_windows as windows
from toy_models import toy_processor, toy_whisper


@pytest.mark.parametrize("languages", [["de", None, "Hindi", "en"], [None] * 4])
def test_windows_of_one_batch_may_differ_in_language(languages: list[str | None]) -> None:
    """Each gives what it gives alone, so that labels do not depend on `batch_size`; None is detected for each."""
    model = multilingual_whisper()
    features = windows(model)
    ids = model.detect_language(features)
    detected = {index: token.strip("<|>") for token, index in model.generation_config.lang_to_id.items()}
    assert len(set(ids.tolist())) > 1
    together = generate_tokens(model, features, languages=languages, max_new_tokens=50)
    for row, (language, sequence) in enumerate(zip(languages, together, strict=True)):
        code = language_code(language) if language else detected[int(ids[row])]
        assert sequence.language == code
        assert (sequence.language_prob is None) == (language is not None)
        alone = generate_tokens(model, features[row : row + 1], language=code, max_new_tokens=50)
        assert alone[0].tokens == sequence.tokens
    start = torch.full((4, 1), model.generation_config.decoder_start_token_id)
    scores = model(features, decoder_input_ids=start).logits[:, -1, list(model.generation_config.lang_to_id.values())]
    likeliest = scores.double().softmax(dim=1).max(dim=1).values
    for sequence, probability in zip(together, likeliest.tolist(), strict=True):
        assert sequence.language_prob is None or sequence.language_prob == pytest.approx(probability, rel=1e-5)
    with pytest.raises(ValueError, match="one for each of 4 windows, got 2"):
        generate_tokens(model, features, languages=["de", "en"])


def test_settings_come_as_an_object_or_as_keywords() -> None:
    """Keywords replace fields of the object; an unknown one would be ignored silently."""
    model = talking_whisper(4)
    features, settings = windows(model, 2), GenerationSettings(max_new_tokens=10, num_beams=2)
    for changes, keywords in (({}, {"num_beams": 2}), ({"num_beams": 1}, {})):
        expected = generate_tokens(model, features, max_new_tokens=10, **keywords)
        assert generate_tokens(model, features, settings=settings, **changes) == expected
    with pytest.raises(TypeError, match="beams"):
        generate_tokens(model, features, beams=2)
    for name in ("num_beams", "batch_size", "token_budget", "draft_length"):
        with pytest.raises(ValueError, match=f"`{name}` is 0, expected at least 1"):
            GenerationSettings(**{name: 0})


@pytest.mark.parametrize("return_timestamps", [False, True])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_tokens_are_those_of_transformers_generate(return_timestamps: bool, num_beams: int) -> None:
    """Rules for suppressed tokens that differ from transformers' would change every label silently."""
    model = talking_whisper()
    features = windows(model)
    options = {"num_beams": num_beams, "return_timestamps": return_timestamps}
    ours = generate_tokens(model, features, max_new_tokens=40, **options)
    config = copy.deepcopy(model.generation_config)
    if not return_timestamps:
        config.suppress_tokens += range(timestamp_begin(model), model.config.vocab_size)
    config.max_length = 40
    theirs = model.generate(features, generation_config=config, force_unique_generate_call=True, **options)
    prefix = 1 if return_timestamps else 2
    end = config.eos_token_id
    expected = [(row[: row.index(end)] if end in row else row) for row in theirs[:, prefix:].tolist()]
    assert [sequence.tokens for sequence in ours] == expected
    assert any(not sequence.truncated for sequence in ours)


def test_begin_suppressed_token_never_comes_first_but_may_come_later() -> None:
    """Suppressing at a wrong position either lets an empty transcript through or changes the text."""
    model = talking_whisper(end_gain=0.3)
    features = windows(model, 1)
    free = generate_tokens(model, features, max_new_tokens=30)[0].tokens
    model.generation_config.begin_suppress_tokens = [free[0]]
    bound = generate_tokens(model, features, max_new_tokens=30)[0].tokens
    assert bound[0] != free[0]
    model.generation_config.begin_suppress_tokens = [free[-1]]
    assert generate_tokens(model, features, max_new_tokens=30)[0].tokens[-1] == free[-1]


def test_untrained_model_stays_within_its_length_and_is_marked_as_truncated() -> None:
    """Transformers' loop over windows gave 190 tokens for 10 on an untrained student, and can go on for ever."""
    model = toy_whisper()
    sequences = generate_tokens(model, windows(model, 2), max_new_tokens=10)
    assert [(len(sequence.tokens), sequence.truncated) for sequence in sequences] == [(10, True), (10, True)]
    whole = generate_tokens(model, windows(model, 1))[0]
    assert len(whole.tokens) == max_generated_tokens(model, return_timestamps=False) == 448 - 2
    for beyond in (0, 447):  # an index error deep in the decoder otherwise
        with pytest.raises(ValueError, match="expected 1 to 446"):
            generate_tokens(model, windows(model, 1), max_new_tokens=beyond)


def test_timestamps_come_only_where_asked_for() -> None:
    """Without suppression a model that likes timestamps puts them into plain texts, where they count as errors."""
    model = talking_whisper()
    first_timestamp = timestamp_begin(model)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[first_timestamp:] *= 3
    plain = generate_tokens(model, windows(model), max_new_tokens=20)
    timed = generate_tokens(model, windows(model), max_new_tokens=20, return_timestamps=True)
    assert all(token < first_timestamp for sequence in plain for token in sequence.tokens)
    assert all(sequence.tokens[0] >= first_timestamp for sequence in timed)


def test_generation_leaves_model_and_config_as_they_are() -> None:
    """Evaluation during training would otherwise write its lengths into every checkpoint saved later."""
    model = talking_whisper()
    model.config.use_cache = False
    generation, config = model.generation_config.to_dict(), model.config.to_dict()
    generate_tokens(model, windows(model), num_beams=2, max_new_tokens=5, return_timestamps=True, statistics=True)
    assert model.generation_config.to_dict() == generation
    assert model.config.to_dict() == config


@pytest.mark.parametrize("language", ["en", None])
def test_encoder_runs_once_per_window(language: str | None) -> None:
    """Language detection and statistics must reuse its hidden states: the encoder is most of the work."""
    model = multilingual_whisper()
    features = windows(model)
    count = count_encoder_windows(model)
    generate_tokens(model, features, max_new_tokens=5, language=language, statistics=True)
    assert count() == len(features)


@pytest.mark.parametrize("return_timestamps", [False, True])
def test_statistics_are_those_of_a_plain_forward_pass(return_timestamps: bool) -> None:
    """A shift by one position gives plausible numbers that mean nothing."""
    model = talking_whisper(4)
    features = windows(model)
    options = {"return_timestamps": return_timestamps, "statistics": True}
    sequences = generate_tokens(model, features, max_new_tokens=10, **options)
    assert {sequence.truncated for sequence in sequences} == {False, True}
    settings = model.generation_config
    prefix = [settings.decoder_start_token_id] + [settings.no_timestamps_token_id] * (not return_timestamps)
    for window, sequence in zip(features, sequences, strict=True):
        row = prefix + sequence.tokens + [settings.eos_token_id] * (not sequence.truncated)
        with torch.no_grad():
            logits = model(window.unsqueeze(0), decoder_input_ids=torch.tensor([row])).logits[0]
        log_probs = [logits[i - 1].log_softmax(0)[row[i]].item() for i in range(len(prefix), len(row))]
        assert sequence.mean_log_prob == pytest.approx(sum(log_probs) / len(log_probs), rel=1e-4)
        no_speech = toy_processor().tokenizer.convert_tokens_to_ids("<|nospeech|>")
        assert sequence.no_speech_prob == pytest.approx(logits[0].softmax(0)[no_speech].item(), rel=1e-4)


def test_fixed_number_of_tokens_is_exact() -> None:
    """Latency at 100 tokens is measured on models that would stop at 3."""
    model = talking_whisper(end_gain=2.0)
    assert generate_tokens(model, windows(model, 1), max_new_tokens=30)[0].tokens == []
    sequences = generate_tokens(model, windows(model, 2), max_new_tokens=30, min_new_tokens=30)
    assert [len(sequence.tokens) for sequence in sequences] == [30, 30]


def test_model_in_half_precision_transcribes_and_scores() -> None:
    """Float32 features in a bfloat16 encoder fail; scores summed in bfloat16 are off in the second digit."""
    model = talking_whisper(4).to(torch.bfloat16)
    features = windows(model, 2)
    assert features.dtype == torch.bfloat16
    sequences = generate_tokens(model, features, max_new_tokens=10, statistics=True)
    assert all(sequence.mean_log_prob < 0 for sequence in sequences)


def test_hidden_states_replace_the_features() -> None:
    """Evaluation while training has them already: running the encoder again would double its work."""
    model = talking_whisper(4)
    features = windows(model)
    states = model.get_encoder()(features).last_hidden_state
    expected = generate_tokens(model, features, max_new_tokens=20, statistics=True)
    count = count_encoder_windows(model)
    assert generate_tokens(model, None, encoder_hidden_states=states, max_new_tokens=20, statistics=True) == expected
    assert count() == 0
    with pytest.raises(ValueError, match="got neither"):
        generate_tokens(model, None)


def test_missing_entry_of_the_generation_config_is_named() -> None:
    """A generation config made from scratch has none of Whisper's entries and fails deep inside, without a name."""
    model = toy_whisper()
    del model.generation_config.no_timestamps_token_id
    with pytest.raises(ValueError, match="no `no_timestamps_token_id`"):
        generate_tokens(model, windows(model, 1), max_new_tokens=5)
