"""Every config composes, and every encoder meets every decoder. Experiments: test_experiments.py."""

import pytest
import torch
from torch import nn

from captioning.build.compose import CONFIGS, as_dict, composed
from captioning.build.objects import make, make_encoder
from captioning.build.schema import check
from captioning.models.caption_model import CaptionModel

FILES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.glob("*/*.yaml"))
ENCODERS = sorted(name.removeprefix("encoder/") for name in FILES if name.startswith("encoder/"))
RECURRENT = [
    [f"decoder={cell}", f"decoder.injection={where}"]
    for cell in ("lstm", "gru", "rnn")
    for where in ("init", "pre", "par", "merge", "pre_par", "add", "read")
]
ATTENDING = [["decoder=attention"], ["decoder=attention", "decoder.cell=gru"], ["decoder=adaptive"]]
NEEDED = {
    "encoder/torchvision": ["encoder.name=shufflenet_v2_x0_5", "encoder.grid=conv5"],
    "encoder/resnet50_caffe": ["encoder.weights=none"],
}


def test_the_groups_are_those_that_the_readme_names():
    assert {name.split("/")[0] for name in FILES} == {
        "data", "decoder", "encoder", "experiment", "hparams_search", "logger", "loss", "optimizer", "scheduler", "search", "trainer"
    }  # fmt: skip
    assert {"vgg16", "vgg19", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "densenet169", "densenet201",
            "mobilenet_v2", "squeezenet1_1", "efficientnet_b0", "cnn"} <= set(ENCODERS)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("experiment/")])
def test_every_config_composes_and_its_values_are_what_the_constructors_take(name):
    group, choice = name.split("/")
    config = as_dict(composed("train", [f"{group}={choice}", "run=x", *NEEDED.get(name, [])]))
    check(config)
    if group not in ("data", "encoder", "decoder"):
        make(group, config[group], **({"params": [torch.zeros(1)]} if group == "optimizer" else {}))


def test_the_evaluation_config_composes():
    check(as_dict(composed("eval", ["run=x"])))


def with_sane_statistics(body):
    """Random weights without statistics let a deep network's activations vanish or explode."""
    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
        module.train()
    with torch.no_grad():
        body(torch.randn(8, 3, 64, 64))
    for module in norms:
        module.eval()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_with_every_decoder_and_injection_takes_a_training_step(encoder):
    more = [word for word in NEEDED.get(f"encoder/{encoder}", [])] + ([] if encoder == "cnn" else ["encoder.weights=none"])
    body = make_encoder(as_dict(composed("train", [f"encoder={encoder}", *more, "run=x"])), seed=0)
    images, tokens = torch.randn(2, 3, 64, 64), torch.tensor([[1, 4, 5, 2], [1, 6, 2, 0]])
    with_sane_statistics(body)
    for choice in [*RECURRENT, *ATTENDING]:
        config = as_dict(composed("train", [*choice, "decoder.hidden_size=8", "decoder.embedding_size=8"]))
        model = CaptionModel(body, make("decoder", config["decoder"], feature_dims=body.dims, vocab_size=9)).train()
        before = [p.detach().clone() for p in model.decoder.parameters()]
        optimizer = torch.optim.SGD(model.decoder.parameters(), lr=1.0)
        output = model(images, tokens)
        assert output.logits.shape == (2, 3, 9)
        assert (output.attention is not None) == model.decoder.attends
        loss = nn.functional.cross_entropy(output.logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)
        loss.backward()
        optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, model.decoder.parameters())]
        assert torch.isfinite(loss) and sum(moved) > len(moved) / 2, choice  # all but a few behind a closed ReLU or an even softmax
