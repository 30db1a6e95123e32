"""Layers and networks against torch.nn.functional and autograd, in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from notebook_code import ROOT, code_cells, definitions
from small import NAMES, OTHERS, fit, small

LIMIT = 1e-10  # relative
IDS = torch.tensor([[1, 1, 5], [5, 0, 1], [26, 26, 26]])  # repeated characters
ROWS = torch.tensor([[0, 1, 2, 3, -1], [0, 4, -1, -1, -1], [0, 9, 9, 9, 9]])  # ragged names


def rows_of(nb, ids=ROWS):
    rows = nb.Rows()
    rows.read(ids)
    return rows


def looked_up(ids, C, P):
    real, place = ids >= 0, torch.arange(ids.shape[1]).expand(ids.shape)
    return F.embedding(ids[real], C) + F.embedding(place[real], P)


def random(*shape, scale=1.0, seed=3):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def frozen_norm(nb):
    norm = nb.BatchNorm1d(6)
    norm.running_mean, norm.running_var = random(6), random(6).square() + 0.1
    return norm


def cases(nb):
    """name: (layer, its twin in PyTorch's own functions, inputs, in training mode)."""
    g = torch.Generator().manual_seed(1)
    x, wide, frozen = random(7, 6), random(9, 12, scale=3), frozen_norm(nb)
    mean, var = frozen.running_mean.clone(), frozen.running_var.clone()
    targets, logits = torch.tensor([0, 3, 3, 26, 1, 1, 9]), random(7, 27, scale=30)
    padded = torch.tensor([[0, 3, -1], [3, 26, 1], [1, 9, -1]])
    dropout, same = nb.Dropout(0.4, 5), nb.Dropout(0.4, 5)
    with nb.training_mode(same):
        mask = same.forward(torch.ones_like(x))
    no_bias = nb.Linear(6, 4, None, g, bias=False)
    tall, single, qkv = random(300, 6), random(1, 6), random(len(rows_of(nb).index), 24)
    norm = lambda x, gamma, beta: F.batch_norm(x, None, None, gamma, beta, True)  # noqa: E731
    at_rest = lambda x, gamma, beta: F.batch_norm(x, mean, var, gamma, beta)  # noqa: E731
    row_norm = lambda x, gamma, beta: F.layer_norm(x, (12,), gamma, beta)  # noqa: E731
    both = nb.Chain(nb.Tanh(), nb.ReLU())
    return {
        "Embedding": (nb.Embedding(27, 4, g), lambda x, C: C[x].flatten(1), (IDS,), 0),
        "Linear": (nb.Linear(6, 4, 1.0, g), lambda x, W, b: x @ W + b, (x,), 0),
        "Linear, tall": (nb.Linear(6, 4, 1.0, g), lambda x, W, b: x @ W + b, (tall,), 0),
        "Linear, one row": (nb.Linear(6, 4, 1.0, g), lambda x, W, b: x @ W + b, (single,), 0),
        "Linear, no bias": (no_bias, lambda x, W: x @ W, (x,), 0),
        "Tanh": (nb.Tanh(), torch.tanh, (random(5, 6, scale=4),), 0),
        "ReLU": (nb.ReLU(), torch.relu, (x,), 0),
        "BatchNorm1d": (nb.BatchNorm1d(6), norm, (x,), 1),
        "BatchNorm1d, two rows": (nb.BatchNorm1d(6), norm, (x[:2],), 1),
        "BatchNorm1d, far from 0": (nb.BatchNorm1d(6), norm, (tall + 5,), 1),
        "BatchNorm1d, at rest": (frozen, at_rest, (x,), 0),
        "Dropout": (dropout, lambda x: x * mask, (x,), 1),
        "Dropout, at rest": (nb.Dropout(0.4, 5), lambda x: x * 1, (x,), 0),
        "CrossEntropy": (nb.CrossEntropy(), F.cross_entropy, (logits, targets), 0),
        "CrossEntropy, padded": (
            nb.CrossEntropy(),
            lambda z, t: F.cross_entropy(z, t[t >= 0]),
            (logits, padded),
            0,
        ),
        "TokenAndPosition": (
            nb.TokenAndPosition(27, 5, 6, nb.Rows(), g), looked_up, (ROWS,), 0),
        "LayerNorm": (nb.LayerNorm(12), row_norm, (wide,), 0),
        "GELU": (nb.GELU(), lambda x: F.gelu(x, approximate="tanh"), (wide,), 0),
        "Attention": (
            nb.Attention(2, rows_of(nb)), lambda x: nb.sdpa(x, rows_of(nb), 2), (qkv,), 0),
        "Attention, sharp": (
            nb.Attention(4, rows_of(nb)), lambda x: nb.sdpa(x, rows_of(nb), 4), (20 * qkv,), 0),
        "Residual": (nb.Residual(nb.ReLU()), lambda x: x + torch.relu(x), (x,), 0),
        "Chain": (both, lambda x: torch.relu(torch.tanh(x)), (x,), 0),
    }  # fmt: skip


def checked_errors(nb, case):
    layer, twin, inputs, training = case
    if training:
        with nb.training_mode(layer):
            return nb.gradient_check(layer, twin, *inputs)
    return nb.gradient_check(layer, twin, *inputs)


CASES = list(cases(definitions()))


@pytest.mark.parametrize("name", CASES)
def test_a_layer_agrees_with_its_reference_forward_and_backward(nb, name):
    errors = checked_errors(nb, cases(nb)[name])
    layer, _, inputs, _ = cases(nb)[name]
    expected = {"y", *("d" + n for n in layer.parameter_names)}
    expected |= {"dx"} if inputs[0].is_floating_point() else set()
    assert set(errors) == expected
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("name", CASES)
def test_backward_twice_gives_the_same_and_inputs_stay_as_they_are(nb, name):
    layer, twin, inputs, training = cases(nb)[name]
    checked_errors(nb, (layer, twin, inputs, training))
    kept = [x.clone() for x in inputs]
    layer.training = bool(training)
    y = layer.forward(*inputs)
    dy = [torch.ones_like(y)] if y.dim() else []
    first = layer.backward(*dy)
    first = None if first is None else first.clone()
    gradients = [getattr(layer, "d" + n).clone() for n in layer.parameter_names]
    second = layer.backward(*dy)
    assert first is None or torch.equal(first, second)
    again = [getattr(layer, "d" + n) for n in layer.parameter_names]
    assert all(torch.equal(a, b) for a, b in zip(gradients, again)), "gradients add up"
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept)), "an input was changed"


@pytest.mark.parametrize("name", [name for name in CASES if "," not in name])
def test_the_gradient_check_sees_a_fault_of_a_tenth_in_any_backward(nb, name, monkeypatch):
    layer, twin, inputs, training = cases(nb)[name]
    right = layer.backward

    def wrong(*dy):
        dx = right(*dy)
        for parameter in layer.parameter_names:
            getattr(layer, "d" + parameter).mul_(1.1)
        return dx if dx is None else dx * 1.1

    layer.backward = wrong
    errors = checked_errors(nb, (layer, twin, inputs, training))
    assert all(error > 1e-3 for kind, error in errors.items() if kind != "y"), errors


def test_different_shapes_are_an_error_however_well_they_broadcast(nb):
    with pytest.raises(ValueError, match=r"shape \(3,\) instead of \(3, 3\)"):
        nb.relative_error(torch.ones(3), torch.ones(3, 3))
    assert nb.relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 0.5


@pytest.mark.parametrize("B", [2, 5, 64])
def test_batchnorm_keeps_the_running_statistics_that_torch_keeps(nb, B):
    ours, theirs = nb.BatchNorm1d(6), torch.nn.BatchNorm1d(6)
    for step in range(4):
        x = random(B, 6, seed=step).float()
        with nb.training_mode(ours):
            assert torch.allclose(ours.forward(x), theirs(x), atol=1e-5)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-5)
    theirs.eval()
    assert torch.allclose(ours.forward(x), theirs(x), atol=1e-5), "at rest: running statistics"
    kept = ours.running_mean.clone()
    ours.forward(x + 1)
    assert torch.equal(ours.running_mean, kept), "at rest nothing is learnt"


def test_batchnorm_refuses_to_train_on_one_row(nb):
    with nb.training_mode(nb.BatchNorm1d(3)) as norm, pytest.raises(ValueError, match="one row"):
        norm.forward(torch.ones(1, 3))


def test_dropout_drops_its_share_keeps_the_mean_and_draws_anew(nb):
    ones = torch.ones(400, 500)
    with nb.training_mode(nb.Dropout(0.3, 1)) as layer:
        y, dx, again = layer.forward(ones), None, None
        dx = layer.backward(ones)
        again = layer.forward(ones)
    assert (y == 0).double().mean() == pytest.approx(0.3, abs=0.01)
    assert y.mean() == pytest.approx(1, abs=0.01) and y.max() == pytest.approx(1 / 0.7)
    assert torch.equal(dx, y), "backward has the mask of forward"
    assert not torch.equal(y, again)
    with nb.training_mode(nb.Dropout(0.3, 2)) as other:
        assert not torch.equal(other.forward(ones), y), "another seed, another mask"
    assert torch.equal(layer.forward(ones), ones), "at rest nothing is dropped"
    with nb.training_mode(nb.Dropout(0.0, 1)) as none:
        assert torch.equal(none.forward(ones), ones)


@pytest.mark.parametrize("rate", [1.0, -0.1, 2])
def test_a_dropout_rate_that_is_no_share_is_refused(nb, rate):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        nb.Dropout(rate, 1)


def test_cross_entropy_does_not_overflow(nb):
    logits = torch.full((2, 27), 150.0)  # its exponential is no float32
    loss = nb.CrossEntropy().forward(logits, torch.tensor([0, 5]))
    assert loss.item() == pytest.approx(3.2958, abs=1e-4)


def test_padding_is_left_out_and_put_back(nb):
    rows = nb.Rows()
    ids, positions = rows.read(torch.cat([ROWS, torch.full((3, 2), -1)], 1))
    assert ids.tolist() == [0, 1, 2, 3, 0, 4, 0, 9, 9, 9, 9]
    assert positions.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4]
    x = random(11, 2)
    table = rows.spread(x)
    assert table.shape == (3, 5, 2) and (table[1, 2:] == 0).all()
    assert torch.equal(rows.collect(table), x)


# Whole networks


def test_a_whole_mlp_has_the_gradient_of_a_twin_in_torchs_own_functions(nb):
    network = small(nb, hidden_sizes=(9, 8)).to(torch.float64)
    X, Y = network.examples(NAMES)
    loss = nb.CrossEntropy()
    with nb.training_mode(network):
        ours = loss.forward(network.forward(X), Y)
        network.backward(loss.backward())
    C, W1, g1, b1, W2, g2, b2, W3, b3 = leaves = [
        getattr(layer, name).clone().requires_grad_() for layer, name in network.named
    ]
    h = torch.tanh(F.batch_norm(C[X].flatten(1) @ W1, None, None, g1, b1, True))
    h = torch.tanh(F.batch_norm(h @ W2, None, None, g2, b2, True))
    theirs = F.cross_entropy(h @ W3 + b3, Y)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for (layer, name), leaf in zip(network.named, leaves, strict=True):
        assert nb.relative_error(getattr(layer, "d" + name), leaf.grad) < LIMIT, name


def test_a_whole_transformer_has_the_gradient_of_a_twin_on_the_padded_table(nb):
    dim, heads = 16, 4
    network = nb.TransformerConfig(dim, heads, context_size=9).make().to(torch.float64)
    network.parameters.add_(0.1 * random(network.size))
    X, Y = network.examples(["emma", "bo", "isabella"])
    loss = nb.CrossEntropy()
    loss.forward(network.forward(X), Y)
    network.backward(loss.backward())
    leaves = [getattr(layer, name).clone().requires_grad_() for layer, name in network.named]
    C, P, g1, b1, W1, c1, W2, c2, g2, b2, W3, c3, W4, c4, g3, b3, W5, c5 = leaves
    h = F.embedding(X.clamp(min=0), C) + P
    q, k, v = (F.layer_norm(h, (dim,), g1, b1) @ W1 + c1).split(dim, 2)
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    h = h + y @ W2 + c2
    h = h + F.gelu(F.layer_norm(h, (dim,), g2, b2) @ W3 + c3, approximate="tanh") @ W4 + c4
    logits = F.layer_norm(h, (dim,), g3, b3) @ W5 + c5
    F.cross_entropy(logits.flatten(0, 1), Y.flatten(), ignore_index=-1).backward()
    for (layer, name), leaf in zip(network.named, leaves, strict=True):
        assert nb.relative_error(getattr(layer, "d" + name), leaf.grad) < LIMIT, name


def networks(nb):
    sizes = {"hidden_sizes": (9, 8), "dropout": 0.3}
    return {
        "tanh": small(nb, **sizes),
        "ReLU": small(nb, batch_norm=False, activation="ReLU", **sizes),
        "two blocks": nb.TransformerConfig(16, 4, blocks=2, context_size=9).make(),
    }


@pytest.mark.parametrize("kind", ["tanh", "ReLU", "two blocks"])
def test_the_check_of_networks_passes_ours_and_leaves_them_alone(nb, kind):
    network = networks(nb)[kind]
    kept = [tensor.clone() for tensor in network.tensors()]
    assert nb.check_network_gradient(network, NAMES[:9]) < LIMIT
    assert all(torch.equal(a, b) for a, b in zip(network.tensors(), kept))


FAULTY = ["Embedding", "Linear", "Tanh", "ReLU", "BatchNorm1d", "Dropout", "TokenAndPosition"]
FAULTY += ["LayerNorm", "GELU", "Attention", "Residual", "CrossEntropy"]


@pytest.mark.parametrize("name", FAULTY)
def test_the_check_of_networks_sees_a_fault_of_a_tenth_in_any_layer(nb, name, monkeypatch):
    kind = getattr(nb, name)
    right = kind.backward

    def wrong(self, *dy):
        dx = right(self, *dy)
        for parameter in self.parameter_names:
            getattr(self, "d" + parameter).mul_(1.1)
        return dx if dx is None else dx * 1.1

    monkeypatch.setattr(kind, "backward", wrong)
    assert max(nb.check_network_gradient(n, NAMES[:9]) for n in networks(nb).values()) > 1e-3


def test_finite_differences_agree_as_a_second_check(nb, generator):
    network = small(nb, hidden_sizes=(5,)).to(torch.float64)
    (X, Y), loss, step = network.examples(NAMES[:5]), nb.CrossEntropy(), 1e-6
    with nb.training_mode(network):
        loss.forward(network.forward(X), Y)
        network.backward(loss.backward())
        gradient = network.gradient.clone()
        for i in torch.randint(network.size, (20,), generator=generator).tolist():
            values = []
            for sign in (1, -1):
                network.parameters[i] += sign * step
                values.append(loss.forward(network.forward(X), Y).item())
                network.parameters[i] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            assert slope == pytest.approx(gradient[i].item(), rel=1e-4, abs=1e-8)


def test_parameters_and_gradients_of_the_layers_are_views_of_two_flat_tensors(nb):
    network = small(nb)
    for one in (network, copy.deepcopy(network)):
        one.parameters.fill_(7.0)
        one.gradient.fill_(3.0)
        for layer, name in one.named:
            assert (getattr(layer, name) == 7).all() and (getattr(layer, "d" + name) == 3).all()
    assert [name for _, name in network.named] == ["C", "W", "gamma", "beta", "W", "b"]
    assert network.size == 27 * 10 + 30 * 16 + 2 * 16 + 16 * 27 + 27
    assert [view.shape for view in network.views(network.parameters)][1] == (30, 16)


def test_equal_configs_make_equal_networks_and_each_setting_counts(nb):
    base = small(nb, dropout=0.2)
    assert all(map(torch.equal, base.tensors(), small(nb, dropout=0.2).tensors()))
    others = {"seed": 2, "context_size": 4, "embedding_dim": 5, "hidden_sizes": (3,)}
    others |= {"init": "naive", "batch_norm": False, "embedding_std": 0.1}
    for name, value in others.items():
        other = small(nb, **{"dropout": 0.2, name: value})
        same = other.size == base.size and torch.equal(other.parameters, base.parameters)
        assert not same, f"{name} makes no difference"
        assert getattr(other.config, name) == value
    kinds = [type(layer).__name__ for layer in small(nb, dropout=0.2, activation="ReLU").layers]
    assert kinds == ["Embedding", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert len(base.find("linear")) == 2 and len(base.find("batch norm")) == 1
    assert base.find("dropout")[0].rate == 0.2 and small(nb).find("dropout") == []


def test_a_pair_of_networks_shares_its_initial_weights(nb):
    plain, normed, dropped = (
        small(nb, hidden_sizes=(8, 8), **options)
        for options in ({"batch_norm": False}, {}, {"dropout": 0.5})
    )
    for other in (normed, dropped):
        for kind, name in (("embedding", "C"), ("linear", "W")):
            for a, b in zip(plain.find(kind), other.find(kind), strict=True):
                assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize(
    ("init", "hidden", "output"),
    [
        ("naive", 1.0, 1.0),
        ("output scaled", 1.0, 0.1 / 20),
        ("fan-in scaled", 0.1, 0.1 / 20),
        ("gain 5/3", 5 / 30, 0.1 / 20),
        ("gain 1/2", 0.05, 0.1 / 20),
    ],
)
def test_initial_weights_have_the_scale_of_their_name(nb, init, hidden, output):
    network = small(nb, init=init, hidden_sizes=(400,), batch_norm=False, embedding_dim=25,
                    context_size=4)  # fmt: skip
    first, last = network.find("linear")
    assert first.W.std() == pytest.approx(hidden, rel=0.03)
    assert last.W.std() == pytest.approx(output, rel=0.03)
    assert (first.b == 0).all() and network.find("embedding")[0].C.std() == pytest.approx(1, 0.1)


def test_the_hyperparameters_are_read_when_a_config_is_made(nb):
    own = definitions()
    own.globals |= {"HIDDEN_SIZE": 7, "CONTEXT_SIZE": 2, "EMBEDDING_DIM": 4, "SEED": 9}
    config = own.Config()
    assert (config.hidden_sizes, config.context_size) == ((7,), 2)
    assert (config.embedding_dim, config.seed, own.TransformerConfig().seed) == (4, 9, 9)
    assert config.make().find("linear")[0].W.shape == (8, 7)
    for frozen in (config, own.TransformerConfig()):
        with pytest.raises(AttributeError):  # a network keeps it: it must not change
            frozen.seed = 5


@pytest.mark.parametrize("sizes", [(8,), (8, 6)])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_folded_network_computes_the_same_without_batchnorm(nb, sizes, batch_norm):
    network = small(nb, hidden_sizes=sizes, batch_norm=batch_norm, dropout=0.1)
    fit(nb, network)
    folded = nb.fold(network)
    X, _ = network.examples(OTHERS)
    assert folded.find("batch norm") == [] and folded.context_size == 3
    assert torch.allclose(folded.logits(X), network.logits(X), atol=1e-5)
    assert folded.config.make().load(folded.tensors()).loss(OTHERS) == folded.loss(OTHERS)


def test_loading_refuses_tensors_of_another_network(nb):
    network, other = small(nb), small(nb, hidden_sizes=(5,))
    with pytest.raises(ValueError, match="another network's"):
        network.load(other.tensors())
    with pytest.raises(ValueError):
        network.load(network.tensors()[:-1])
    fit(nb, network)
    fresh = small(nb, seed=5).load(network.tensors())
    assert fresh.loss(OTHERS) == network.loss(OTHERS)
    fit(nb, network)
    assert fresh.loss(OTHERS) != network.loss(OTHERS), "loaded tensors are copies"


def test_networks_are_in_inference_mode_but_inside_a_with(nb):
    network = small(nb, dropout=0.5)
    resting = lambda: not any(part.training for part in network.parts())  # noqa: E731
    assert resting()
    with pytest.raises(RuntimeError), nb.training_mode(network) as same:
        assert same is network and all(part.training for part in network.parts())
        raise RuntimeError
    assert resting()
    kept = [tensor.clone() for tensor in network.tensors()]
    network.loss(OTHERS)
    network.sample(3)
    assert all(map(torch.equal, kept, network.tensors())), "evaluation changes nothing"


def test_a_transformer_sees_no_later_character_and_answers_rows_as_windows(nb):
    network = nb.TransformerConfig(16, 4, blocks=2, context_size=9).make()
    network.parameters.add_(0.1 * random(network.size).float())
    X, _ = network.examples(["isabella", "emma"])
    changed = X.clone()
    changed[0, 5:] = 7
    before, after = network.forward(X), network.forward(changed)
    assert torch.equal(before[:5], after[:5]) and not torch.equal(before[5:9], after[5:9])
    names = ["isabella", "bo", "emma"]
    assert torch.allclose(network.surprisals(names), nb.Model.surprisals(network, names), atol=1e-5)
    long = network.surprisals(["isabellabella", "bo"])  # too long for a row, not for windows
    assert len(long) == 17 and long.isfinite().all()
    with pytest.raises(ValueError, match="9 letters needs 10 positions"):
        network.examples(["isabellas"])


def test_layers_are_found_by_what_they_are_after_section_3_is_run_again(nb):
    own = definitions()
    network = small(own, hidden_sizes=(6, 5))
    fit(own, network)
    logits = network.logits(network.examples(OTHERS)[0])
    for name, again in vars(definitions()).items():  # every class is a new one
        if isinstance(again, type):
            own.globals[name] = again
    X, Y = network.examples(OTHERS)
    assert torch.allclose(own.fold(network).logits(X), logits, atol=1e-5)
    assert [y.shape[1] for y in own.activation_outputs(network, X)] == [6, 5]
    signals = own.layer_signals(network, X, Y)
    assert [len(signals[key]) for key in ("y", "dy", "dW")] == [2, 2, 3]


@pytest.mark.parametrize("blocks", [1, 2])
def test_an_untrained_transformer_knows_nothing_and_has_the_layers_of_its_config(nb, blocks):
    sizes = {"dim": 32, "heads": 4, "widen": 3, "context_size": 9}
    network = nb.TransformerConfig(blocks=blocks, **sizes).make()
    assert network.loss(OTHERS) == pytest.approx(3.296, abs=0.08)
    shapes = [tuple(layer.W.shape) for layer in network.find("linear")]
    assert shapes == [(32, 96), (32, 32), (32, 96), (96, 32)] * blocks + [(32, 27)]
    stds = [layer.W.std().item() * len(layer.W) ** 0.5 for layer in network.find("linear")]
    assert stds == pytest.approx([1, 0.5, 1, 0.5] * blocks + [0.1], rel=0.1)
    assert len(network.find("layer norm")) == 2 * blocks + 1
    with pytest.raises(ValueError, match="multiple of heads"):
        nb.TransformerConfig(dim=30, heads=4).make()


# Optimisers


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_takes_the_steps_that_torch_takes(nb, momentum):
    ours = random(20)
    theirs, optimizer = ours.clone(), nb.SGD(momentum)
    torch_sgd = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, nesterov=momentum > 0)
    for step in range(100):
        g = random(20, seed=step)
        ours.sub_(optimizer.direction(g.clone(), ours), alpha=0.1)
        theirs.grad = g
        torch_sgd.step()
    assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}])
def test_adamw_takes_the_steps_that_torch_takes(nb, settings):
    optimizer, ours = nb.AdamW(**settings), random(50)
    theirs = ours.clone()
    same = {"betas": optimizer.betas, "eps": optimizer.eps}
    same["weight_decay"] = optimizer.weight_decay
    judge = torch.optim.AdamW([theirs], lr=0.01, **same)
    for step in range(100):
        g = ours + random(50, seed=step)
        ours = ours - 0.01 * optimizer.direction(g.clone(), ours)
        theirs.grad = g
        judge.step()
    assert nb.relative_error(ours, theirs) < LIMIT


def test_flatten_consecutive_lays_neighbours_side_by_side_and_take_their_gradients_back(nb):
    x = torch.arange(24.0).view(2, 12)  # 2 contexts of 4 characters, 3 numbers each
    layer = nb.FlattenConsecutive(3)
    y = layer.forward(x)
    assert y.tolist() == [list(range(6 * i, 6 * i + 6)) for i in range(4)]
    assert torch.equal(layer.backward(y), x)


def test_a_tree_merges_two_by_two_and_has_the_gradient_of_autograd(nb):
    sizes = {"hidden_sizes": (6, 5), "embedding_dim": 3}
    config = nb.TreeConfig(context_size=4, dropout=0.2, **sizes)
    assert config.shapes() == [(6, 6), (12, 5), (5, nb.V)]
    network = config.make()
    assert nb.check_network_gradient(network, NAMES[:9]) < LIMIT
    X = nb.windows(NAMES, 4)[0]
    moved = X.clone()
    moved[:, 0] = 1 + X[:, 0] % 5
    assert (network.forward(X) != network.forward(moved)).any(), "the oldest character counts"
    h = network.layers[0].C[X]  # (B, 4, 3)
    for linear, norm, size in zip(network.find("linear"), network.find("batch norm"), (6, 5)):
        h = h.reshape(len(X), -1, 2 * h.shape[2]) @ linear.W
        h = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        h = (norm.gamma * h + norm.beta).tanh()
        assert h.shape[2] == size
    last = network.find("linear")[-1]
    assert torch.allclose(network.forward(X), h[:, 0] @ last.W + last.b, atol=1e-5)
    with pytest.raises(ValueError, match="joins 4 characters, and this one is given 3"):
        nb.TreeConfig(context_size=3, **sizes).make()
    assert torch.allclose(nb.fold(network).forward(X), network.forward(X), atol=1e-5)


def test_the_fifty_lines_of_section_1_have_the_gradients_of_autograd_and_learn(capsys):
    walk = {"NAMES_FILE": ROOT / "names.txt", "FAST": True}
    cells = {cell.id: cell.source for cell in code_cells() if cell.id.startswith("walk-")}
    for part in ("walk-data", "walk-parameters", "walk-forward", "walk-backward"):
        exec(cells[part], walk)
    first_loss = walk["loss_of"](walk["forward"](walk["X_dev"])[0], walk["Y_dev"])
    assert first_loss == pytest.approx(math.log(27), abs=0.02)
    in_float32 = {name: walk[name].clone() for name in ("C", "W1", "b1", "W2", "b2")}
    leaves = [value.double().requires_grad_() for value in in_float32.values()]
    walk.update(zip(in_float32, leaves, strict=True))
    x, y = walk["X"][:300], walk["Y"][:300]
    logits, kept = walk["forward"](x)
    walk["loss_of"](logits, y).backward()
    with torch.no_grad():
        gradients = walk["backward"](x, y, logits.detach(), *kept)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert (leaf.grad - gradient).abs().max() < 5e-16
    walk.update(in_float32, parameters=list(in_float32.values()))
    exec(cells["walk-train"], walk)
    assert walk["loss_of"](walk["forward"](walk["X_dev"])[0], walk["Y_dev"]) < 2.7
    exec(cells["walk-names"], walk)
    names = capsys.readouterr().out.splitlines()[-1].split(", ")
    assert len(names) == 14
