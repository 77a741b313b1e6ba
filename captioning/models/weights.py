"""Encoder weights: downloaded or from a file, and never loaded half by mistake."""

import hashlib
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from captioning.errors import UserError


def find_weights(name: str, weights: str) -> Path:
    """The file of `imagenet`, of a path, or of a folder that has one with the network's name."""
    if weights == "imagenet":
        return download_imagenet(name)
    if Path(weights).is_dir():
        return in_folder(name, Path(weights))
    if not Path(weights).is_file():
        raise UserError(
            f"encoder.weights={weights}: no such file; allowed are imagenet, none or the path of a .pth or .safetensors file, or of "
            f"a folder with {name}.pth or {name}.safetensors in it"
        )
    return Path(weights)


def in_folder(name: str, folder: Path) -> Path:
    files = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]
    for file in files:
        if file.is_file():
            return file
    raise UserError(f"encoder.weights={folder}: a folder with neither {files[0].name} nor {files[1].name} in it")


def sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Of names and numbers: equal for equal weights, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(file: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or, by weights-only load, from .pth/.pt."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # SafetensorError, UnpicklingError, EOFError, RuntimeError, ... by kind of damage
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"encoder.weights={file}: not a weights file ({reason})") from None
    for key in ("state_dict", "model", "model_state_dict"):  # training scripts wrap it
        content = content.get(key, content) if isinstance(content, dict) else content
    if not (isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values())):
        raise UserError(f"encoder.weights={file}: holds no state dict (names with tensors)")
    return content


def load_weights(body: nn.Module, file: Path, *, whole: nn.Module, name: str) -> None:
    """Load what `body` needs from a file of the whole model's weights, with or without the classifier.

    Every parameter of `body` must be there in its shape, and nothing that `whole` does not know. Values are cast to
    the parameters' type. Raises UserError naming the keys.
    """
    given = {}
    for key, value in read_weights(file).items():
        key = key.removeprefix("module.")
        given[re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)] = value  # names in DenseNet's older files
    needed = {key: value for key, value in body.state_dict().items() if not key.endswith("num_batches_tracked")}
    known = whole.state_dict().keys()
    absent = [key for key in needed if key not in given]
    strange = [key for key in given if key not in known]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}"
        for key, value in needed.items()
        if key in given and given[key].shape != value.shape
    ]
    for problem, keys in (("lacks", absent), ("has the unknown", strange), ("has", shapes)):
        if keys:
            some = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise UserError(f"encoder.weights={file}: not weights of {name}: the file {problem} {some}")
    body.load_state_dict({key: value for key, value in given.items() if key in body.state_dict()}, strict=False)


def download_imagenet(name: str) -> Path:
    """torchvision's IMAGENET1K_V1 weights, in torch.hub's folder; downloaded once and checked against their hash."""
    from torchvision.models import get_model_weights

    url = get_model_weights(name)["IMAGENET1K_V1"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not file.exists():
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(10)  # a network that swallows packets must not hang a run
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=re.search(r"-([0-9a-f]{8,})", file.name)[1])  # type: ignore[index]
        except Exception as error:
            raise UserError(
                f"encoder.weights=imagenet: cannot download {url} ({error}). Download it where there is a network and put "
                f"it at {file}, or give encoder.weights=PATH, or encoder.weights=none for random weights"
            ) from None
        finally:
            socket.setdefaulttimeout(timeout)
    return file
