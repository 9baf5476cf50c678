"""The Hub on loopback: the real client's calls pass, and what the real one refuses is refused."""

from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

from hub_server import ALICE, READER, HubServer
from toy_files import write_toy_model
from toy_models import toy_audio

CARD = "---\nlicense: mit\npipeline_tag: automatic-speech-recognition\n---\n# A card\n"


def adds(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()]


def test_a_model_is_uploaded_and_loaded_by_name(hub: HubServer, tmp_path: Path) -> None:
    """A stand-in that speaks another protocol than the client would prove nothing."""
    hub.part_size = 20_000  # so that the weights go up in parts
    write_toy_model(tmp_path / "toy")
    api = HfApi()
    api.create_repo("alice/toy", private=True)
    api.upload_folder(repo_id="alice/toy", folder_path=tmp_path / "toy")
    assert WhisperForConditionalGeneration.from_pretrained("alice/toy").config.d_model == 16
    assert WhisperProcessor.from_pretrained("alice/toy").feature_extractor.feature_size == 80
    recogniser = pipeline("automatic-speech-recognition", model="alice/toy")
    assert "text" in recogniser(toy_audio(1.0), generate_kwargs={"max_new_tokens": 4, "num_beams": 1})
    assert api.model_info("alice/toy").private
    assert Path(snapshot_download("alice/toy"), "config.json").is_file()


def test_a_data_set_is_pushed_and_streamed(hub: HubServer) -> None:
    Dataset.from_dict({"text": ["a", "b", "c"]}).push_to_hub("alice/words", num_shards=2)
    rows = load_dataset("alice/words", split="train", streaming=True)
    assert [row["text"] for row in rows] == ["a", "b", "c"]


def test_revisions_tags_and_branches(hub: HubServer) -> None:
    api = HfApi()
    api.create_repo("alice/toy")
    first = api.create_commit("alice/toy", adds(a__txt=b"1"), commit_message="one").oid
    api.create_tag("alice/toy", tag="best", revision=first)
    api.create_branch("alice/toy", branch="next")
    api.create_commit("alice/toy", adds(a__txt=b"2"), commit_message="two", revision="next")
    assert Path(hf_hub_download("alice/toy", "a.txt", revision="best")).read_text() == "1"
    assert Path(hf_hub_download("alice/toy", "a.txt", revision="next")).read_text() == "2"
    assert [commit.title for commit in api.list_repo_commits("alice/toy")] == ["one", "initial commit"]
    assert {ref.name for ref in api.list_repo_refs("alice/toy").branches} == {"main", "next"}
    with pytest.raises(RevisionNotFoundError):
        api.model_info("alice/toy", revision="nowhere")


def test_tokens(hub: HubServer) -> None:
    """Missing, wrong, and without the right to write."""
    api = HfApi()
    api.create_repo("alice/toy", private=True)
    for token, status in ((False, 401), ("hf_wrong", 401), (READER, 404)):
        with pytest.raises(HfHubHTTPError) as error:
            api.model_info("alice/toy", token=token)
        assert error.value.response.status_code == status
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("alice/other", token=READER)
    assert error.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError):
        api.whoami(token="hf_wrong")
    assert api.whoami(token=ALICE)["name"] == "alice"


def test_names_cards_parents_and_existing_repositories(hub: HubServer) -> None:
    api = HfApi()
    api.create_repo("alice/toy")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("alice/toy")
    with pytest.raises(BadRequestError, match="Invalid repo name"):
        HfApi.create_repo.__wrapped__(api, "alice/to--y")  # past the client's own check
    head = api.model_info("alice/toy").sha
    api.create_commit("alice/toy", adds(a__txt=b"1"), commit_message="one")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("alice/toy", adds(a__txt=b"2"), commit_message="two", parent_commit=head)
    with pytest.raises(ValueError, match="license"):
        api.create_commit("alice/toy", adds(README__md=CARD.replace("mit", "mine").encode()), commit_message="card")
    with pytest.raises(ValueError, match="license"):
        ModelCard(CARD.replace("mit", "mine")).validate()
    with pytest.raises(RepositoryNotFoundError):
        api.create_commit("alice/none", adds(a__txt=b"1"), commit_message="one")


def test_content_that_is_not_what_its_hash_says(hub: HubServer) -> None:
    """Silent corruption of weights is what large file storage is to prevent."""
    api = HfApi()
    api.create_repo("alice/toy")
    for part_size in (None, 4):
        hub.part_size = part_size
        (operation,) = adds(**{"weights__bin": b"weights"})
        operation.upload_info.sha256 = bytes(32)
        with pytest.raises(RuntimeError, match=r"weights\.bin") as error:
            api.create_commit("alice/toy", [operation], commit_message="one")
        assert "sha256" in str(error.value.__cause__)
    assert "weights.bin" not in hub.repo("alice/toy").files()


def test_faults_are_suffered_as_often_as_asked(hub: HubServer) -> None:
    api = HfApi()
    api.create_repo("alice/toy")
    hub.fail("PUT /lfs/", cut=True, times=2)
    hub.fail("POST .*/preupload", 429, retry_after=1)
    hub.fail("POST .*lfs/objects/batch", 500, times=2)
    api.create_commit("alice/toy", adds(weights__bin=b"0" * 300_000), commit_message="one")
    assert hub.repo("alice/toy").files()["weights.bin"] == b"0" * 300_000
    hub.stop()
    with pytest.raises(Exception, match=r"refused|111"):
        api.model_info("alice/toy")
    hub.start()
    assert api.model_info("alice/toy").sha == hub.repo("alice/toy").branches["main"]
