"""Versions, device, and what is missing for what."""

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import captioning

OPTIONAL = {  # module: what it is for, how to get it
    "fastapi": ("captioning serve", 'pip install -e ".[serve]"'),
    "gradio": ("captioning demo", 'pip install -e ".[demo]"'),
    "onnxruntime": ("captioning export", 'pip install -e ".[export]"'),
    "sacrebleu": ("the tests' second opinion on BLEU", 'pip install -e ".[dev]"'),
    "pytest": ("make test", 'pip install -e ".[dev]"'),
}


def report() -> list[str]:
    import torch

    lines = [f"captioning {captioning.__version__}, Python {platform.python_version()}, {platform.platform()}"]
    for package in (
        "torch",
        "torchvision",
        "hydra-core",
        "omegaconf",
        "pycocoevalcap",
        "pillow",
        "safetensors",
        "tensorboard",
    ):
        try:
            lines.append(f"  {package:14} {version(package)}")
        except PackageNotFoundError:
            lines.append(f'  {package:14} MISSING: pip install -e "."')
    lines.append(f"device: {device(torch)}; {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads")
    for module, (use, remedy) in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            lines.append(f"missing: {module}, for {use}: {remedy}")
    if shutil.which("java") is None:
        lines.append(
            "missing: java, for METEOR and SPICE and for the tests that compare our tokenizer with the original; nothing else needs it"
        )
    weights = os.path.join(torch.hub.get_dir(), "checkpoints")
    files = sorted(os.listdir(weights)) if os.path.isdir(weights) else []
    lines.append(f"ImageNet weights at hand in {weights}: {', '.join(files) or 'none; encoder.weights=imagenet downloads them'}")
    return lines


def device(torch) -> str:  # the module is handed in: importing it takes seconds
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"cuda ({', '.join(names)}; bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'})"
    return "mps" if torch.backends.mps.is_available() else "cpu (no GPU that this torch can use)"
