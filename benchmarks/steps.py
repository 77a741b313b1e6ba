"""Training steps: forward, loss, backward, optimizer. A ratio is given only where loss and gradients have been found equal."""

import importlib.util
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks.baselines import Plain, PlainAttention, plain_of
from benchmarks.flops import Flops, Sizes, flops_of
from benchmarks.material import DIMS, ROOT, Material, batch_of, decoder_of, five_captions
from benchmarks.measure import DTYPES, Goal, Product, Row, Run, Work, interleaved, peak_memory, row
from captioning.models.decoders.base import Decoder, DecoderOutput
from captioning.training.losses import CrossEntropy

TOLERANCE = 1e-4
GRIDS = {"7x7": (64, 49), "14x14": (32, 196)}  # captions a batch, cells
PLAIN = {"attention": "sgrvinod's way", "adaptive": "step by step"} | dict.fromkeys(("lstm", "gru", "rnn"), "yunjey's way")


def our_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """As configs/optimizer/adam.yaml has it."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/optimizer/adam.yaml"))
    return torch.optim.Adam(parameters, **{key: value for key, value in settings.items() if key != "_target_"})


def our_loss(decoder: Decoder, material: Material, precision: str = "fp32", read: Callable[..., DecoderOutput] | None = None) -> Tensor:
    tokens = material.tokens
    with torch.autocast(tokens.device.type, DTYPES[precision], enabled=precision != "fp32"):
        output = (read or decoder)(material.features.in_working_precision(), tokens[:, :-1])
    return CrossEntropy()(output, tokens[:, 1:]) / material.words


def our_step(decoder: Decoder, material: Material, precision: str = "fp32") -> Work:
    return step_of(lambda: our_loss(decoder, material, precision), our_optimizer(list(decoder.parameters())))


def plain_step(model: Plain, material: Material) -> Work:
    features = material.beside
    return step_of(lambda: model.loss(features, material.tokens), torch.optim.Adam(model.parameters(), lr=4e-4))


def step_of(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Work:
    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    loss.backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


def difference(decoder: Decoder, plain: Plain, material: Material) -> float:
    """Of loss and gradients, the largest relative one; on copies, so that nothing is left behind."""
    decoder, plain = deepcopy(decoder), deepcopy(plain)
    loss, their_loss = our_loss(decoder, material), plain.loss(material.beside, material.tokens)
    ours, theirs = plain.renamed(gradients(loss, decoder)), gradients(their_loss, plain)
    assert ours.keys() == theirs.keys()
    apart = [float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs]
    return max([abs(float(loss.detach() / their_loss.detach()) - 1), *apart])


def floor_of(decoder: Decoder, material: Material) -> Flops:
    return flops_of(decoder, DIMS, Sizes(len(material.features.grid), material.features.grid.shape[1], material.words))


def measured(run: Run, work: str, name: str, baseline: Work, ours: dict[str, Work], flops: Flops, goals: dict[str, Goal]) -> Iterator[Row]:
    """All ways turn by turn, the machine's matrix products among them; a row for each of ours."""
    precisions = {way: "bf16" if "bf16" in way else "fp32" for way in ours}
    products = {precision: Product(run, precision) for precision in set(precisions.values())}
    times = interleaved(run, {"baseline": baseline, **ours} | {f"{name} product": product for name, product in products.items()})
    for way, precision in precisions.items():
        floor = products[precision].seconds_of(flops.training, times[f"{precision} product"])
        yield row(f"{work}, {way}", PLAIN[name], times["baseline"], times[way], floor=floor, goal=goals.get(way, Goal()))


def step_rows(run: Run, work: str, name: str, material: Material, goals: dict[str, Goal], compiled: bool = False) -> Iterator[Row]:
    decoder = decoder_of(name, run.device)
    flops = floor_of(decoder, material)
    if name == "adaptive":  # its definition, looped over: nobody's tutorial
        other = decoder_of(name, run.device)
        baseline = step_of(
            lambda: our_loss(other, material, read=lambda *inputs: Decoder.forward(other, *inputs)),
            torch.optim.Adam(other.parameters(), lr=4e-4),
        )
    else:
        plain = plain_of(decoder)
        try:
            apart = difference(decoder, plain, material)
        except RuntimeError as error:
            yield Row(work, PLAIN[name], goal=goals.get("fp32", Goal()), note=f"not there yet: {str(error).splitlines()[0][:80]}")
            return
        if not apart < TOLERANCE:
            yield Row(work, PLAIN[name], note=f"no ratio: loss or gradients differ by {apart:.1e}")
            return
        baseline = plain_step(plain, material)
    ours = {}
    for precision in ("fp32", "bf16"):
        copy = deepcopy(decoder)
        if compiled:
            copy.compile_parts()
        ours[precision] = our_step(copy, material, precision)
    yield from measured(run, work, name, baseline, ours, flops, goals)


def attention(grid: str, compiled: bool = False) -> Callable[[Run], Iterator[Row]]:
    def rows(run: Run) -> Iterator[Row]:
        batch_size, cells = GRIDS[grid]
        fp32, bf16 = {"7x7": (4, 8), "14x14": (7, 14)}[grid]
        goals = {"fp32": Goal(fp32, floor=0.8), "bf16": Goal(bf16, floor=0.7)}
        material = batch_of(batch_size, cells, run.device)
        yield from step_rows(run, f"attention step {grid} b{batch_size}{', compiled' * compiled}", "attention", material, goals, compiled)

    return rows


def attention_five(grid: str) -> Callable[[Run], Iterator[Row]]:
    def rows(run: Run) -> Iterator[Row]:
        batch_size, cells = GRIDS[grid]
        material = five_captions(batch_size, cells, run.device)
        goals = {"fp32": Goal(10 if grid == "14x14" else None)}
        captions, images = len(material.tokens), len(material.features.pooled)
        yield from step_rows(run, f"attention step {grid}, {captions} captions of {images} images", "attention", material, goals)

    return rows


def other(name: str) -> Callable[[Run], Iterator[Row]]:
    def rows(run: Run) -> Iterator[Row]:
        material = batch_of(64, 49 if name == "adaptive" else 1, run.device)
        ratios = (1.35, 2.8) if name == "lstm" else (None, None)
        goals = {"fp32": Goal(ratios[0], floor=0.8), "bf16": Goal(ratios[1], floor=0.7)}
        yield from step_rows(run, f"{name} step b64", name, material, goals)

    return rows


def peer_step(run: Run) -> Iterator[Row]:
    """sgrvinod's own DecoderWithAttention, fed as its train.py feeds it. Its score has a ReLU where the paper has tanh, and it
    answers from the hidden state alone, so its gradients are its own: the ratio compares cost, ours having more to do."""
    for grid, (batch_size, cells) in GRIDS.items():
        work, against = f"attention step {grid} b{batch_size}", "sgrvinod itself"
        if "sgrvinod" not in run.peers:
            yield Row(work, against, note="--peer sgrvinod=DIR: a clone of sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning")
            continue
        material = batch_of(batch_size, cells, run.device)
        decoder = decoder_of("attention", run.device)
        peer = peer_decoder(run.peers["sgrvinod"], decoder).to(run.device)
        optimizer = torch.optim.Adam(peer.parameters(), lr=4e-4)
        lengths = (material.tokens != 0).sum(dim=1, keepdim=True)

        def loss(peer: nn.Module = peer, material: Material = material, lengths: Tensor = lengths) -> Tensor:
            scores, captions, steps, _, _ = peer(material.features.grid, material.tokens, lengths)
            packed = [nn.utils.rnn.pack_padded_sequence(part, steps, batch_first=True).data for part in (scores, captions[:, 1:])]
            return nn.functional.cross_entropy(packed[0], packed[1])

        ours = {"fp32": our_step(decoder, material), "bf16": our_step(deepcopy(decoder), material, "bf16")}
        for made in measured(run, work, "attention", step_of(loss, optimizer), ours, floor_of(decoder, material), {}):
            yield made._replace(against=against, note="cost alone: its mathematics differ a little")


def peer_decoder(folder: Path, decoder: Decoder) -> nn.Module:
    """The peer's class with those of our weights that it has a place for."""
    spec = importlib.util.spec_from_file_location("peer_models", folder / "models.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours = PlainAttention.renamed(decoder.state_dict())  # type: ignore[arg-type]
    V, E = ours["embedding.weight"].shape
    A, D = ours["project_cells.weight"].shape
    H = ours["project_hidden.weight"].shape[1]
    peer = module.DecoderWithAttention(attention_dim=A, embed_dim=E, decoder_dim=H, vocab_size=V, encoder_dim=D, dropout=0.0)
    names = {
        "embedding": "embedding", "attention.encoder_att": "project_cells", "attention.decoder_att": "project_hidden",
        "attention.full_att": "to_score", "init_h": "first_hidden", "init_c": "first_cell", "f_beta": "gate",
        "decode_step": "cell", "fc": "vocabulary",
    }  # fmt: skip
    given = {
        f"{theirs}{name.removeprefix(mine)}": x for theirs, mine in names.items() for name, x in ours.items() if name.startswith(f"{mine}.")
    }
    peer.load_state_dict(given, strict=False)
    return peer


def memory(run: Run) -> Iterator[Row]:
    """Peak memory of one step beyond features, weights and Adam's moments; the columns of times hold MB here."""
    for name, (batch_size, cells) in {"attention 7x7": (64, 49), "attention 14x14": (32, 196), "lstm": (64, 1)}.items():
        decoder = decoder_of(name.split()[0], run.device)
        material = batch_of(batch_size, cells, run.device)
        steps = plain_step(plain_of(decoder), material), our_step(decoder, material)
        peaks = []
        for step in steps:
            step()  # the moments are made
            peaks.append(peak_memory(run, step))
        work, against = f"peak memory, {name} step b{batch_size} (MB)", PLAIN[name.split()[0]]
        if None in peaks or not all(peaks):
            yield Row(work, against, note="unknown on this system")
            continue
        theirs, ours = peaks
        yield Row(work, against, theirs / 1e9, ours / 1e9, theirs / ours)
