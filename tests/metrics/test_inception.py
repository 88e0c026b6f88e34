"""Files of Inception weights: where they are found, which are accepted, and what becomes of those not to be trusted."""

import io
import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
from inception_weights import random_weights, write_random_weights

from diffusion_var.errors import InputError
from diffusion_var.metrics import inception
from diffusion_var.metrics.inception import InceptionFeatures, find_weights
from diffusion_var.metrics.networks import load_features
from diffusion_var.metrics.weights import file_hash


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_random_weights(tmp_path_factory.mktemp("inception") / "weights.pth")


@pytest.fixture(scope="module")
def network(weights):
    return InceptionFeatures(weights, file_hash(weights.read_bytes()))


class TestAcceptance:
    def test_an_unknown_file_needs_its_hash(self, weights, network):
        digest = file_hash(weights.read_bytes())
        for accept in (None, "", digest[:8], "0" * 64):
            with pytest.raises(InputError, match=rf"SHA-256 {digest}.*{inception.SHA256}.*accept_weights={digest}"):
                InceptionFeatures(weights, accept)
        loaded = load_features("inception", inception_weights=str(weights), accept_weights=f" {digest.upper()}\n")
        assert loaded.fingerprint == network.fingerprint

    def test_the_published_file_needs_nothing(self, weights, network, monkeypatch):
        monkeypatch.setattr(inception, "SHA256", file_hash(weights.read_bytes()))
        assert InceptionFeatures(weights).fingerprint == network.fingerprint
        assert InceptionFeatures(weights, accept="0" * 64).fingerprint == network.fingerprint

    def test_the_published_hash_is_the_one_in_the_name(self):
        assert len(inception.SHA256) == 64
        assert f"-{inception.SHA256[:8]}.pth" in inception.FILE
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        assert inception.URL == URL_INCEPTION_V3

    def test_safetensors_give_the_same_network(self, tmp_path, network):
        path = write_random_weights(tmp_path / "weights.safetensors")
        with pytest.raises(InputError, match="accept_weights="):
            InceptionFeatures(path)
        loaded = InceptionFeatures(path, file_hash(path.read_bytes()))
        assert loaded.fingerprint == network.fingerprint
        pixels = torch.arange(2 * 3 * 64, dtype=torch.float32).reshape(2, 3, 8, 8).to(torch.uint8)
        with torch.inference_mode():
            assert torch.equal(loaded(pixels), network(pixels))

    def test_loading_leaves_the_global_generator_alone(self, weights):
        before = torch.get_rng_state()
        InceptionFeatures(weights, file_hash(weights.read_bytes()))
        assert torch.equal(torch.get_rng_state(), before)


class Malicious:
    """What a pickle can do to whoever loads it: here, make a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def malicious_files(target):
    zipped, old = io.BytesIO(), io.BytesIO()
    torch.save({"weights": Malicious(target)}, zipped)
    torch.save({"weights": Malicious(target)}, old, _use_new_zipfile_serialization=False)
    return [zipped.getvalue(), old.getvalue(), pickle.dumps(Malicious(target))]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_malicious_pickle_does_not_run(tmp_path, kind):
    target = tmp_path / "it ran"
    content = malicious_files(target)[kind]
    if kind == 2:
        pickle.loads(content)
        assert target.exists()  # it would work
        target.unlink()
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="accept_weights="):
        InceptionFeatures(path)
    with pytest.raises(InputError, match=r"weights\.pth cannot be loaded"):
        InceptionFeatures(path, file_hash(content))
    assert not target.exists()


def test_nothing_is_read_before_the_hash_is_accepted(weights, monkeypatch):
    monkeypatch.setattr(inception, "_tensors", lambda *_: pytest.fail("read before it was accepted"))
    with pytest.raises(InputError, match="SHA-256"):
        InceptionFeatures(weights)


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_both_formats_of_torch(legacy):
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(3)}, buffer, _use_new_zipfile_serialization=not legacy)
    assert inception._tensors(buffer.getvalue(), Path("w.pth"))["a"].tolist() == [0, 1, 2]


class TestFilesThatAreNoWeights:
    def refused(self, path, message):
        accept = file_hash(path.read_bytes()) if path.is_file() else None
        with pytest.raises(InputError, match=message):
            InceptionFeatures(path, accept)

    def test_missing(self, tmp_path):
        self.refused(tmp_path / "nothing.pth", r"nothing\.pth cannot be read \(No such file")
        self.refused(tmp_path, "cannot be read")

    def test_damaged(self, tmp_path):
        path = tmp_path / "w.pth"
        write = io.BytesIO()
        torch.save({"a": torch.zeros(50)}, write)
        for content in (b"", b"damaged", write.getvalue()[:-40]):
            path.write_bytes(content)
            self.refused(path, r"w\.pth cannot be loaded")
            path.with_suffix(".safetensors").write_bytes(content)
            self.refused(path.with_suffix(".safetensors"), r"w\.safetensors cannot be loaded")

    def test_other_content(self, tmp_path):
        path = tmp_path / "w.pth"
        for content in ([torch.zeros(2)], {"a": 1}, torch.zeros(2)):
            torch.save(content, path)
            self.refused(path, r"w\.pth cannot be loaded \(it holds other things than tensors by name")
        torch.save({"a": torch.zeros(2)}, path)
        self.refused(path, r"w\.pth does not hold these weights.*expected the 566 tensors")

    def test_one_tensor_missing_or_of_another_shape(self, tmp_path):
        path, state = tmp_path / "w.pth", random_weights()
        bias = state.pop("Mixed_7c.branch_pool.bn.bias")
        torch.save(state, path)
        self.refused(path, r"does not hold these weights.*Mixed_7c\.branch_pool\.bn\.bias")
        torch.save({**state, "Mixed_7c.branch_pool.bn.bias": bias[:-1]}, path)
        self.refused(path, r"does not hold these weights.*Mixed_7c\.branch_pool\.bn\.bias")

    def test_too_large(self, tmp_path, monkeypatch):
        monkeypatch.setattr(inception, "LARGEST_FILE", 10)
        (tmp_path / "w.pth").write_bytes(b"0" * 11)
        self.refused(tmp_path / "w.pth", "has 11 bytes; expected at most 10 bytes")


class TestFindWeights:
    @pytest.fixture(autouse=True)
    def hub(self, tmp_path, monkeypatch):
        """An empty cache, and a server with the file of the expected hash."""
        self.content = b"the weights" * 100
        self.served = tmp_path / "served" / inception.FILE
        self.served.parent.mkdir()
        self.served.write_bytes(self.content)
        self.cache = tmp_path / "home" / "hub" / "checkpoints"
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        monkeypatch.setattr(inception, "URL", self.served.as_uri())
        monkeypatch.setattr(inception, "SHA256", file_hash(self.content))

    @pytest.mark.parametrize("name", [inception.FILE, inception.COPY])
    def test_takes_what_is_in_the_cache(self, name, monkeypatch):
        monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloads"))
        self.cache.mkdir(parents=True)
        (self.cache / name).write_bytes(b"x")
        assert find_weights() == self.cache / name

    def test_downloads_checks_and_keeps(self, capfd):
        assert find_weights() == self.cache / inception.FILE
        assert (self.cache / inception.FILE).read_bytes() == self.content
        said = capfd.readouterr().err
        assert f"downloading {inception.URL}" in said
        assert "100%" in said
        self.served.unlink()
        assert find_weights() == self.cache / inception.FILE

    def test_a_wrong_download_leaves_nothing(self):
        self.served.write_bytes(self.content[:-1])
        with pytest.raises(InputError, match=r"could not be downloaded.*hash"):
            find_weights()
        assert list(self.cache.iterdir()) == []

    def test_without_a_network_one_sentence_says_what_to_do(self, monkeypatch):
        def offline(*_, **__):
            raise urllib.error.URLError("no route to host")

        monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
        with pytest.raises(InputError) as caught:
            load_features("inception")
        message = str(caught.value)
        for part in ("no route", inception.URL, str(self.cache / inception.FILE), "inception_weights="):
            assert part in message
        assert "features=digits or features=FILE.safetensors work without it" in message
        assert "\n" not in message

    def test_an_unwritable_cache(self, tmp_path):
        (tmp_path / "home").write_text("a file in the way")
        with pytest.raises(InputError, match="could not be downloaded"):
            find_weights()

    def test_a_given_path_is_not_searched_for(self, tmp_path):
        with pytest.raises(InputError, match=r"mine\.pth cannot be read"):
            load_features("inception", inception_weights=tmp_path / "mine.pth")
        assert not self.cache.exists()
