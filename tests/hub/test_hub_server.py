"""The Hub on loopback: the real client's calls pass, and what the real one refuses is refused."""

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from hub_server import READER, HubServer

CARD = b"---\nlicense: mit\n---\n# A card\n"


def adds(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()]


def test_what_the_hub_refuses_is_refused(hub: HubServer) -> None:
    """A stand-in that accepts everything would prove nothing."""
    api = HfApi()
    api.create_repo("alice/toy", private=True)
    for token, status in ((False, 401), ("hf_wrong", 401), (READER, 404)):
        with pytest.raises(HfHubHTTPError, match=str(status)):
            api.model_info("alice/toy", token=token)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("alice/other", token=READER)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("alice/toy")
    with pytest.raises(BadRequestError, match="Invalid repo name"):
        HfApi.create_repo.__wrapped__(api, "alice/to--y")  # past the client's own check
    head = api.model_info("alice/toy").sha
    api.create_commit("alice/toy", adds(a__txt=b"1"), commit_message="one")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("alice/toy", adds(a__txt=b"2"), commit_message="two", parent_commit=head)
    wrong = CARD.replace(b"mit", b"mine")
    with pytest.raises(ValueError, match="license"):
        api.create_commit("alice/toy", adds(README__md=wrong), commit_message="card")
    with pytest.raises(ValueError, match="license"):
        ModelCard(wrong.decode()).validate()
    with pytest.raises(RepositoryNotFoundError):
        api.create_commit("alice/none", adds(a__txt=b"1"), commit_message="one")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("alice/toy", "a.txt", revision="nowhere")


def test_content_that_does_not_match_its_hash(hub: HubServer) -> None:
    """Silent corruption of weights is what large file storage is to prevent."""
    HfApi().create_repo("alice/toy")
    (operation,) = adds(**{"weights__bin": b"weights"})
    operation.upload_info.sha256 = bytes(32)
    with pytest.raises(RuntimeError, match=r"weights\.bin") as error:
        HfApi().create_commit("alice/toy", [operation], commit_message="one")
    assert "sha256" in str(error.value.__cause__)
    assert "weights.bin" not in hub.repo("alice/toy").files()
