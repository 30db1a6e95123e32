"""Part III of the notebook: dropout, more data, the fits, and the Transformer by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from notebook_code import ROOT, code_cells, definitions
from small import NAMES, OTHERS, fit, small
from test_layers import against_autograd, same

from charlm_utils import build_dataset, load_names, sample_names, split_names

DOUBLE = {"dtype": torch.float64}
HEADS = 2
LONG = "abcdefghijklmno"  # 15 letters: the longest name that fits
MIXED = ["emma", "a", "bo", LONG, "isabella", "zoe", "anna"]


def transformer(nb, seed=1, disturbed=True):
    """A small Transformer in float64; no parameter stands at 0 or 1 if `disturbed`."""
    layers = nb.make_transformer(8, HEADS, seed=seed).layers
    for part in [part for layer in layers for part in layer.parts()]:
        part.to(torch.float64)
    network = nb.Network(layers, device="cpu")
    network.context_size = nb.MAX_LENGTH
    if disturbed:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(network.parameters), generator=generator, **DOUBLE)
        network.parameters.add_(0.3 * noise)
    return network


def padded(sizes, generator):
    """Ids (names, longest size + 2): rows of these sizes, -1 behind them."""
    real = torch.arange(max(sizes) + 2) < torch.tensor(sizes)[:, None]
    return torch.randint(27, real.shape, generator=generator).masked_fill(~real, -1)


def read(nb, sizes, generator):
    """Rows that have read names of these sizes."""
    rows = nb.Rows()
    rows.read(padded(sizes, generator))
    return rows


# --- 12 Dropout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 7), (3, 4, 5), (1, 1)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_goes_back_through_the_mask_of_its_forward(nb, generator, rate, shape):
    x = torch.randn(shape, generator=generator, **DOUBLE)
    mask = nb.Dropout(rate, seed=3).forward(torch.ones_like(x))
    if mask.any():  # else a relative error has nothing to refer to
        against_autograd(nb.Dropout(rate, seed=3), lambda x: x * mask, x)
    layer = nb.Dropout(rate, seed=3)
    for _ in range(3):  # each forward has a mask of its own, and backward the latest
        y = layer.forward(x)
        dx = layer.backward(torch.ones_like(x))
        assert torch.equal(x * dx, y), "backward must use the mask of the latest forward"


def test_what_dropout_keeps_is_divided_by_the_share_that_it_keeps(nb):
    for rate in (0.1, 0.3, 0.5, 0.75):
        y = nb.Dropout(rate).forward(torch.ones(50, 40, **DOUBLE))
        assert set(y.unique().tolist()) == {0.0, 1 / (1 - rate)}, "divide by 1 - rate"


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(nb, rate):
    layer = nb.Dropout(rate)
    y = torch.stack([layer.forward(torch.ones(1_000)) for _ in range(300)])
    dropped, deviation = (y == 0).double().mean(), (rate * (1 - rate) / y.numel()) ** 0.5
    assert abs(dropped - rate) < 5 * deviation, f"{dropped:.4f} dropped at rate {rate}"
    assert abs(y.double().mean() - 1) < 5 * deviation / (1 - rate), "the mean must stay"
    share = (y == 0).double().mean(1)
    assert share.std() < 2 * (rate * (1 - rate) / 1_000) ** 0.5, "entries drop independently"


def test_dropout_draws_anew_for_each_example_and_each_unit(nb):
    y = nb.Dropout(0.5).forward(torch.ones(20, 30))
    assert len(y.unique(dim=0)) == 20, "all examples share one mask"
    assert len(y.unique(dim=1).T) == 30, "all units share one mask"


def test_without_a_rate_or_in_inference_mode_dropout_does_nothing(nb, generator):
    x, dy = torch.randn(2, 6, 5, generator=generator)
    idle, resting = nb.Dropout(0.0), nb.Dropout(0.5)
    resting.forward(x)  # a mask of training must not live on
    resting.training = False
    for layer in (idle, resting):
        assert torch.equal(layer.forward(x), x), "forward must hand x on as it is"
        assert torch.equal(layer.backward(dy), dy), "backward must hand dy on as it is"


def test_dropout_draws_the_same_masks_with_the_same_seed_and_new_ones_each_time(nb):
    ones = torch.ones(10, 10)
    first, second, other = (nb.Dropout(0.5, seed=seed) for seed in (4, 4, 5))
    runs = [[layer.forward(ones) for _ in range(3)] for layer in (first, second, other)]
    assert all(map(torch.equal, runs[0], runs[1])), "the same seed must give the same masks"
    assert not any(map(torch.equal, runs[0], runs[2])), "another seed must give other masks"
    assert not torch.equal(runs[0][0], runs[0][1]), "each forward must draw a new mask"


def test_dropout_leaves_the_global_random_state_alone(nb):
    before = torch.get_rng_state()
    nb.Dropout(0.5).forward(torch.ones(10, 10))
    assert torch.equal(torch.get_rng_state(), before), "draw from the layer's own generator"


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, math.nan, math.inf])
def test_a_dropout_rate_that_is_no_share_is_refused(nb, rate):
    with pytest.raises(ValueError, match="dropout rate.*at least 0 and below 1"):
        nb.Dropout(rate)
    with pytest.raises(ValueError, match="dropout rate"):
        nb.make_mlp("gain 1/2", batch_norm=True, dropout=rate)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_network_with_dropout_starts_from_the_parameters_of_one_without(nb, batch_norm):
    shape = {"batch_norm": batch_norm, "hidden_sizes": (9, 8)}
    plain, dropping = (small(nb, dropout=rate, **shape) for rate in (0.0, 0.3))
    assert torch.equal(plain.parameters, dropping.parameters)
    kinds = [type(layer).__name__ for layer in dropping.layers]
    after = [kinds[i - 1] for i, kind in enumerate(kinds) if kind == "Dropout"]
    assert after == ["Tanh", "Tanh"], "one Dropout behind each activation"
    assert "Dropout" not in [type(layer).__name__ for layer in plain.layers]
    masks = [part.forward(torch.ones(99)) for part in dropping.parts if hasattr(part, "rate")]
    assert not torch.equal(*masks), "the Dropout layers need different seeds"


def test_the_gradient_of_a_network_with_dropout_is_autograds(nb, data):
    network = small(nb, batch_norm=False, dropout=0.4, hidden_sizes=(9, 8), activation=nb.ReLU)
    network = nb.Network([layer.to(torch.float64) for layer in network.layers])
    loss = nb.CrossEntropy()
    value = loss.forward(network.forward(data[0]), data[1])
    network.backward(loss.backward())
    masks = [part.mask for part in network.parts if isinstance(part, nb.Dropout)]
    with torch.enable_grad():
        flat = network.parameters.clone().requires_grad_()
        C, W1, b1, W2, b2, W3, b3 = network.views(flat)
        h = torch.relu(F.embedding(data[0], C).flatten(1) @ W1 + b1) * masks[0]
        h = torch.relu(h @ W2 + b2) * masks[1]
        expected = F.cross_entropy(h @ W3 + b3, data[1])
        expected.backward()
    same(value, expected.detach(), "loss")
    same(network.gradient, flat.grad, "gradient")


def test_evaluating_has_no_dropout_and_training_goes_on_with_it(nb, data):
    network = small(nb, batch_norm=False, dropout=0.5)
    assert nb.evaluate(network, data) == nb.evaluate(network, data), "evaluation is not random"
    plain = small(nb, batch_norm=False)
    assert nb.evaluate(network, data) == nb.evaluate(plain, data), "evaluation drops units"
    assert all(part.training for part in network.parts), "training mode must come back"
    assert not torch.equal(network.forward(data[0]), network.forward(data[0]))


def test_looking_at_dev_changes_nothing_of_a_run_with_dropout(nb, data):
    runs = [small(nb, dropout=0.3) for _ in range(2)]
    fit(nb, runs[0], data, steps=10)
    fit(nb, runs[1], data, steps=10, dev=data, dev_points=5)
    assert torch.equal(runs[0].parameters, runs[1].parameters), "evaluation drew from the masks"


# --- 13 ReLU, mixtures, the bootstrap -----------------------------------------------------------


def test_relu_agrees_and_takes_the_gradient_0_at_0(nb, generator):
    x = torch.randn(30, 7, generator=generator, **DOUBLE)
    x[0] = 0
    against_autograd(nb.ReLU(), torch.relu, x)
    against_autograd(nb.ReLU(), torch.relu, 1e6 * x.view(5, 6, 7))


def test_kneser_ney_counts_what_unique_rows_would_give(nb, generator):
    for context in (1, 2, 4, 6):
        X = torch.randint(5, (800, context), generator=generator)
        X[:400] += 22  # tokens at both ends of the vocabulary
        Y = torch.randint(27, (800,), generator=generator)
        tables = nb.KneserNey(X, Y).tables
        assert len(tables) == context + 1
        for length, table in enumerate(tables[:-1]):
            rows = torch.cat([X[:, context - length - 1 :], Y[:, None]], 1).unique(dim=0)
            expected = nb.CountTable(rows[:, :-1], rows[:, -1], length)
            assert torch.equal(table.contexts, expected.contexts), f"contexts of {length}"
            assert torch.equal(table.counts, expected.counts), f"counts of {length}"
        assert tables[-1].counts.sum() == 800, "the longest context counts every example"


def test_crossing_is_the_first_place_below_and_none_if_there_is_none(nb):
    assert nb.crossing([1, 2, 3, 4], [9, 5, 3, 1], [6, 5, 4, 3]) == 3
    assert nb.crossing([1, 2], [0, 9], [1, 1]) == 1
    assert nb.crossing([1, 2], [5, 5], [5, 4]) is None, "equal is not below"


def test_a_predictor_gives_probabilities_from_the_networks_own_context(nb, data):
    network = small(nb, dropout=0.5)
    fit(nb, network, data)
    wide = build_dataset(NAMES, nb.vocab, 8)[0]
    p = nb.predictor(network)(wide)
    with network.inference():
        expected = network.forward(data[0]).softmax(1)
    assert torch.allclose(p, expected, atol=1e-6), "take the last tokens of a wider window"
    assert torch.allclose(p.sum(1), torch.ones(len(p))), "probabilities must sum to 1"
    assert all(part.training for part in network.parts)


def test_a_mixture_is_the_mean_of_its_members(nb, data):
    table = nb.add_alpha(nb.CountTable(*data, 2), 0.1)
    members = [nb.predictor(small(nb)), nb.predictor(small(nb, seed=2)), table]
    p = nb.mix(*members)(data[0])
    expected = sum(member(data[0]).double() for member in members) / 3
    assert torch.allclose(p.double(), expected, atol=1e-6)
    assert torch.allclose(p.sum(1), torch.ones(len(p))), "probabilities must sum to 1"
    assert torch.equal(nb.mix(table)(data[0]), table(data[0]))


def made_names(generator, count=1_500):
    """Names of different lengths, and two lists of losses of their characters."""
    sizes = torch.randint(2, 12, (count,), generator=generator)
    each = 0.1 + 0.5 * torch.randn(count, generator=generator, **DOUBLE)
    each += 0.1 * (sizes - 6)  # long names differ more: a mean over names is another one
    base = 3 * torch.rand(int(sizes.sum()), generator=generator, **DOUBLE)
    noise = 0.3 * torch.randn(len(base), generator=generator, **DOUBLE)
    names = ["x" * (size - 1) for size in sizes.tolist()]
    return names, sizes, base + each.repeat_interleave(sizes) + noise, base


def test_equal_losses_differ_by_exactly_nothing(nb, generator):
    names, _, losses, _ = made_names(generator, 50)
    assert nb.bootstrap(losses, losses.clone(), names, draws=50) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shift", [0.25, -0.5])
def test_a_constant_difference_has_no_spread_and_its_sign(nb, generator, shift):
    names, sizes, _, _ = made_names(generator, 50)
    others = torch.randint(8, (int(sizes.sum()),), generator=generator) / 4  # exact in binary
    found = nb.bootstrap(others + shift, others, names, draws=50)
    assert found == (shift, shift, shift), "losses minus others, per character, name by name"


def test_the_bootstraps_interval_is_that_of_the_delta_method(nb, generator):
    names, sizes, losses, others = made_names(generator)
    mean, low, high = nb.bootstrap(losses, others, names)
    totals = torch.stack([part.sum() for part in (losses - others).split(sizes.tolist())])
    expected = totals.sum() / sizes.sum()
    half = 1.96 * (totals - expected * sizes).square().sum().sqrt() / sizes.sum()
    assert mean == pytest.approx(expected.item(), rel=1e-9), "the mean is one per character"
    assert low < mean < high, "draw sums over sums, not a mean of the names' means"
    assert (high - low) / 2 == pytest.approx(half.item(), rel=0.1), "resample whole names, paired"
    naive = 1.96 * ((losses - others).std() / len(losses) ** 0.5).item()
    assert (high - low) / 2 > 1.5 * naive, "characters were resampled as if independent"
    back = nb.bootstrap(others, losses, names)
    assert back == pytest.approx((-mean, -high, -low), rel=1e-2), "swapped, the sign turns"


def test_the_bootstrap_answers_the_same_twice_and_leaves_the_global_state_alone(nb, generator):
    names, _, losses, others = made_names(generator, 60)
    before = torch.get_rng_state()
    found = [nb.bootstrap(losses, others, names, draws=100) for _ in range(2)]
    assert found[0] == found[1], "seed the generator inside bootstrap"
    assert torch.equal(torch.get_rng_state(), before)


# --- 14 More data -------------------------------------------------------------------------------


def more_names(nb, all_years, train_names, dev_names, test_names):
    """What the notebook's own cell `more-names` makes of these lists."""
    (source,) = (cell.source for cell in code_cells() if cell.id == "more-names")
    namespace = {"all_years": all_years, "train_names": train_names, "vocab": nb.vocab}
    namespace |= {"dev_names": dev_names, "test_names": test_names, "CONTEXT_8": 8}
    namespace["dataset"] = lambda some, context: build_dataset(some, nb.vocab, context)
    exec(source, namespace)
    assert len(namespace["more_8"][1]) == sum(len(n) + 1 for n in namespace["more_names"])
    return namespace["more_names"]


def test_no_dev_or_test_name_is_among_the_names_of_all_years(nb, capsys):
    names = load_names(ROOT / "names.txt")
    all_years = load_names(ROOT / "names_all_years.txt")
    train, dev, test = split_names(names, (0.8, 0.1, 0.1), seed=42)
    found = more_names(nb, all_years, train, dev, test)
    held_out = set(dev) | set(test)
    assert len(held_out & set(all_years)) > 5_000, "else there was nothing to take out"
    assert not held_out & set(found), "a name of the exam is in the training list"
    assert len(found) == len(all_years) - len(held_out & set(all_years)), "nothing else goes"
    assert set(train) & set(all_years) <= set(found), "training names must stay"
    assert f"{len(found):,} without dev and test names" in capsys.readouterr().out


@pytest.mark.parametrize("planted", ["zoe", "noah"])  # of dev, of test
def test_a_name_of_the_exam_that_is_planted_disappears(nb, planted):
    lists = NAMES, ["zoe", "max"], ["noah", "ruby"]
    assert more_names(nb, ["emma", planted, "ada"], *lists) == ["emma", "ada"]


def test_a_name_with_a_character_that_no_model_knows_is_left_out(nb):
    lists = NAMES, ["zoe"], ["noah"]
    assert more_names(nb, ["emma", "zoë", "ada", "éva"], *lists) == ["emma", "ada"]


def test_a_power_law_without_noise_is_found_exactly(nb):
    x = [100, 250, 700, 3_000]
    a, b, half = nb.power_law(x, [7.5 * n**-0.13 for n in x])
    assert a == pytest.approx(7.5, rel=1e-10) and b == pytest.approx(0.13, rel=1e-10)
    assert half < 1e-10, "no noise, no interval"
    assert nb.power_law(x, [2 * n**0.5 for n in x])[1] == pytest.approx(-0.5), "b is minus slope"


@pytest.mark.parametrize("points", [3, 4, 6])
def test_the_interval_of_the_exponent_covers_the_true_one_in_95_percent(nb, points):
    x, hits = [100 * 2**i for i in range(points)], 0
    for seed in range(300):
        noise = torch.randn(points, generator=torch.Generator().manual_seed(seed), **DOUBLE)
        y = [3 * n**-0.1 * math.exp(0.02 * e) for n, e in zip(x, noise.tolist())]
        _, b, half = nb.power_law(x, y)
        hits += abs(b - 0.1) <= half
    assert 0.90 <= hits / 300 <= 0.99, f"{hits} of 300 intervals hold the true exponent"


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1, 2], [2, 1]),
        ([1, 2, 0], [3, 2, 1]),
        ([1, 2, 3], [3, -2, 1]),
        ([], []),
        ([1] * 12, [1] * 12),
    ],
)
def test_a_power_law_needs_3_to_11_points_all_positive(nb, x, y):
    with pytest.raises(ValueError, match="3 to 11 points, all positive"):
        nb.power_law(x, y)


# --- 15 Rows ------------------------------------------------------------------------------------


def test_names_become_rows_with_the_next_character_as_target(nb):
    X, Y = nb.name_rows(["emma", "bo"])
    assert X.shape == Y.shape == (2, nb.MAX_LENGTH)
    rest = nb.MAX_LENGTH - 5
    assert X.tolist() == [[0, 5, 13, 13, 1] + [-1] * rest, [0, 2, 15] + [-1] * (rest + 2)]
    assert Y.tolist() == [[5, 13, 13, 1, 0] + [-1] * rest, [2, 15, 0] + [-1] * (rest + 2)]


def test_the_longest_name_fits_and_a_longer_one_is_refused_with_its_length(nb):
    X, Y = nb.name_rows([LONG])
    assert len(LONG) == nb.MAX_LENGTH - 1 and (X >= 0).all() and Y[0, -1] == 0
    with pytest.raises(ValueError, match="16 letters.*at least 17"):
        nb.name_rows(["emma", LONG + "p"])


@pytest.mark.parametrize("sizes", [[3, 1, 6, 6, 2], [1, 1], [4]])
def test_spread_and_collect_undo_each_other_and_fill_the_holes_with_zeros(nb, generator, sizes):
    ids, rows = padded(sizes, generator), nb.Rows()
    flat, positions = rows.read(ids)
    assert flat.tolist() == [i for row in ids.tolist() for i in row if i >= 0]
    assert positions.tolist() == [t for size in sizes for t in range(size)]
    x = torch.randn(sum(sizes), 5, generator=generator)
    table = rows.spread(x)
    assert table.shape == (len(sizes), max(sizes), 5), "columns of padding alone are left out"
    assert torch.equal(rows.collect(table), x), "collect must undo spread"
    for row, part in zip(table, x.split(sizes)):
        assert torch.equal(row[: len(part)], part) and not row[len(part) :].any()
    table[ids[:, : max(sizes)] < 0] = math.nan
    assert torch.equal(rows.collect(table), x), "collect must leave the padding out"


def test_what_stands_in_the_padding_changes_no_loss_and_no_gradient(nb):
    network, (X, Y) = transformer(nb), nb.name_rows(["emma", "bo", "a"])
    wider = [F.pad(part, (0, 3), value=-1) for part in (X, Y)]
    narrower = [part[:, :5] for part in (X, Y)]
    other = [part.masked_fill(part < 0, -7) for part in (X, Y)]
    expected = None
    for data in ((X, Y), wider, narrower, other):
        loss = nb.CrossEntropy()
        loss.forward(network.forward(data[0]), data[1])
        network.backward(loss.backward())
        found = loss.losses.clone(), network.gradient.clone()
        expected = expected or found
        assert all(map(torch.equal, found, expected)), "padding must not reach any number"


# --- 15 Layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[5, 1, 3, 5], [1], [2, 2]])
def test_token_and_position_adds_two_rows_and_their_gradients(nb, generator, sizes):
    ids = padded(sizes, generator).clamp(max=6)  # 7 tokens: they repeat

    def twin(ids, C, P):
        rows = zip(ids, sizes)
        return torch.cat([torch.stack([C[i] + P[t] for t, i in enumerate(r[:n])]) for r, n in rows])

    layer = nb.TokenAndPosition(9, 8, 4, nb.Rows(), generator)
    against_autograd(layer, twin, ids)
    assert not layer.dC[7:].any() and not layer.dP[max(sizes) :].any(), "never lent, gradient 0"


@pytest.mark.parametrize("shape", [(1, 3), (7, 5), (30, 24), (3, 64)])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_layer_norm_agrees_also_far_from_0(nb, generator, shape, offset):
    x = torch.randn(shape, generator=generator, **DOUBLE)
    x[::2] += offset
    size = shape[1:]
    against_autograd(
        nb.LayerNorm(*size), lambda x, gamma, beta: F.layer_norm(x, size, gamma, beta), x
    )


def test_layer_norm_uses_its_eps_and_bears_a_constant_row(nb, generator):
    x = torch.randn(4, 6, generator=generator, **DOUBLE)
    x[0] = 3  # variance 0
    twin = lambda x, gamma, beta: F.layer_norm(x, (6,), gamma, beta, eps=0.3)  # noqa: E731
    against_autograd(nb.LayerNorm(6, eps=0.3), twin, x)
    assert nb.LayerNorm(6).forward(x.float()).isfinite().all()


def test_gelu_agrees_from_the_middle_to_the_far_ends(nb):
    x = torch.linspace(-30, 30, 241, **DOUBLE)[:, None]
    against_autograd(nb.GELU(), lambda x: F.gelu(x, approximate="tanh"), x)
    layer, far = nb.GELU(), torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4])
    assert layer.forward(far).tolist() == [0, 0, 0, 30, 1e4]
    assert layer.backward(torch.ones(5)).tolist() == [0, 0, 0.5, 1, 1], "NaN or a wrong slope"


def one_name_attends(x, heads):
    """Attention of one name with itself, (n, 3E) -> (n, E), by PyTorch's own function."""
    q, k, v = x.view(len(x), 3, heads, -1).permute(1, 2, 0, 3)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("sizes", [[5, 2, 16, 1, 5], [2], [1, 1]])
def test_attention_agrees_with_each_name_on_its_own(nb, generator, sizes, heads):
    x = torch.randn(sum(sizes), 3 * 8, generator=generator, **DOUBLE)
    if max(sizes) == 1:  # nothing to choose from: dq = dk = 0, dv = dy
        layer, dy = nb.Attention(heads, read(nb, sizes, generator)), x[:, :8]
        assert torch.equal(layer.forward(x), x[:, 16:])
        assert torch.equal(layer.backward(dy), F.pad(dy, (16, 0)))
        return
    twin = lambda x: torch.cat([one_name_attends(part, heads) for part in x.split(sizes)])  # noqa: E731
    against_autograd(nb.Attention(heads, read(nb, sizes, generator)), twin, x)


def test_attention_bears_huge_scores(nb, generator):
    sizes = [6, 3]
    x = 100 * torch.randn(9, 24, generator=generator, **DOUBLE)
    layer = nb.Attention(2, read(nb, sizes, generator))
    expected = torch.cat([one_name_attends(part, 2) for part in x.split(sizes)])
    same(layer.forward(x), expected, "y; take each row's largest score away before exp")


def test_residual_adds_what_its_chain_finds(nb, generator):
    x = torch.randn(9, 6, generator=generator, **DOUBLE)
    against_autograd(nb.Residual(nb.ReLU()), lambda x: x + torch.relu(x), x)
    twin = lambda x: (x + torch.relu(x)) + torch.tanh(x + torch.relu(x))  # noqa: E731
    chain = nb.Residual(nb.ReLU()), nb.Residual(nb.Tanh())
    against_autograd(nb.Residual(), lambda x: 2 * x, x)
    network = [nb.Residual(nb.ReLU(), nb.Tanh(), nb.GELU()), *chain]
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        h = leaf + F.gelu(torch.tanh(torch.relu(leaf)), approximate="tanh")
        y = twin(h)
        y.backward(torch.ones_like(y))
    ours, dy = x, torch.ones_like(x)
    for layer in network:
        ours = layer.forward(ours)
    for layer in reversed(network):
        dy = layer.backward(dy)
    same(ours, y.detach(), "y")
    same(dy, leaf.grad, "dx")


def test_a_nested_residual_gives_its_parts_to_the_network(nb, generator):
    layers = [nb.Linear(4, 4, 1.0, generator), nb.Dropout(0.5), nb.LayerNorm(4), nb.ReLU()]
    inner = nb.Residual(layers[1], layers[2])
    outer = nb.Residual(layers[0], inner, layers[3])
    assert outer.parts() == layers, "parts() must reach into a Residual inside a Residual"
    network = nb.Network([outer, nb.Linear(4, 3, 1.0, generator)])
    for part in network.parts:
        part.to(torch.float64)
    network = nb.Network(network.layers)
    network.parameters.copy_(torch.randn(len(network.parameters), generator=generator))
    x = torch.randn(5, 4, generator=generator, **DOUBLE)
    y = network.forward(x)
    network.backward(torch.ones_like(y))
    with torch.enable_grad():
        flat = network.parameters.clone().requires_grad_()
        W, b, gamma, beta, V, c = network.views(flat)
        h = x @ W + b
        h = h + F.layer_norm(h * layers[1].mask, (4,), gamma, beta)
        twin = (x + torch.relu(h)) @ V + c
        twin.backward(torch.ones_like(twin))
    same(y, twin.detach(), "y")
    same(network.gradient, flat.grad, "gradient")
    with network.inference():
        assert torch.equal(network.forward(x), network.forward(x)), "Dropout inside stays active"
    assert all(layer.training for layer in layers), "training mode must come back inside, too"


def test_no_layer_of_part_3_changes_what_it_is_given(nb, generator):
    rows = read(nb, [5, 1, 2], generator)
    layers = [nb.Dropout(0.5), nb.ReLU(), nb.GELU(), nb.LayerNorm(12), nb.Attention(2, rows)]
    layers += [nb.Residual(nb.LayerNorm(12), nb.GELU()), nb.Residual(nb.Dropout(0.0))]
    for layer in layers:
        x = torch.randn(8, 12, generator=generator)
        dy = torch.randn(layer.forward(x.clone()).shape, generator=generator)
        before = x.clone(), dy.clone()
        layer.forward(x)
        layer.backward(dy)
        same_bits = torch.equal(x, before[0]) and torch.equal(dy, before[1])
        assert same_bits, f"{type(layer).__name__} works in place on a tensor that is not its own"


# --- 15 The whole Transformer -------------------------------------------------------------------


def one_name(leaves, ids):
    """Logits (T, V) of one name, written with nothing of the notebook, no padding, plain loops."""
    C, P, g1, b1, W1, c1, W2, c2, g2, b2, W3, c3, W4, c4, g3, b3, W5, c5 = leaves
    h = torch.stack([C[i] + P[t] for t, i in enumerate(ids)])
    E = h.shape[1]
    q, k, v = (F.layer_norm(h, (E,), g1, b1) @ W1 + c1).chunk(3, 1)
    answers, D = [], E // HEADS
    for head in range(HEADS):
        own = slice(head * D, (head + 1) * D)
        looked = []
        for i in range(len(ids)):
            weights = torch.softmax(k[: i + 1, own] @ q[i, own] / D**0.5, 0)
            looked.append(weights @ v[: i + 1, own])
        answers.append(torch.stack(looked))
    h = h + torch.cat(answers, 1) @ W2 + c2
    h = h + F.gelu(F.layer_norm(h, (E,), g2, b2) @ W3 + c3, approximate="tanh") @ W4 + c4
    return F.layer_norm(h, (E,), g3, b3) @ W5 + c5


@pytest.mark.parametrize("some", [MIXED, ["a"], ["bo", "ed"], [LONG]])
def test_the_gradient_of_a_whole_transformer_is_autograds_name_by_name(nb, some):
    network, (X, Y) = transformer(nb), nb.name_rows(some)
    loss = nb.CrossEntropy()
    logits = network.forward(X)
    value = loss.forward(logits, Y)
    logits = logits.clone()
    network.backward(loss.backward())
    with torch.enable_grad():
        flat = network.parameters.clone().requires_grad_()
        leaves = network.views(flat)
        encoded = [nb.vocab.encode("." + name) for name in some]
        expected = torch.cat([one_name(leaves, ids) for ids in encoded])
        targets = torch.tensor([i for ids in encoded for i in [*ids[1:], 0]])
        twin = F.cross_entropy(expected, targets)
        twin.backward()
    same(logits, expected.detach(), "logits")
    same(value, twin.detach(), "loss")
    parts = zip(network.named, network.views(network.gradient), network.views(flat.grad))
    for (layer, name), ours, theirs in parts:
        if theirs.abs().max() > 1e-12:  # a bias of the keys moves no weight: its gradient is 0
            same(ours, theirs, f"d{name} of {type(layer).__name__}")
    same(network.gradient, flat.grad, "gradient")


def test_a_transformer_starts_near_the_uniform_loss_the_same_with_the_same_seed(nb):
    network, data = nb.make_transformer(16, 4, seed=3), nb.name_rows(NAMES)
    assert nb.evaluate(network, data) == pytest.approx(math.log(27), abs=0.1)
    assert torch.equal(network.parameters, nb.make_transformer(16, 4, seed=3).parameters)
    assert not torch.equal(network.parameters, nb.make_transformer(16, 4, seed=4).parameters)
    E, wide = 16, 4 * 16
    expected = (27 + 16) * E + 6 * E + (E + 1) * 3 * E + (E + 1) * E
    expected += (E + 1) * wide + (wide + 1) * E + (E + 1) * 27
    assert network.parameters.numel() == expected and network.context_size == nb.MAX_LENGTH


def test_heads_that_do_not_divide_the_features_are_refused(nb):
    with pytest.raises(ValueError, match="dim 10 must be a multiple of heads 4"):
        nb.make_transformer(10, 4)


def test_a_transformers_parameters_are_views_and_its_state_can_be_loaded(nb):
    data, network, other = nb.name_rows(MIXED), transformer(nb), transformer(nb, seed=2)
    loss = nb.evaluate(network, data)
    assert nb.evaluate(other, data) != loss
    assert nb.evaluate(other.load(network.state()), data) == loss
    twin = copy.deepcopy(network)
    twin.parameters.zero_()
    assert nb.evaluate(twin, data) == pytest.approx(math.log(27)), "the copy is not on its own"
    assert nb.evaluate(network, data) == loss


@pytest.mark.parametrize("layer", [None, "LayerNorm", "GELU", "Attention", "Residual"])
def test_the_judge_of_the_transformer_finds_a_wrong_backward(layer):
    own = definitions(names=NAMES[:9] + MIXED + OTHERS)
    if layer:
        kind = getattr(own, layer)
        backward = kind.backward
        kind.backward = lambda self, dy: 1.1 * backward(self, dy)
        assert max(own.judge_transformer()) > 1e-2, f"a wrong {layer}.backward was not noticed"
    else:
        assert max(own.judge_transformer()) < 1e-10


# --- 15 Masking, windows, causality -------------------------------------------------------------


def test_targets_in_a_table_are_the_real_ones_in_a_row(nb, generator):
    _, Y = nb.name_rows(MIXED)
    real = Y >= 0
    table = torch.randn(*Y.shape, 27, generator=generator, **DOUBLE)  # logits, padding and all
    logits = table[real]
    two, one = nb.CrossEntropy(), nb.CrossEntropy()
    assert torch.equal(two.forward(logits, Y), one.forward(logits, Y[real]))
    assert torch.equal(two.backward(), one.backward())
    with torch.enable_grad():
        leaf = table.clone().requires_grad_()
        expected = F.cross_entropy(leaf.flatten(0, 1), Y.flatten(), ignore_index=-1)
        expected.backward()
    same(two.forward(logits, Y), expected.detach(), "loss: padding must not count")
    same(two.backward(), leaf.grad[real], "dlogits: the mean is over real characters")


def test_the_losses_over_rows_are_those_over_windows_in_the_same_order(nb):
    network, some = transformer(nb), MIXED + NAMES[:9] + OTHERS
    X, Y = nb.name_rows(some)
    windows = build_dataset(some, nb.vocab, nb.MAX_LENGTH)
    assert torch.equal(Y[Y >= 0], windows[1]), "the order of the characters differs"
    as_rows = nb.surprises(network, (X, Y))
    as_windows = nb.surprises(nb.WindowView(network), windows)
    same(as_rows, as_windows, "loss of each character")
    assert nb.evaluate(network, (X, Y)) == pytest.approx(as_windows.mean().item(), rel=1e-12)
    same(nb.surprises(network, (X, Y), chunk=50), as_rows, "losses in smaller chunks")


def test_a_chunk_of_names_holds_no_more_characters_than_a_chunk_of_windows(nb, monkeypatch):
    network, data, seen = transformer(nb), nb.name_rows(NAMES), []
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda X: seen.append(X.numel()) or forward(X))
    nb.surprises(network, data, chunk=50)
    assert max(seen) <= 50 and len(seen) == len(NAMES) // 3, "three rows of 16 make 48"


def test_a_window_gives_the_answer_of_the_row_for_every_length(nb):
    network = transformer(nb)
    T, view = nb.MAX_LENGTH, nb.WindowView(network)
    words = [LONG[:size] for size in range(T)]  # T down to 1 dots in front
    contexts = torch.tensor([nb.vocab.encode("." * (T - len(word)) + word) for word in words])
    expected = torch.stack([network.forward(nb.name_rows([w])[0])[-1] for w in words])
    same(view.forward(contexts), expected, "logits of all windows together")
    for context, logits in zip(contexts, expected):
        same(view.forward(context[None]), logits[None], f"window {nb.vocab.decode(context)}")
    mixed = contexts[torch.tensor([9, 0, 15, 3, 0])]
    same(view.forward(mixed), expected[[9, 0, 15, 3, 0]], "windows in another order")


def test_a_full_window_without_a_boundary_is_taken_as_it_is(nb, generator):
    network, T = transformer(nb), nb.MAX_LENGTH
    contexts = torch.randint(1, 27, (4, T), generator=generator)
    expected = network.forward(contexts).view(4, T, 27)[:, -1]
    same(nb.WindowView(network).forward(contexts), expected, "logits of full windows")


def test_later_changed_changes_each_later_letter_and_nothing_else(nb):
    X, _ = nb.name_rows([*MIXED, "zzz"])
    place = torch.arange(nb.MAX_LENGTH).expand(X.shape)
    for position in range(nb.MAX_LENGTH):
        changed = nb.later_changed(X, position)
        letters = (place >= position) & (X > 0)
        assert torch.equal(changed != X, letters), "change later letters, all of them, no more"
        assert ((changed > 0) & (changed < 27))[letters].all(), "a letter must stay a letter"


@pytest.mark.parametrize("disturbed", [True, False])
def test_no_logit_depends_on_a_later_character(nb, disturbed):
    network, (X, _) = transformer(nb, disturbed=disturbed), nb.name_rows(MIXED)
    real, place = X >= 0, torch.arange(nb.MAX_LENGTH).expand(X.shape)
    with network.inference():
        before = network.forward(X)
        for position in range(1, nb.MAX_LENGTH):
            changed = nb.later_changed(X, position)
            moved = (network.forward(changed) - before).abs().amax(1)
            earlier, here = (place < position)[real], ((place == position) & (X > 0))[real]
            assert moved[earlier].max() < 1e-12, f"a logit before {position} saw the future"
            assert moved[here].min() > 1e-6, f"position {position} does not see its own letter"
        last = network.forward(nb.later_changed(X, 1)) - before
        assert last.abs().amax(1)[~(place < 1)[real]].min() > 1e-6


def test_a_later_letter_is_seen_by_every_position_behind_it(nb):
    network, (X, _) = transformer(nb), nb.name_rows([LONG])
    before = network.forward(X)
    for position in range(1, nb.MAX_LENGTH):
        other = X.clone()
        other[0, position] = 26
        moved = (network.forward(other) - before).abs().amax(1)
        assert not (moved[:position] > 1e-12).any(), "an earlier position changed"
        assert (moved[position:] > 1e-9).all(), "a position does not look back far enough"


def test_names_of_one_batch_do_not_see_each_other(nb):
    network = transformer(nb)
    together = network.forward(nb.name_rows(MIXED)[0]).split([len(n) + 1 for n in MIXED])
    for name, logits in zip(MIXED, together):
        same(logits, network.forward(nb.name_rows([name])[0]), f"{name} among others")


def test_names_can_be_drawn_from_a_transformer_the_same_with_the_same_seed(nb):
    network = nb.make_transformer(16, 4)
    view = nb.WindowView(network)
    names = nb.sample(view, 30)
    assert names == nb.sample(view, 30) and len(set(names)) > 20
    assert max(map(len, names)) > nb.MAX_LENGTH, "windows without a boundary must work, too"
    draw = nb.next_logits(view)
    one, other = (
        sample_names(draw, nb.vocab, 16, 20, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 2)
    )
    assert one != other, "another seed must give other names"
    prefixed = nb.sample(view, 5, prefix="em", max_length=6)
    assert all(name.startswith("em") and len(name) <= 6 for name in prefixed)
    nb.show_surprise(view, "emma")
    assert all(part.training for part in network.parts)


# --- 15 AdamW and training ----------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.9, 0.999), (0.5, 0.8), (0.0, 0.9)])
def test_adamw_takes_the_steps_that_torch_takes(nb, generator, betas, weight_decay, eps):
    settings = {"betas": betas, "weight_decay": weight_decay, "eps": eps}
    ours = torch.randn(20, generator=generator, **DOUBLE)
    theirs, optimizer = ours.clone(), nb.AdamW(**settings)
    judge = torch.optim.AdamW([theirs], lr=0.01, **settings)
    for step in range(100):
        g = (10 if step > 50 else 0.01) * torch.randn(20, generator=generator, **DOUBLE)
        before = g.clone(), ours.clone()
        direction = optimizer.direction(g, ours)
        assert torch.equal(g, before[0]) and torch.equal(ours, before[1]), "direction only tells"
        ours.sub_(direction, alpha=0.01)
        theirs.grad = g
        judge.step()
    same(ours, theirs, "parameters after 100 steps")
    assert nb.judge_adamw(**settings) < 1e-10


@pytest.mark.parametrize("wrong", ["no decay", "no correction", "decay inside"])
def test_the_judge_of_adamw_finds_a_wrong_one(wrong):
    own = definitions()
    direction = own.AdamW.direction

    def spoilt(self, g, parameters):
        if wrong == "no decay":
            return direction(self, g, torch.zeros_like(parameters))
        if wrong == "decay inside":
            g = g + self.weight_decay * parameters
            return direction(self, g, torch.zeros_like(parameters))
        self.steps = self.steps or 1_000  # as if the averages were full from the start
        return direction(self, g, parameters)

    assert own.judge_adamw() < 1e-10
    own.AdamW.direction = spoilt
    assert own.judge_adamw() > 1e-6, f"{wrong} was not noticed"


def test_both_optimizers_are_asked_in_the_same_way(nb, generator):
    g, parameters = torch.randn(2, 6, generator=generator)
    for optimizer in (nb.SGD(), nb.SGD(0.0), nb.AdamW(), nb.AdamW(weight_decay=0)):
        assert optimizer.direction(g, parameters).shape == g.shape, type(optimizer).__name__
    assert torch.equal(nb.SGD().direction(g, parameters), nb.SGD().direction(g, 5 * parameters))
    first = nb.AdamW(weight_decay=0).direction(g, parameters)
    assert torch.allclose(first, g.sign(), atol=1e-4), "the first step of Adam is one of size 1"


def test_warm_up_rises_then_falls_to_nothing(nb):
    factors = [nb.warm_up(i / 1_000) for i in range(1_001)]
    peak = factors.index(max(factors))
    assert all(0 <= factor <= 1 for factor in factors), "a factor beyond [0, 1]"
    assert 0 < factors[0] < 0.05 and factors[-1] == 0 and factors[-2] < 0.01
    assert 40 <= peak <= 60 and factors[peak] > 0.9, "up over the first twentieth"
    assert all(a < b for a, b in zip(factors[:peak], factors[1 : peak + 1])), "it must rise"
    assert all(a > b for a, b in zip(factors[peak:], factors[peak + 1 :])), "then fall"


def train_rows(nb, network, **options):
    settings = {"learning_rate": 0.01, "schedule": nb.warm_up, "optimizer": nb.AdamW()}
    settings |= {"steps": 80, "batch_size": 12} | options
    return fit(nb, network, nb.name_rows(NAMES), **settings)


def test_a_transformer_learns_from_rows_with_adamw_and_warm_up(nb):
    data, dev = nb.name_rows(NAMES), nb.name_rows(OTHERS)
    network = nb.make_transformer(16, 4)
    before = nb.evaluate(network, data)
    history = train_rows(nb, network, dev=dev, dev_points=4)
    assert before > 3 and nb.evaluate(network, data) < 1.5, "80 steps must teach it nine names"
    assert len(history.loss) == 80 and not history.stopped
    assert history.learning_rate == pytest.approx([0.01 * nb.warm_up(i / 80) for i in range(80)])
    assert history.dev[-1] == (80, nb.evaluate(network, dev))
    again = nb.make_transformer(16, 4)
    train_rows(nb, again, dev=dev, dev_points=4)
    assert torch.equal(network.parameters, again.parameters), "the same seed, other parameters"


def test_an_interrupted_run_keeps_its_history_and_a_usable_transformer(nb):
    def interrupt(step, change):
        if step == 20:
            raise KeyboardInterrupt

    network = nb.make_transformer(16, 4)
    history = train_rows(nb, network, probe=interrupt)
    assert len(history.loss) == 21 and "interrupted after 21 of 80" in history.stopped
    assert all(part.training for part in network.parts)
    assert nb.evaluate(network, nb.name_rows(NAMES)) < math.log(27)


# --- 15 What does it look at? -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "emma", LONG])
def test_the_attention_weights_of_a_name_are_causal_shares(nb, name):
    network, size = transformer(nb), len(name) + 1
    A = nb.attention_weights(network, name)
    assert A.shape == (HEADS, size, size), "one table a head, over '.' and the letters"
    assert torch.allclose(A.sum(2), torch.ones(HEADS, size, **DOUBLE), atol=1e-12)
    assert not A.triu(1).any(), "a later position has a weight"
    assert (A.tril() + torch.ones(size, size).triu(1) > 0).all(), "an earlier one has none"
    assert all(part.training for part in network.parts)


def test_looks_are_the_mean_weights_near_and_at_the_start(nb):
    network, some = transformer(nb), ["emma", "bo", "isabella", "zoe", LONG]
    seen = []
    for name in some:
        A = nb.attention_weights(network, name)
        for i in range(4, len(name) + 1):  # the fourth letter stands at position 4
            seen.append(torch.stack([A[:, i, i], A[:, i, i - 1], A[:, i, i - 2], A[:, i, 0]], 1))
    assert len(seen) == 1 + 5 + 12, "positions from the fourth letter on"
    same(nb.looks(network, some), torch.stack(seen).mean(0), "looks")
