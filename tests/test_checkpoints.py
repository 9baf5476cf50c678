"""What lies in a saved checkpoint, what comes back from it, and which models go together."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    pipeline,
)

from hf_distil_whisper.checkpoints import (
    check_compatible,
    checkpoint_fingerprint,
    load_model,
    load_processor,
    repair_generation_config,
    save_checkpoint,
    weights_fingerprint,
)
from hf_distil_whisper.evaluation.evaluate import evaluate_model
from hf_distil_whisper.export.ctranslate2 import export_ctranslate2
from hf_distil_whisper.export.ggml import export_ggml
from hf_distil_whisper.export.onnx import export_onnx
from hf_distil_whisper.inference.transcribe import transcribe, transcribe_chunked, transcribe_sequential
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset
from toy_models import toy_audio, toy_processor, toy_rows, toy_whisper

RUNTIMES_READ = (
    "added_tokens.json config.json generation_config.json merges.txt model.safetensors normalizer.json "
    "preprocessor_config.json special_tokens_map.json tokenizer.json tokenizer_config.json vocab.json"
).split()
OFFICIAL = Path(__file__).parents[2] / "shared" / "whisper-files"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(toy_whisper(), toy_processor(), folder)
    return folder


def test_a_checkpoint_holds_every_file_that_other_runtimes_read(saved):
    """`WhisperProcessor.save_pretrained` leaves out what faster-whisper and whisper.cpp's converter open first."""
    assert {path.name for path in saved.iterdir()}.issuperset(RUNTIMES_READ)
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in saved.iterdir())
    preprocessor = json.loads((saved / "preprocessor_config.json").read_text())
    assert preprocessor["feature_size"] == 80
    vocabulary = json.loads((saved / "vocab.json").read_text())
    added = json.loads((saved / "added_tokens.json").read_text())
    tokenizer = toy_processor().tokenizer
    assert sorted({*vocabulary.values(), *added.values()}) == list(range(len(tokenizer)))
    assert added["<|0.02|>"] == tokenizer.convert_tokens_to_ids("<|0.02|>")


def test_model_and_processor_come_back_as_they_were_saved(saved):
    """A tokenizer that numbers its tokens anew makes every label wrong."""
    model, processor = load_model(saved), load_processor(saved)
    expected = toy_whisper().state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    text = "<|startoftranscript|><|notimestamps|> The quick brown fox.<|1.20|>"
    ids = toy_processor().tokenizer(text, add_special_tokens=False).input_ids
    assert processor.tokenizer(text, add_special_tokens=False).input_ids == ids
    audio = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    features = [
        p(audio, sampling_rate=16_000, return_tensors="np").input_features for p in (processor, toy_processor())
    ]
    np.testing.assert_array_equal(*features)
    # Without normalizer.json `tokenizer.normalize()` raises after loading.
    assert processor.tokenizer.normalize("Mr. Smith's COLOUR") == "mister smith is color"


def test_the_pipeline_opens_a_checkpoint_by_its_path_and_decodes_greedily(saved):
    """The pipeline's own default is 5 beams, which also switches off an assistant model."""
    recognise = pipeline("automatic-speech-recognition", model=str(saved))
    assert isinstance(recognise(np.zeros(16_000, dtype=np.float32), max_new_tokens=4)["text"], str)
    assert recognise.model.generation_config.num_beams == 1


def test_a_half_precision_checkpoint_is_loaded_in_float32_unless_asked(tmp_path):
    """It would otherwise be trained in half precision, where small steps are lost."""
    save_checkpoint(toy_whisper().to(torch.float16), toy_processor(), tmp_path)
    assert load_model(tmp_path).dtype == torch.float32
    assert load_model(tmp_path, dtype=torch.float16).dtype == torch.float16


def test_files_of_a_checkpoint_tell_other_weights_and_settings_apart(tmp_path):
    """The same folder may hold another model tomorrow; notes beside it do not count."""
    model = toy_whisper()
    save_checkpoint(model, toy_processor(), tmp_path / "first")
    save_checkpoint(model, toy_processor(), tmp_path / "second")
    first = checkpoint_fingerprint(tmp_path / "first")
    (tmp_path / "second" / "README.md").write_text("A card.")
    assert checkpoint_fingerprint(tmp_path / "second") == first
    model.generation_config.max_length = 40
    save_checkpoint(model, toy_processor(), tmp_path / "second")
    settings = checkpoint_fingerprint(tmp_path / "second")
    save_checkpoint(toy_whisper(seed=1), toy_processor(), tmp_path / "second")
    assert len({first, settings, checkpoint_fingerprint(tmp_path / "second")}) == 3


def test_a_teacher_in_half_precision_is_known_as_the_one_that_training_casts():
    """Labels made in bfloat16 and a training with --bf16 share a cache; the teacher is loaded in float32 there."""
    fingerprint = weights_fingerprint(toy_whisper().bfloat16())
    assert weights_fingerprint(toy_whisper(), torch.bfloat16) == fingerprint
    others = [weights_fingerprint(toy_whisper()), weights_fingerprint(toy_whisper(seed=1), torch.bfloat16)]
    assert len({fingerprint, *others}) == 3


def test_saving_leaves_the_model_alone_and_repairs_only_the_file(tmp_path):
    """A model whose config changes on every save would not be the one that was evaluated."""
    model = toy_whisper()
    model.generation_config.max_length = None
    model.generation_config.alignment_heads = [[1, 0], [9, 1]]
    before = model.generation_config.to_dict()
    save_checkpoint(model, toy_processor(), tmp_path)
    assert model.generation_config.to_dict() == before
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written["max_length"] == 448
    assert "alignment_heads" not in written


def test_alignment_heads_are_renumbered_dropped_or_kept():
    """Heads of layers that do not exist make faster-whisper crash; heads of the wrong layer give wrong times."""
    config = GenerationConfig(alignment_heads=[[0, 1], [2, 0], [5, 3]], max_length=448)
    assert repair_generation_config(config, 2, teacher_layers=[2, 5]).alignment_heads == [[0, 0], [1, 3]]
    assert "alignment_heads" not in repair_generation_config(config, 2, teacher_layers=[1, 4]).to_dict()
    assert "alignment_heads" not in repair_generation_config(config, 2).to_dict()
    assert repair_generation_config(config, 6).alignment_heads == config.alignment_heads


@pytest.mark.parametrize("length", [None, 20])
def test_the_librarys_length_of_20_tokens_is_replaced(length):
    """An evaluation writes it into configs without a length; transcripts would stop in mid-sentence."""
    assert repair_generation_config(GenerationConfig(max_length=length), 2).max_length == 448
    assert repair_generation_config(GenerationConfig(max_length=length), 2, max_length=64).max_length == 64
    assert repair_generation_config(GenerationConfig(max_length=225), 2).max_length == 225


def test_a_checkpoint_without_a_whisper_decoder_is_refused(tmp_path):
    """An audio classifier loads as a transcriber with a random decoder, with a warning only."""
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"expected a Whisper checkpoint.*got model_type 'bert'"):
        load_model(tmp_path / "bert")
    config = WhisperConfig(**{**toy_whisper().config.to_dict(), "architectures": None})
    WhisperForAudioClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"weights are missing.*they would be random"):
        load_model(tmp_path / "classifier")


def test_a_missing_checkpoint_names_what_was_expected(tmp_path):
    """The library's own message speaks of tokens and the Hub."""
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected a folder with config.json and model.safetensors"):
        load_model(tmp_path / "nowhere")
    toy_whisper().config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a folder with model.safetensors"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config.json and tokenizer.json"):
        load_processor(tmp_path)


def test_a_pickle_of_weights_is_not_read_and_the_way_to_convert_it_works(saved, tmp_path):
    """A message that asks for model.safetensors alone sends people to look for a file that was never there."""
    shutil.copytree(saved, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(toy_whisper().state_dict(), tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"got pytorch_model\.bin, a pickle") as error:
        load_model(tmp_path / "old")
    code = str(error.value).partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    weights = load_model(tmp_path / "old").state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in toy_whisper().state_dict().items())


def test_an_adapter_is_merged_into_its_base_model(saved, tmp_path):
    """A config without a `model_type` is all that transformers has to say of such a folder."""
    base = load_model(saved)
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"base_model_name_or_path": str(saved)}))
    expected = adapted.merge_and_unload().state_dict()
    weights = load_model(tmp_path / "adapter").state_dict()
    assert all(torch.allclose(weight, expected[name], atol=1e-7) for name, weight in weights.items())
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights[name], base.state_dict()[name])
    config.write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="names no base model"):
        load_model(tmp_path / "adapter")


def test_what_old_versions_left_in_a_checkpoint_is_mended_as_it_is_loaded(saved, tmp_path):
    """20 tokens cut a transcript; the clean-up warns at every start, and no padding token means no batches.

    All three would be in each student too.
    """
    shutil.copytree(saved, tmp_path / "old")
    (tmp_path / "old" / "special_tokens_map.json").unlink()  # it names the padding token too
    for file, entry in (
        ("generation_config", {"max_length": 20}),
        ("tokenizer_config", {"clean_up_tokenization_spaces": True, "pad_token": None}),
    ):
        path = tmp_path / "old" / f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    model, processor = load_model(tmp_path / "old"), load_processor(tmp_path / "old")
    assert model.generation_config.max_length == 448
    assert not processor.tokenizer.clean_up_tokenization_spaces
    save_checkpoint(model, processor, tmp_path / "student")
    written = json.loads((tmp_path / "student" / "tokenizer_config.json").read_text())
    assert not written["clean_up_tokenization_spaces"]
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / "student"))
    silence = np.zeros(16_000, dtype=np.float32)
    assert len(recognise([silence] * 2, batch_size=2, max_new_tokens=4)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 2000}, "The student has 1909 tokens, the teacher 2000"),
        ({"num_mel_bins": 128}, "The student has 80 mel bins, the teacher 128"),
        ({"max_source_positions": 500}, "The student has 1500 encoder positions, the teacher 500"),
        ({"decoder_start_token_id": 302}, "start a transcript with different tokens"),
    ],
)
def test_models_with_other_tokens_mel_bins_or_windows_are_refused(changes, message):
    """Each pair would train without an error, towards nonsense."""
    student = toy_whisper(decoder_layers=2)
    check_compatible(student, toy_whisper(), toy_processor())
    check_compatible(student, None, None)
    with pytest.raises(ValueError, match=message):
        check_compatible(student, toy_whisper(**changes), None)


@pytest.mark.parametrize(
    ("changes", "extractor", "message"),
    [
        ({}, {"feature_size": 128}, "makes 128 mel bins, the model expects 80"),
        ({}, {"feature_size": 80, "chunk_length": 10}, "windows of 1000 frames, the model expects 3000"),
        ({"vocab_size": 1000}, {}, "The tokenizer has 1909 tokens, the model only 1000"),
        ({"decoder_start_token_id": 302}, {}, "startoftranscript.* is token 301 of the tokenizer, but 302"),
    ],
)
def test_a_processor_of_another_model_is_refused(changes, extractor, message):
    """Token ids and mel bins of another family fit in size and mean something else."""
    processor = WhisperProcessor(WhisperFeatureExtractor(**extractor), toy_processor().tokenizer)
    with pytest.raises(ValueError, match=message):
        check_compatible(toy_whisper(**changes), None, processor)


@pytest.mark.parametrize(
    ("entries", "added", "message"),
    [
        (
            {"no_timestamps_token_id": 408},
            [],
            r"<\|notimestamps\|> is token 407 of the tokenizer, but 408 of the model",
        ),
        ({"lang_to_id": {"<|de|>": 302}}, [], r"<\|de\|> is token 304 of the tokenizer, but 302 of the model"),
        ({}, ["<|foo|>", "Kubernetes"], r"2 tokens behind the timestamps, '<\|foo\|>' for one.*tokenizer.tokenize"),
    ],
)
def test_a_tokenizer_with_special_tokens_at_other_ids_or_new_tokens_is_refused(entries, added, message):
    """Of large-v3 every timestamp is one id later; what is added to a vocabulary counts as a time beyond 30 s."""
    processor, model = copy.deepcopy(toy_processor()), toy_whisper(vocab_size=2000)  # padded, which is allowed
    check_compatible(model, None, processor)
    processor.tokenizer.add_tokens(added)
    vars(model.generation_config).update(entries)
    with pytest.raises(ValueError, match=message):
        check_compatible(model, None, processor)


PAIRED = {
    "transcribe": lambda model, processor, _: transcribe(model, processor, toy_audio(1)),
    "transcribe_chunked": lambda model, processor, _: transcribe_chunked(model, processor, toy_audio(1)),
    "transcribe_sequential": lambda model, processor, _: transcribe_sequential(model, processor, toy_audio(1)),
    "evaluate_model": lambda model, processor, _: evaluate_model(model, toy_rows(1), processor),
    "pseudo_label_dataset": lambda model, processor, folder: pseudo_label_dataset(
        Dataset.from_list(toy_rows(1)), model, processor, output_dir=folder / "labels"
    ),
    "save_checkpoint": lambda model, processor, folder: save_checkpoint(model, processor, folder / "model"),
    "export_ctranslate2": lambda model, processor, folder: export_ctranslate2(model, processor, folder / "ct2"),
    "export_ggml": lambda model, processor, folder: export_ggml(model, processor, folder / "ggml"),
    "export_onnx": lambda model, processor, folder: export_onnx(model, processor, folder / "onnx"),
}


@pytest.mark.parametrize("name", PAIRED)
def test_no_function_takes_a_model_with_the_processor_of_another(name, tmp_path):
    """The multilingual model with the English tokenizer writes fluent nonsense, and a checkpoint passes it on."""
    with pytest.raises(ValueError, match=r"startoftranscript.* is token 301 of the tokenizer, but 302 of the model"):
        PAIRED[name](toy_whisper(decoder_start_token_id=302), toy_processor(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def cut_without_its_config(model):
    model.model.decoder.layers = model.model.decoder.layers[:2]


def replace_its_head(model):
    model.proj_out = torch.nn.Linear(16, model.config.vocab_size, bias=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_without_its_config, r"layers\.2.* has shape none, expected \[16, 16\].*decoder_layers"),
        (replace_its_head, r"`tie_word_embeddings` is true.*Set it to false"),
        (lambda model: get_peft_model(model, LoraConfig(target_modules=["q_proj"])), r"got PeftModel\. Merge"),
        (lambda model: LoraModel(model, LoraConfig(target_modules=["q_proj"]), "default"), r"carries LoRA adapters"),
    ],
)
@pytest.mark.parametrize("name", ["save_checkpoint", "export_ctranslate2", "export_ggml", "export_onnx"])
def test_what_a_file_would_lose_is_refused(name, change, message, tmp_path):
    """Transformers writes the embedding as the head, and leaves it to the reader to invent missing layers."""
    model = toy_whisper()
    changed = change(model)
    with pytest.raises(ValueError, match=message):
        PAIRED[name](changed if isinstance(changed, PeftModel) else model, toy_processor(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs ../shared/whisper-files")
@pytest.mark.parametrize("name", ["whisper-tiny", "whisper-tiny.en"])
def test_the_official_vocabularies_survive_a_round_trip(name, tmp_path):
    """whisper.cpp has these ids built in: a file that differs from the original reads other words."""
    config = WhisperConfig.from_pretrained(OFFICIAL / name)
    config.update({"d_model": 16, "encoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16})
    config.update({"encoder_attention_heads": 2, "decoder_attention_heads": 2})
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(OFFICIAL / name)
    processor = load_processor(OFFICIAL / name)
    check_compatible(model, model, processor)
    save_checkpoint(model, processor, tmp_path)
    for file in ("vocab.json", "normalizer.json"):
        assert json.loads((tmp_path / file).read_text()) == json.loads((OFFICIAL / name / file).read_text())
    merges = [(folder / "merges.txt").read_text().split("\n", 1)[1] for folder in (tmp_path, OFFICIAL / name)]
    assert merges[0] == merges[1]
    text = "<|startoftranscript|> Hello, wörld.<|1.20|><|endoftext|>"
    tokenizers = [WhisperTokenizer.from_pretrained(folder) for folder in (tmp_path, OFFICIAL / name)]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for tokenizer in tokenizers]
    assert ids[0] == ids[1]
    reloaded = load_model(tmp_path)
    assert reloaded.generation_config.forced_decoder_ids is None
    assert reloaded.generation_config.alignment_heads == model.generation_config.alignment_heads
    # Many fine-tuned checkpoints have no generation_config.json: nothing could be generated with them.
    (tmp_path / "generation_config.json").unlink()
    mended, published = (one.generation_config.to_dict() for one in (load_model(tmp_path), model))
    for entry in ("is_multilingual", "lang_to_id", "task_to_id", "no_timestamps_token_id"):
        assert mended.get(entry) == published.get(entry)
    assert mended["prev_sot_token_id"] == processor.tokenizer.convert_tokens_to_ids("<|startofprev|>")
