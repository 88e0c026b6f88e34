"""Inception-v3 features: those of published FIDs (Heusel et al. 2017, arXiv:1706.08500), 2048 numbers an image.

    uint8 (B, 3, H, W) ─> bilinear to 299×299 as TensorFlow 1 did ─> (x − 128)/128 ─> Inception-v3 ─> pool, 2048

The network is torch-fidelity's (Obukhov et al. 2020), whose weights were converted from TensorFlow's of 2015-12-05 and
whose resizing repeats TensorFlow 1's to the bit; pytorch-fid's network is the same with other resizing and scaling. So
numbers agree with the literature as far as the images are the same.

*Weights.* One file of 566 tensors. Its bytes are hashed before anything is made of them: the published file is known by
its SHA-256, another one is taken only by a user who names its hash. It is then read without unpickling (tensors and
containers only), so even an accepted file cannot run code.

On NVIDIA GPUs PyTorch computes convolutions in TF32 unless told otherwise, here as in torch-fidelity and pytorch-fid;
`torch.backends.cudnn.allow_tf32 = False` makes features those of the CPU to rounding.
"""

from __future__ import annotations

import io
import sys
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from .weights import file_hash, fingerprint, read_weights

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
COPY = "pt_inception-2015-12-05-6726825d.pth"  # what pytorch-fid calls the same file
LARGEST_FILE = 2**29  # bytes; the published one has 95,628,359


class InceptionFeatures(nn.Module):
    """The feature network of published FIDs.

    Args:
        weights: the published file, or 566 tensors of the same names in a `.pth` or `.safetensors`.
        accept: SHA-256 of the file; needed where it is not the published one.

    Raises InputError for a file that cannot be read, is not accepted, or does not hold these weights.
    """

    name = "inception"
    dimension = 2048
    resize = "bilinear to 299x299, TF1 (torch-fidelity)"
    channels = 3

    def __init__(self, weights: Path, accept: str | None = None) -> None:
        super().__init__()
        content = read_weights(weights, LARGEST_FILE, "Inception weights file")
        digest = file_hash(content)
        if digest != SHA256 and digest != (accept or "").strip().lower():
            raise InputError(
                f"the Inception weights file {weights} has the SHA-256 {digest}, but the published file ({URL}) has "
                f"{SHA256}; get that one or, if you trust yours, pass accept_weights={digest}."
            )
        # Channels last in memory: the same numbers to rounding, a quarter less time on a CPU.
        self.network = _network(_tensors(content, weights), weights).to(memory_format=torch.channels_last)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 2048) float32 of uint8 images (B, 3, H, W) of any size. Raises InputError for anything else."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            grey = images.ndim == 4 and images.shape[1] == 1
            advice = "repeat the grey channel three times" if grey else "convert the images"
            raise InputError(
                f"the inception features got {images.dtype} images of shape {tuple(images.shape)}; expected uint8 RGB "
                f"of shape (B, 3, H, W): {advice}."
            )
        with torch.autocast(images.device.type, enabled=False):  # a score does not depend on where it is asked for
            features: Tensor = self.network(images)[0]
        return features

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the weights as tensors, whatever file they came in; see `weights.fingerprint`."""
        return fingerprint(self.network.state_dict())


def find_weights() -> Path:
    """The published weights: the file in PyTorch's cache ($TORCH_HOME/hub/checkpoints), else downloaded to there.

    Raises InputError, saying which file goes where, if it is neither there nor to be had.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in (FILE, COPY):
        if (folder / name).is_file():
            return folder / name
    target = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"downloading {URL} to {folder}", file=sys.stderr)
        # Into a temporary file beside the target, with a progress bar; renamed only if the hash is right.
        torch.hub.download_url_to_file(URL, str(target), hash_prefix=SHA256, progress=True)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"the Inception weights are not there and could not be downloaded ({reason}); bring {URL} to {target} or "
            "pass its path as inception_weights=; features=digits or features=FILE.safetensors work without it."
        ) from error
    return target


def _tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors in a file's bytes; no code in it is run."""
    from safetensors.torch import load

    try:
        if path.suffix.lower() == ".safetensors":
            return load(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it holds other things than tensors by name")
    except Exception as error:  # UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise InputError(f"the Inception weights file {path} cannot be loaded ({reason}); get {URL}.") from error
    return dict(state)


def _network(state: dict[str, Tensor], path: Path) -> nn.Module:
    """torch-fidelity's network with these weights; the global generators are left as they are."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # It unpickles, without restriction, whatever it is given a path of, so it gets tensors that were read above.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):  # layers initialise from the global generator, in vain
            network: nn.Module = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=buffer
            )
    except RuntimeError as error:  # load_state_dict: names or shapes that differ
        lines = [line.strip() for line in str(error).splitlines()]
        raise InputError(
            f"the Inception weights file {path} does not hold these weights ({lines[-1][:200].rstrip('.')}); expected "
            f"the 566 tensors of {URL}."
        ) from error
    return network
