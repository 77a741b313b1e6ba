"""Laws of configs/experiment/: each composes, with other encoders too, is the architecture it is named after, and trains."""

import shlex
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import CNN, SMALL, TINY

from captioning.build.compose import CONFIGS, as_dict, composed
from captioning.build.jobs import Training
from captioning.build.objects import make
from captioning.build.runs import flat
from captioning.build.schema import TRAINING, check
from captioning.build.sweeps import composer, expanded, planned
from captioning.models.features import ImageFeatures
from captioning.training.distributed import World

NAMES = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
DRAWN = ["cells_shapes", "demo", "scst_shapes"]
ON_FLICKR8K = [name for name in NAMES if name not in DRAWN]
NEEDED = {"scst": ["start=RUN"]}
OWN = ["data.root=DIR"]  # with its own encoder, as in most headers
OTHERS = {  # the encoders with free weights, and a stage of theirs to fine-tune from
    "mobilenet_v2": "from features.14",
    "squeezenet1_1": "from features.9",
    "resnet50_caffe": "from layer4",
}
GRID_AND_POOLED = {  # at 224 pixels: cells, numbers in each, numbers in the pooled vector
    "vgg16": (14 * 14, 512, 4096),
    "vgg19": (14 * 14, 512, 4096),
    "densenet201": (7 * 7, 1920, 1920),
    "resnet50": (7 * 7, 2048, 2048),
    "resnet101": (7 * 7, 2048, 2048),
    "resnet152": (7 * 7, 2048, 2048),
}
LSTM = {"rnn.weight_hh_l0": "4H H", "words.vectors.weight": "V E", "words.out.weight": "V H"}
GRU = {"rnn.weight_hh_l0": "3H H", "words.vectors.weight": "V E"}
ATTENTION = {
    "attention.key.weight": "A D",
    "attention.score.weight": "1 A",
    "start.weight": "2H D",  # its first state, from the mean of the grid
    "from_hidden.weight": "A+D+4H H",  # query, gate, the LSTM's gates
    "from_seen.weight": "4H D",
    "answer_hidden.weight": "E H",
    "answer_seen.weight": "E D",
    "words.out.weight": "V E",
}
SYSTEMS = {  # experiment: its encoder, and the layers that make it what it is
    "show_and_tell": ("vgg16", LSTM | {"image.weight": "E P", "rnn.weight_ih_l0": "4H E"}),
    "show_attend_tell": ("vgg19", ATTENTION),
    "adaptive_attention": (
        "vgg16",
        {"cells.weight": "H D", "whole.weight": "E D", "from_word.weight": "5H E", "from_whole.weight": "5H E",
         "from_hidden.weight": "5H H", "attention.key.weight": "A H", "sentinel_key.weight": "A H", "words.out.weight": "V H"},
    ),
    "merge_vgg16": ("vgg16", LSTM | {"image.weight": "256 4096", "rnn.weight_ih_l0": "1024 256", "deep.0.weight": "256 256"}),
    "vgg16_grid_lstm": ("vgg16", LSTM | {"image.weight_ih_l0": "4H D", "image.weight_hh_l0": "4H H", "rnn.weight_ih_l0": "4H E"}),
    "densenet201_lstm": ("densenet201", LSTM | {"image.weight": "E 1920", "rnn.weight_ih_l0": "4H 2E"}),
    "densenet201_attention": ("densenet201", ATTENTION | {"attention.key.weight": "A 1920"}),
    "tanti_init": ("vgg16", GRU | {"image.weight": "H P", "rnn.weight_ih_l0": "3H E", "words.out.weight": "V H"}),
    "tanti_pre": ("vgg16", GRU | {"image.weight": "E P", "rnn.weight_ih_l0": "3H E", "words.out.weight": "V H"}),
    "tanti_par": ("vgg16", GRU | {"image.weight": "E P", "rnn.weight_ih_l0": "3H 2E", "words.out.weight": "V H"}),
    "tanti_merge": ("vgg16", GRU | {"image.weight": "H P", "rnn.weight_ih_l0": "3H E", "words.out.weight": "V 2H"}),
    "compare_rnn_gru_lstm": ("vgg16", LSTM | {"image.weight": "2H P", "rnn.weight_ih_l0": "4H E"}),
    "finetune_attention": ("resnet50", ATTENTION),
    "scst": ("resnet101", ATTENTION),
    "flickr8k": ("cnn", {}),  # of no encoder and decoder of its own: what the others share
    "flickr8k_pooled": ("resnet50", LSTM | {"image.weight": "2H P", "rnn.weight_ih_l0": "4H E"}),
    "flickr8k_grid": ("resnet50", ATTENTION),
}  # fmt: skip
V = 9
SETTINGS = {  # what an experiment sets beside encoder, cell and injection
    "show_attend_tell": ["loss.doubly_stochastic"],
    "finetune_attention": ["data.captions_together"],
    "scst": ["start", "loss.", "scheduler.", "optimizer.lr", "trainer.epochs", "trainer.validate_every"],
}


@cache
def config_of(name, *overrides):
    config = as_dict(composed("train", [f"experiment={name}", *NEEDED.get(name, []), *overrides]))
    check(config, needed=TRAINING)
    return config


@cache
def encoder_of(*settings):
    """The encoder of these settings without its numbers, and the shapes that it makes of 224 pixels."""
    with torch.device("meta"):
        body = make("encoder", dict(settings) | {"weights": "none"})
        features = body(torch.zeros(2, 3, 224, 224))
    return body, features.grid.shape, features.pooled.shape


def said(decoder, grid_shape, pooled_shape):
    return decoder(ImageFeatures(torch.zeros(grid_shape), torch.zeros(pooled_shape)), torch.zeros(2, 3, dtype=torch.long))


def commands(name):
    """The command lines in the header: words of each, without `python`."""
    lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()
    joined = " && ".join(line.removeprefix("#   ") for line in lines if line.startswith("#   python "))
    return [shlex.split(command) for command in joined.split(" && ") if command]


def numbers(shape, sizes):
    """`4H 2E` in numbers; `A+D+4H` is a sum."""

    def number(term):
        count = term.rstrip("ADEHPV")
        return int(count or 1) * sizes.get(term[len(count) :], 1)

    return tuple(sum(map(number, part.split("+"))) for part in shape.split())


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_in_a_header_compose(name):
    found = commands(name)
    assert any(f"experiment={name}" in words for words in found) or name == "flickr8k"  # which is for the others to take in
    for words in found:
        if words[:2] == ["python", "train.py"]:
            one, *more = sorted((word.partition(",")[0] for word in words[2:] if word != "-m"), key=lambda word: "experiment=" not in word)
            config_of(one.removeprefix("experiment="), *more)
        elif words[0] == "python":
            check(as_dict(composed(Path(words[1]).stem, words[2:])))


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "flickr8k"])
def test_every_system_has_the_settings_of_its_kind_but_for_those_that_make_it_what_it_is(name):
    config = config_of(name, *OWN)
    assert config["encoder"]["name"] == SYSTEMS[name][0]
    assert config["data"]["reader"]["_target_"] == "captioning.data.annotations.flickr8k"
    ours, shared = flat(config), flat(config_of(f"flickr8k_{'pooled' if 'injection' in config['decoder'] else 'grid'}", *OWN))
    apart = [key for key in ours.keys() | shared.keys() if ours.get(key) != shared.get(key)]
    its = ("encoder.", "decoder._target_", "decoder.cell", "decoder.injection", *SETTINGS.get(name, []))
    assert [key for key in apart if not key.startswith(its)] == []
    assert all(any(key.startswith(setting) for key in apart) for setting in SETTINGS.get(name, []))


@pytest.mark.parametrize("encoder", OTHERS)
@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "flickr8k"])
def test_every_system_takes_the_encoders_whose_weights_are_free(name, encoder):
    stage = [f"encoder.finetune={OTHERS[encoder]}"] if name == "finetune_attention" else []  # the file's is one of ResNets
    config = config_of(name, f"encoder={encoder}", "encoder.weights=FILE", *stage)
    body, *shapes = encoder_of(*config["encoder"].items())
    assert body.is_frozen == (name != "finetune_attention")
    small = {"hidden_size": 8, "embedding_size": 8}
    decoder = make("decoder", config["decoder"] | small, feature_dims=body.dims, vocab_size=V)
    assert said(decoder, *shapes).logits.shape == (2, 3, V)


def test_resnet50_in_caffes_style_is_the_same_by_either_name():
    by_name = config_of("show_and_tell", "encoder=resnet50_caffe", "encoder.weights=FILE")
    assert by_name == config_of("show_and_tell", "encoder=resnet50", "encoder.style=caffe", "encoder.weights=FILE")


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "flickr8k"])
def test_every_system_has_the_layers_it_is_known_for(name):
    known_for, layers = SYSTEMS[name]
    config = config_of(name, *OWN)
    body, *shapes = encoder_of(*config["encoder"].items())
    cells, D, P = GRID_AND_POOLED[known_for]
    assert shapes == [(2, cells, D), (2, P)] and body.dims == (D, P)

    decoder = make("decoder", config["decoder"], feature_dims=body.dims, vocab_size=V)
    settings = config["decoder"]
    sizes = {"D": D, "P": P, "V": V, "H": settings["hidden_size"], "E": settings["embedding_size"]}
    sizes |= {"A": settings.get("attention_size", 0)}
    ours = {key: tuple(value.shape) for key, value in decoder.named_parameters()}
    assert {key: ours.get(key) for key in layers} == {key: numbers(shape, sizes) for key, shape in layers.items()}
    output = said(decoder, *shapes)
    assert output.logits.shape == (2, 3, V)
    assert (output.attention is not None) == ("attention.key.weight" in layers)


def test_the_image_goes_where_the_name_says():
    places = {name: config_of(name, *OWN)["decoder"].get("injection") for name in SYSTEMS}
    assert {name: place for name, place in places.items() if place} == {
        "show_and_tell": "pre", "merge_vgg16": "add", "vgg16_grid_lstm": "read", "densenet201_lstm": "pre_par",
        "tanti_init": "init", "tanti_pre": "pre", "tanti_par": "par", "tanti_merge": "merge",
        "compare_rnn_gru_lstm": "init", "flickr8k_pooled": "init",
    }  # fmt: skip


def test_show_attend_and_tell_is_doubly_stochastic_and_scst_self_critical():
    assert config_of("show_attend_tell", *OWN)["loss"]["doubly_stochastic"] == 1
    assert config_of("scst", *OWN)["loss"]["_target_"].endswith(".SelfCritical")


def test_all_of_this_is_about_all_experiments():
    assert sorted(SYSTEMS) == ON_FLICKR8K


def test_adaptive_attention_has_the_encoder_of_its_paper_for_the_asking():
    config = config_of("adaptive_attention", "encoder=resnet152", "encoder.finetune=all", "encoder.finetune_epoch=20")
    body, *shapes = encoder_of(*config["encoder"].items())
    cells, D, P = GRID_AND_POOLED["resnet152"]
    assert shapes == [(2, cells, D), (2, P)] and all(parameter.requires_grad for parameter in body.parameters())


def test_fine_tuning_begins_after_some_epochs_and_from_layer4():
    config = config_of("finetune_attention", *OWN)
    assert config["encoder"]["finetune_epoch"] > 0 and config["start"] is None
    body, *_ = encoder_of(*config["encoder"].items())
    moving = {name.split(".")[1] for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert moving == {"layer4"} and config["data"]["captions_together"] == 5


def test_the_comparison_of_cells_is_nine_runs_that_differ_in_cell_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=compare_rnn_gru_lstm"]
    with composer("train", words) as (master, member_config, _):
        members = [planned("train", number, its, master, member_config) for number, its in enumerate(expanded("train", master))]
    assert [member.reason for member in members] == [""] * 9
    names = [f"flickr8k-vgg16-{cell}-experiment=compare_rnn_gru_lstm-s{seed}" for cell in ("lstm", "gru", "rnn") for seed in (1, 2, 3)]
    assert [member.folder.name for member in members] == names


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Where features are kept: experiments with the same encoder share them."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "flickr8k"])
def test_every_experiment_takes_a_training_step(name, drawings, stored, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTIONING_CACHE", str(stored))
    words = [
        *TINY,
        "data.transform.size=64",
        *SMALL,
        f"data.root={drawings}",
        f"run={tmp_path / 'run'}",
        "trainer.max_steps=1",
        "trainer.samples=0",
    ]
    words += ["start=null"] if name.startswith("scst") else []  # no run to begin with
    words += CNN if name in ("demo", "scst_shapes") else []
    if name in SYSTEMS:
        words += ["data=shapes", *([] if name == "finetune_attention" else ["encoder=squeezenet1_1"]), "encoder.weights=none"]
    config = as_dict(composed("train", [f"experiment={name}", *words]))
    check(config, needed=TRAINING)
    trainer = Training(config).trainer(World(torch.device("cpu")))
    trainer.fit()
    assert trainer.progress.step == 1
