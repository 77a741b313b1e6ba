"""Laws of every decoder."""

import functools

import pytest
import torch
from conftest import DECODERS, DIMS, VOCABULARY, features, opinionated

from captioning.errors import UserError
from captioning.models.decoders.additive import Scores
from captioning.models.decoders.base import Decoder
from captioning.models.vectors import read_vectors
from captioning.search import Beam, select

TOKENS = torch.randint(0, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(2))


def test_forward_equals_step_by_step(decoder):
    at_once = decoder(features(3), TOKENS)
    by_steps = Decoder.forward(decoder, features(3), TOKENS)
    torch.testing.assert_close(at_once.logits, by_steps.logits, atol=1e-5, rtol=1e-4)
    if decoder.attends:
        torch.testing.assert_close(at_once.attention, by_steps.attention, atol=1e-5, rtol=1e-4)


def test_the_image_matters_and_so_does_each_earlier_word(decoder):
    logits = decoder(features(3), TOKENS).logits
    other_image = decoder(features(3).select(torch.tensor([1, 2, 0])), TOKENS).logits
    assert (logits[:, -1] - other_image[:, -1]).abs().max() > 1e-3
    changed = TOKENS.clone()
    changed[:, 2] = (changed[:, 2] + 1) % VOCABULARY
    other_word = decoder(features(3), changed).logits
    assert torch.equal(logits[:, :2], other_word[:, :2])  # no word sees a later one
    assert (logits[:, 2] - other_word[:, 2]).abs().max() > 1e-3


def test_hypotheses_of_an_image_share_its_memory_and_do_not_mix(decoder):
    state = decoder.init_state(features(2))
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    wide = select(state, rows)
    assert all(shared.data_ptr() == own.data_ptr() for shared, own in zip(wide.memory, state.memory))
    tokens = torch.tensor([4, 5, 6, 6, 5, 4])
    logits, _ = decoder.step(tokens, wide)
    for row, image in enumerate(rows):
        alone = decoder.init_state(features(2).select(image[None]))
        torch.testing.assert_close(logits[row], decoder.step(tokens[row : row + 1], alone)[0][0], atol=1e-5, rtol=1e-4)


def test_an_image_alone_and_in_a_batch_gets_the_same_caption(decoder):
    search = Beam(3, max_length=8)
    together = search(decoder.step, decoder.init_state(features(5)))
    for image in range(5):
        alone = search(decoder.step, decoder.init_state(features(5).select(torch.tensor([image]))))
        length = alone.tokens.shape[2]
        assert torch.equal(alone.tokens[0], together.tokens[image, :, :length])
        torch.testing.assert_close(alone.scores[0], together.scores[image], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["attention-lstm", "attention-gru", "adaptive"])
def test_attention_is_a_share_of_the_cells(name):
    attention = opinionated(DECODERS[name]())(features(3), TOKENS).attention
    assert attention.shape == (3, 6, 4) and (attention >= 0).all()
    total = attention.sum(dim=2)
    if name == "adaptive":
        assert (total < 1).all()  # the sentinel has the rest
    else:
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("name", ["lstm-init-1", "gru-merge-2", "attention-lstm", "adaptive"])
def test_tied_embeddings_are_one_tensor(name):
    decoder = DECODERS[name](tied=True)
    assert decoder.words.out.weight is decoder.words.vectors.weight
    torch.testing.assert_close(decoder.eval()(features(3), TOKENS).logits, Decoder.forward(decoder, features(3), TOKENS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_decoder_trains_under_autocast_on_a_cpu(decoder, dtype):
    decoder.train()
    with torch.autocast("cpu", dtype):
        output = decoder(features(3), TOKENS)
    output.logits.float().logsumexp(-1).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)


def test_vectors_fill_the_rows_of_the_words_they_have(tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text("dog 1 2 3\nunheard 4 5 6\ncat 7 8 9\n")
    weight = torch.randn(4, 3)
    before = weight.clone()
    assert read_vectors(file, ["<pad>", "cat", "bird", "dog"], weight) == 2
    assert torch.equal(weight[[0, 2]], before[[0, 2]])
    torch.testing.assert_close(weight[1] / weight[3], torch.tensor([7.0, 4.0, 3.0]))
    with pytest.raises(UserError, match="line 1: 3 numbers; decoder.embedding_size=5"):
        read_vectors(file, ["dog"], torch.randn(1, 5))


def test_our_cells_are_torchs():
    """Our cells have their products made elsewhere; they must still be the cells everybody means."""
    from captioning.models.decoders.attention import gru, lstm

    x, hidden, cell = torch.randn(2, 5), torch.randn(2, 7), torch.randn(2, 7)
    for ours, order, reference in (
        (lambda a, b: gru(a, b, hidden), [1, 0, 2], torch.nn.GRUCell(5, 7)),  # ours: update, reset, new
        (lambda a, b: lstm(a + b, cell)[0], [0, 1, 3, 2], torch.nn.LSTMCell(5, 7)),  # write, keep, show, new
    ):
        theirs = reference(x, hidden) if len(order) == 3 else reference(x, (hidden, cell))[0]
        gates = [x @ reference.weight_ih.T + reference.bias_ih, hidden @ reference.weight_hh.T + reference.bias_hh]
        torch.testing.assert_close(ours(*(torch.cat([part.chunk(len(order), -1)[i] for i in order], -1) for part in gates)), theirs)


def test_gradients_of_the_loops_weights_made_later_are_those_made_step_by_step(attending):
    found = {}
    for way in ("later", "at once"):
        attending.is_compiled = way == "at once"  # which takes the maps as they are
        attending.zero_grad()
        attending(features(3), TOKENS).logits.square().sum().backward()
        found[way] = {name: parameter.grad for name, parameter in attending.named_parameters()}
    for name, gradient in found["later"].items():
        torch.testing.assert_close(gradient, found["at once"][name], atol=1e-3, rtol=1e-5)  # of hundreds


@pytest.mark.parametrize("K", [1, 2])
def test_in_half_precision_the_gathered_gradients_are_those_of_full_precision(attending, K):
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        attending.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = attending(features(4 // K).in_working_precision(), torch.cat([TOKENS, TOKENS[:1]]))
        (output.logits.float().log_softmax(-1)[..., 5].sum() / 10).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in attending.parameters()]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.995


@pytest.mark.parametrize("K", [1, 3])
def test_scores_and_gradients_made_in_parts_are_those_of_the_formula(K, monkeypatch):
    draws = torch.Generator().manual_seed(0)
    parts = [torch.randn(shape, generator=draws, requires_grad=True) for shape in ((5, K, 6), (5, 4, 6), (6,))]
    upstream = torch.randn(5, K, 4, generator=draws)
    queries, keys, weights = parts
    plain = torch.tanh(keys[:, None] + queries[:, :, None]) @ weights
    monkeypatch.setattr("captioning.models.decoders.additive.NUMBERS_AT_ONCE", 2 * K * 24)  # two images at once, one in the end
    ours = Scores(weights)(queries, keys)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(*(torch.autograd.grad(scores, parts, upstream) for scores in (ours, plain))):
        torch.testing.assert_close(a, b)


def test_captions_of_an_image_side_by_side_are_as_if_each_had_its_own(decoder):
    image, tokens = features(2), torch.cat([TOKENS[:2], TOKENS[:2].flip(0)])
    together = decoder(image, tokens)
    apart = decoder(image.select(torch.tensor([0, 0, 1, 1])), tokens)
    torch.testing.assert_close(together.logits, apart.logits)
    if decoder.attends:
        torch.testing.assert_close(together.attention, apart.attention)


def test_a_compiled_loop_has_few_graphs_whatever_the_lengths_and_batches(attending, monkeypatch):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    torch._dynamo.reset()
    plain = attending(features(3), TOKENS).logits
    attending.compile_parts()
    torch.testing.assert_close(attending(features(3), TOKENS).logits, plain)
    for images, length in ((8, 6), (8, 9), (5, 4), (7, 8)):
        attending(features(images), torch.ones(images, length, dtype=torch.long)).logits.sum().backward()
    with torch.inference_mode():
        for images in (8, 3):
            Beam(3, max_length=6)(attending.step, attending.init_state(features(images)))
    assert len(graphs) <= 4  # the first step and the others, in training and in search


assert DIMS.grid != DIMS.pooled  # else a decoder that took the wrong one would pass


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_recurrence_begins_orthogonal_and_forget_gates_open(cell):
    rnn = DECODERS[f"{cell}-read-2"]().rnn
    for weight in (rnn.weight_hh_l0, rnn.weight_hh_l1):
        for gate in weight.split(rnn.hidden_size):
            torch.testing.assert_close(gate @ gate.T, torch.eye(rnn.hidden_size), atol=1e-5, rtol=0)
    bias = (rnn.bias_ih_l0 + rnn.bias_hh_l0).unflatten(0, (-1, rnn.hidden_size))
    assert bias.sum() == (rnn.hidden_size if cell == "lstm" else 0) and (cell != "lstm" or (bias[1] == 1).all())


@pytest.mark.parametrize("name", ["attention-lstm", "adaptive"])
def test_forget_gates_of_attending_decoders_begin_open(name):
    """The second quarter (fifth) of the gates keeps the cell: with its bias far below 0, the cell forgets."""
    decoder = DECODERS[name]().eval()
    gates = decoder.from_word.bias.unflatten(0, (-1, 7))
    assert (gates[1] == 1).all() and gates[0].abs().max() < 1
    state = decoder.init_state(features(1))
    state = state._replace(cell=torch.full_like(state.cell, 5.0))
    with torch.no_grad():
        kept = decoder.step(torch.tensor([4]), state)[1].cell.abs().mean()
        gates[1].fill_(-20)
        forgot = decoder.step(torch.tensor([4]), state)[1].cell.abs().mean()
    assert kept > 2 > 1 > forgot
