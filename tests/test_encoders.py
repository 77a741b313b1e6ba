"""Laws of encoders: real architectures with random weights, small pictures, files of our own."""

import pytest
import torch
from conftest import lively, real_weights
from safetensors.torch import save_file
from torchvision.models import get_model

from captioning.errors import UserError
from captioning.models.caption_model import CaptionModel
from captioning.models.decoders.recurrent import RecurrentDecoder
from captioning.models.encoders import SmallCNN, TorchvisionEncoder

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def encoder(name="resnet18", grid="layer4", **settings):
    return TorchvisionEncoder(name, grid, **({"weights": "none"} | settings))


@pytest.mark.parametrize(
    ("name", "grid", "pooled", "cells", "dims"),
    [
        ("vgg16", "block5_conv3", "fc2", 14 * 14, (512, 4096)),
        ("vgg16", "block5_pool", "mean", 7 * 7, (512, 512)),
        ("vgg19", "block5_conv4", "fc1", 14 * 14, (512, 4096)),
        ("resnet50", "layer4", "mean", 7 * 7, (2048, 2048)),
        ("resnet50", "layer3", "mean", 14 * 14, (1024, 1024)),
        ("densenet201", "relu", "mean", 7 * 7, (1920, 1920)),
        ("squeezenet1_1", "features", "mean", 13 * 13, (512, 512)),
        ("mobilenet_v2", "features", "mean", 7 * 7, (1280, 1280)),
    ],
)
def test_grid_and_pooled_have_the_published_shapes_at_224_pixels(name, grid, pooled, cells, dims):
    body = encoder(name, grid, pooled=pooled)
    with torch.no_grad():
        features = body(torch.zeros(1, 3, 224, 224))
    assert tuple(body.dims) == dims
    assert features.grid.shape == (1, cells, dims[0]) and features.pooled.shape == (1, dims[1])


def test_the_grid_is_the_layer_row_by_row_and_the_pooled_vector_its_mean():
    whole = get_model("resnet18", weights=None).eval()
    ours = encoder().eval()
    ours.body.load_state_dict(whole.state_dict(), strict=False)
    with torch.no_grad():
        x = whole.maxpool(whole.relu(whole.bn1(whole.conv1(IMAGES))))
        x = whole.layer4(whole.layer3(whole.layer2(whole.layer1(x))))  # (B, D, h, w)
        features = ours(IMAGES)
    torch.testing.assert_close(features.grid[:, 1], x[:, :, 0, 1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.pooled, x.mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("finetune", ["none", "from layer4", "all"])
def test_only_what_is_fine_tuned_moves_and_batchnorm_statistics_never_do(finetune, tmp_path):
    torch.save(get_model("resnet18", weights=None).state_dict(), tmp_path / "w.pth")
    body = encoder(weights=str(tmp_path / "w.pth"), finetune=finetune)
    model = CaptionModel(body, RecurrentDecoder(body.dims, 9, cell="gru", hidden_size=8, embedding_size=8)).train()
    before = {name: value.clone() for name, value in body.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0)
    for _ in range(2):
        model(IMAGES, torch.tensor([[1, 4, 5, 2], [1, 6, 7, 2]])).logits.square().mean().backward()
        optimizer.step()
    moved = {name for name, value in body.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in moved if "running" in name or "num_batches" in name]
    stages = {name.split(".")[1] for name in moved}
    assert stages == {"none": set(), "from layer4": {"layer4"}, "all": stages}[finetune]
    assert ("conv1" in stages and "layer1" in stages) == (finetune == "all")
    assert body.is_frozen == (finetune == "none")


@pytest.mark.parametrize("kind", ["pth", "safetensors", "wrapped", "without classifier", "half precision"])
def test_weights_load_from_every_usual_file(kind, tmp_path):
    state = get_model("resnet18", weights=None).state_dict()
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "wrapped":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, file)
    elif kind == "without classifier":
        torch.save({key: value for key, value in state.items() if not key.startswith("fc.")}, file)
    else:
        torch.save(
            {key: value.half() if kind == "half precision" and value.is_floating_point() else value for key, value in state.items()},
            file,
        )
    loaded = encoder(weights=str(file)).body.state_dict()
    torch.testing.assert_close(loaded["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"], atol=1e-3, rtol=1e-3)
    assert loaded["layer3.0.conv1.weight"].dtype == torch.float32


def test_densenets_old_names_are_understood(tmp_path):
    state = get_model("densenet121", weights=None).state_dict()
    old = {key.replace("norm1", "norm.1").replace("conv2.", "conv.2."): value for key, value in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    loaded = encoder("densenet121", "relu", weights=str(tmp_path / "old.pth")).body.state_dict()
    key = "features.denseblock2.denselayer3.conv2.weight"
    assert torch.equal(loaded[key], state[key])


def test_the_wrong_file_is_refused_and_the_keys_are_named(tmp_path):
    torch.save(get_model("resnet34", weights=None).state_dict(), tmp_path / "r34.pth")
    with pytest.raises(UserError, match=r"not weights of resnet18: the file has the unknown layer1.2.conv1.weight"):
        encoder(weights=str(tmp_path / "r34.pth"))
    with pytest.raises(UserError, match=r"not weights of resnet50: the file .*lacks layer1.0.conv3.weight"):
        encoder("resnet50", weights=str(tmp_path / "r34.pth"))
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "little.safetensors")
    with pytest.raises(UserError, match="lacks bn1.weight"):
        encoder(weights=str(tmp_path / "little.safetensors"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match=r"text.pth: not a weights file"):
        encoder(weights=str(tmp_path / "text.pth"))


def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="not a weights file"):
        encoder(weights=str(tmp_path / "trap.pth"))
    assert not (tmp_path / "ran").exists()


def test_without_a_network_imagenet_weights_fail_with_what_to_do(monkeypatch, tmp_path):
    def unreachable(*arguments, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"cannot download https://.*resnet18-f37072fd.pth .*give encoder.weights=PATH"):
        encoder(weights="imagenet")


def test_imagenet_weights_at_hand_are_used_without_a_network(monkeypatch, tmp_path):
    state = get_model("resnet18", weights=None).state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert torch.equal(encoder(weights="imagenet").body.state_dict()["conv1.weight"], state["conv1.weight"])


def test_caffe_style_puts_the_stride_in_the_first_convolution():
    caffe = encoder("resnet50", style="caffe")
    ours = dict(caffe.body.named_modules())
    assert ours["layer3.0.conv1"].stride == (2, 2) and ours["layer3.0.conv2"].stride == (1, 1)
    assert ours["maxpool"].ceil_mode and ours["maxpool"].padding == 0
    with pytest.raises(UserError, match="encoder.style=caffe: is for resnet50"):
        encoder(style="caffe")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet19"}, "torchvision has no such model. Did you mean resnet1"),
        ({"grid": "layer5"}, "encoder.grid=layer5: resnet18 has no such layer"),
        ({"grid": "avgpool", "pooled": "layer4"}, "encoder.pooled=layer4: gives no vector"),
        ({"grid": "flatten"}, "encoder.grid=flatten: gives no grid"),
        ({"finetune": "from layer9"}, "allowed are none, all, or `from STAGE`"),
        ({"finetune": "some"}, "allowed are none, all, or `from STAGE`"),
        ({"weights": "nowhere.pth"}, "encoder.weights=nowhere.pth: no such file"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        encoder(**settings)


def test_a_small_cnn_knows_left_from_right():
    body = SmallCNN(16).eval()
    left = torch.zeros(1, 3, 64, 64)
    left[:, :, 28:36, 8:16] = 1
    right = left.flip(3)
    with torch.no_grad():
        assert (body(left).pooled - body(right).pooled).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("file", "name", "grid", "style", "shape"),
    [
        ("mobilenet_v2.safetensors", "mobilenet_v2", "features", "torchvision", (1, 49, 1280)),
        ("squeezenet1_1.safetensors", "squeezenet1_1", "features", "torchvision", (1, 169, 512)),
        ("resnet50_v1_pruned.safetensors", "resnet50", "layer4", "caffe", (1, 49, 2048)),
    ],
)
def test_real_weights_load(file, name, grid, style, shape):
    body = encoder(name, grid, weights=str(real_weights(file)), style=style)
    with torch.no_grad():
        assert body(torch.zeros(1, 3, 224, 224)).grid.shape == shape


@pytest.mark.parametrize(
    ("name", "grid"), [("resnet18", "layer4"), ("mobilenet_v2", "features"), ("densenet121", "features"), ("vgg11_bn", "features")]
)
def test_a_folded_encoder_is_the_same_function(name, grid):
    encoder = TorchvisionEncoder(name, grid, weights="none").eval()
    lively(encoder)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = encoder(images)
        after = encoder.fold()(images)
    called = [encoder.body.get_submodule(node.target) for node in encoder.body.graph.nodes if node.op == "call_module"]
    assert name == "densenet121" or not any(isinstance(module, torch.nn.BatchNorm2d) for module in called)  # there it stands before
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


@pytest.mark.parametrize("images", [1, 8, 9, 20])
def test_images_taken_a_few_at_a_time_get_the_features_of_all_at_once(images):
    encoder = TorchvisionEncoder("resnet18", "layer4", weights="none").eval()
    lively(encoder)
    pictures = torch.randn(images, 3, 32, 32)
    with torch.inference_mode():
        for parts, whole in zip(encoder(pictures), encoder.look(pictures)):
            torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_a_folder_gives_each_network_the_file_with_its_name(tmp_path):
    state = get_model("resnet18", weights=None).state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match="neither resnet34.safetensors nor resnet34.pth"):
        encoder("resnet34", weights=str(tmp_path))
    loaded = encoder(weights=str(tmp_path)).body.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if key in loaded and "num_batches" not in key)
    body = type(encoder())
    settings = {"name": "resnet18", "weights": str(tmp_path)}
    assert body.frozen_weights(1, settings) == body.frozen_weights(2, settings | {"weights": str(tmp_path / "resnet18.pth")})


def test_resnet50_caffe_is_resnet50_in_caffes_style():
    from captioning.build.compose import as_dict, composed

    words = ["run=x", "encoder.weights=none"]
    caffe = as_dict(composed("train", ["encoder=resnet50_caffe", *words]))["encoder"]
    assert caffe == as_dict(composed("train", ["encoder=resnet50", "encoder.style=caffe", *words]))["encoder"]
