"""Encoders: from images to features. One adapter serves every torchvision classification CNN; `SmallCNN` is for drawings."""

import itertools
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from captioning.errors import UserError, did_you_mean
from captioning.kinds import Count, Number
from captioning.models.features import FeatureDims, ImageFeatures
from captioning.models.weights import find_weights, load_weights, sha256

LAYERS = {  # names people use for torchvision's layers; any other node of the network may be named as torchvision names it
    "vgg16": {
        "block5_conv3": "features.29",
        "block5_pool": "features.30",
        "fc1": "classifier.1",
        "fc2": "classifier.4",
    },
    "vgg19": {
        "block5_conv4": "features.35",
        "block5_pool": "features.36",
        "fc1": "classifier.1",
        "fc2": "classifier.4",
    },
}
IMAGES_AT_ONCE = 8  # on a CPU: their activations stay in its cache, which makes ResNet-50 up to twice as fast as 32 at once


class Encoder(nn.Module):
    """Images (B, 3, h, w) to ImageFeatures: a grid (B, N, D) and a pooled vector (B, P)."""

    dims: FeatureDims
    finetune_lr: float | None = None  # its own learning rate; None: the optimizer's
    finetune_epoch: int = 0  # the epoch, counted from 0, at which its parameters begin to move

    @property
    def is_frozen(self) -> bool:
        """Never trained: its features may be kept, its weights saved once."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    @classmethod
    def frozen_weights(cls, seed: int, settings: dict[str, Any]) -> str | None:
        """What tells the weights of a frozen encoder with these settings from all others, known without building it.
        None: it is trained, or has to be built for that."""
        return None

    def fold(self) -> "Encoder":
        """The same function of images in fewer operations, where there is one. Its weights are others afterwards."""
        return self


class GivenFeatures(Encoder):
    """The encoder of a run whose features were extracted before: its input is the features, as they are stored."""

    def __init__(self, dims: FeatureDims):
        super().__init__()
        self.dims = dims

    def forward(self, features: ImageFeatures) -> ImageFeatures:
        return features.in_working_precision()


class SmallCNN(Encoder):
    """Four strided convolutions, trained from nothing: for drawn data. A 64-pixel picture gives a grid of 8 x 8 cells."""

    def __init__(self, channels: Count = 128):
        super().__init__()
        widths = (3, channels // 4, channels // 2, channels)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.ReLU()]
        self.body = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.where = nn.Linear(2, channels)  # a cell knows its place: convolutions alone cannot say "left"
        self.dims = FeatureDims(channels, channels)

    def forward(self, images: Tensor) -> ImageFeatures:
        x = self.body(images.contiguous(memory_format=torch.channels_last))  # (B, D, h, w)
        y, x_axis = (torch.linspace(-1, 1, side, device=x.device) for side in x.shape[2:])
        places = torch.stack(torch.meshgrid(y, x_axis, indexing="ij"), dim=-1).flatten(0, 1)  # (N, 2)
        grid = x.flatten(2).transpose(1, 2) + self.where(places)  # (B, N, D)
        return ImageFeatures(grid, grid.amax(dim=1))


class TorchvisionEncoder(Encoder):
    """Any classification CNN of torchvision, cut open at two nodes.

    name: torchvision's name of the model (`vgg16`, `densenet201`, `convnext_tiny`, ...).
    grid: the node whose (B, D, h, w) output is the grid; torchvision's name or one of LAYERS.
    pooled: `mean`, the average over the grid's cells, or a node with one vector an image (`fc2`: VGG's second
        fully connected layer, after its ReLU).
    weights: `imagenet` (torchvision's IMAGENET1K_V1, downloaded once), `none` (random), a file (.pth, .safetensors), or a folder with
        NAME.safetensors or NAME.pth in it: so one setting serves a sweep over encoders.
    style: `caffe` puts ResNet's stride in the 1x1 convolution and its max-pool's rounding up, as the original had it.
    finetune: `none`, `all`, or `from STAGE`: the parameters of that module and of all after it.

    A pretrained body stays in eval mode in fine-tuning too: statistics of its BatchNorm are ImageNet's.
    """

    def __init__(
        self,
        name: str,
        grid: str,
        *,
        pooled: str = "mean",
        weights: str = "imagenet",
        style: Literal["torchvision", "caffe"] = "torchvision",
        finetune: str = "none",
        finetune_lr: Number = 1e-5,
        finetune_epoch: Number = 0,
    ):
        super().__init__()
        import torchvision  # slow to import: only where images are read

        refuse_unknown(name)
        model = torchvision.models.get_model(name, weights=None)
        if style == "caffe":
            as_in_caffe(model, name)
        self.body = cut_open(model.eval(), name, grid, pooled)
        if weights != "none":
            load_weights(self.body, find_weights(name, weights), whole=model, name=name)
        self.body = self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
        self.pretrained = weights != "none"
        self.finetune_lr, self.finetune_epoch = finetune_lr, int(finetune_epoch)
        self.unfreeze(finetune)
        self.dims = self.measure(grid, pooled)
        self.train()

    @classmethod
    def frozen_weights(cls, seed: int, settings: dict[str, Any]) -> str | None:
        weights = settings.get("weights", "imagenet")
        if settings.get("finetune", "none") != "none":
            return None
        if weights == "imagenet":
            refuse_unknown(settings["name"])
        return f"seed {seed}, torch {torch.__version__}" if weights == "none" else sha256(find_weights(settings["name"], weights))

    def fold(self) -> "TorchvisionEncoder":
        self.body = fuse(self.body.eval(), inplace=True, no_trace=True)  # BatchNorm into the convolution before it
        return self

    def unfreeze(self, finetune: str) -> None:
        names = [name for name, _ in self.body.named_parameters()]
        stage = finetune.removeprefix("from ")
        first = next((i for i, name in enumerate(names) if name.startswith(f"{stage}.")), None)
        if finetune == "none":
            first = len(names)
        elif finetune == "all":
            first = 0
        elif first is None or stage == finetune:
            stages = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, min(3, name.count(".")) + 1)}
            raise UserError(f"encoder.finetune={finetune}: allowed are none, all, or `from STAGE`.{did_you_mean(stage, stages)}")
        for index, parameter in enumerate(self.body.parameters()):
            parameter.requires_grad_(index >= first)

    @torch.no_grad()
    def measure(self, grid: str, pooled: str) -> FeatureDims:
        self.body.eval()
        try:
            nodes = self.body(torch.zeros(1, 3, 96, 96))
        except (AssertionError, RuntimeError) as error:  # a transformer, say, takes one size only
            raise UserError(f"encoder: this network does not take pictures of any size ({error}); CNNs do") from None
        if nodes["grid"].dim() != 4:
            raise UserError(f"encoder.grid={grid}: gives no grid (channels, height, width) but {tuple(nodes['grid'].shape[1:])}")
        if "pooled" in nodes and nodes["pooled"].dim() != 2:
            raise UserError(f"encoder.pooled={pooled}: gives no vector but {tuple(nodes['pooled'].shape[1:])}; `mean` averages the grid")
        return FeatureDims(nodes["grid"].shape[1], nodes.get("pooled", nodes["grid"]).shape[1])

    def train(self, mode: bool = True) -> "TorchvisionEncoder":
        super().train(mode)
        self.body.train(mode and not self.pretrained and not self.is_frozen)
        return self

    def forward(self, images: Tensor) -> ImageFeatures:
        images = images.contiguous(memory_format=torch.channels_last)
        if images.device.type != "cpu" or self.body.training or torch.compiler.is_exporting():  # a graph is for any number of images
            return self.look(images)
        features = [self.look(few) for few in images.split(IMAGES_AT_ONCE)]  # each depends on its own image alone
        return ImageFeatures(*(torch.cat(parts) for parts in zip(*features)))

    def look(self, images: Tensor) -> ImageFeatures:
        nodes = self.body(images)
        grid = nodes["grid"].flatten(2).transpose(1, 2)  # (B, N, D)
        return ImageFeatures(grid, nodes["pooled"] if "pooled" in nodes else grid.mean(dim=1))


def refuse_unknown(name: str) -> None:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)  # classifiers only
    if name not in known:
        raise UserError(f"encoder.name={name}: torchvision has no such model.{did_you_mean(name, known)}")


def cut_open(model: nn.Module, name: str, grid: str, pooled: str) -> nn.Module:
    """The part of the model that gives these nodes, as `{"grid": ..., "pooled": ...}`."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    names = LAYERS.get(name, {})
    nodes = {"grid": names.get(grid, grid)} | ({"pooled": names.get(pooled, pooled)} if pooled != "mean" else {})
    known = get_graph_node_names(model, suppress_diff_warning=True)[1]
    for key, node in nodes.items():
        if node not in known and not any(other.startswith(f"{node}.") for other in known):
            raise UserError(f"encoder.{key}={node}: {name} has no such layer.{did_you_mean(node, [*names, *known])}")
    return create_feature_extractor(model, return_nodes={node: key for key, node in nodes.items()}, suppress_diff_warning=True)


def as_in_caffe(model: nn.Module, name: str) -> None:
    """The original ResNet (He et al. 2016, as released for Caffe): stride in the first 1x1, a max-pool that rounds up."""
    if not (name.startswith("resnet") and hasattr(model.layer4[0], "conv3")):  # type: ignore[index]
        raise UserError(f"encoder.style=caffe: is for resnet50, resnet101 and resnet152, not for {name}")
    for layer in (model.layer2, model.layer3, model.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)  # type: ignore[index]
    model.maxpool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
