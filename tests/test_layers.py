"""Layers and networks against torch.nn.functional and autograd, in float64."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from notebook_code import ROOT, code_cells, definitions
from small import NAMES, OTHERS, fit, small

LIMIT = 1e-10  # relative
IDS = torch.tensor([[1, 1, 5], [5, 0, 1], [26, 26, 26]])  # repeated characters
PADDED = torch.tensor([[0, 1, 2, 3, -1], [0, 4, -1, -1, -1], [0, 9, 9, 9, 9]])
TARGETS = torch.tensor([0, 3, 3, 26, 1, 1, 9])
PADDED_Y = torch.tensor([[0, 3, -1], [3, 26, 1], [1, 9, -1]])


def random(*shape, scale=1.0, seed=3):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def batch_norm(x, gamma, beta):
    return F.batch_norm(x, None, None, gamma, beta, training=True)


def cases(nb):
    """name: (layer, the same function in PyTorch's own words, inputs)."""
    g, layout, frozen = torch.Generator().manual_seed(1), nb.Padding(), nb.BatchNorm1d(6)
    x, wide, tall, logits = random(7, 6), random(9, 12), random(300, 6), random(7, 27, scale=30)
    ids, positions = layout.read(PADDED)
    qkv = random(len(ids), 24)
    frozen.running_mean, frozen.running_var = mean, var = random(6), random(6).square() + 0.1
    with nb.training_mode(nb.Dropout(0.4, 5)) as same_seed:
        mask = same_seed.forward(torch.ones_like(x))
    merged, weight = nb.SoftCrossEntropy(), random(7).softmax(0)
    shares, merged.weight = random(27, 27).softmax(1), weight[:, None]
    merged.shares = shares
    loss, token_and_position = nb.CrossEntropy(), nb.TokenAndPosition(27, 5, 6, nb.Padding(), g)

    def linear(x, W, b=0.0):
        return x @ W + b

    def layer_norm(x, gamma, beta):
        return F.layer_norm(x, (12,), gamma, beta)

    def soft_cross_entropy(logits, targets):
        return weight @ F.cross_entropy(logits, shares[targets], reduction="none")

    return {
        "Embedding": (nb.Embedding(27, 4, g), lambda x, C: C[x].flatten(1), IDS),
        "Linear": (nb.Linear(6, 4, 1.0, g), linear, x),
        "Linear, tall": (nb.Linear(6, 4, 1.0, g), linear, tall),
        "Linear, one row": (nb.Linear(6, 4, 1.0, g), linear, x[:1]),
        "Linear, no bias": (nb.Linear(6, 4, None, g, bias=False), linear, x),
        "Tanh": (nb.Tanh(), torch.tanh, 4 * x),
        "ReLU": (nb.ReLU(), torch.relu, x),
        "FlattenConsecutive": (nb.FlattenConsecutive(3), lambda x: x.view(-1, 6), wide[:4]),
        "BatchNorm1d": (frozen, lambda x, gamma, beta: F.batch_norm(x, mean, var, gamma, beta), x),
        "BatchNorm1d, training": (nb.BatchNorm1d(6), batch_norm, x),
        "BatchNorm1d, training, two rows": (nb.BatchNorm1d(6), batch_norm, x[:2]),
        "BatchNorm1d, training, far from 0": (nb.BatchNorm1d(6), batch_norm, tall + 5),
        "Dropout": (nb.Dropout(0.4, 5), lambda x: x * 1, x),
        "Dropout, training": (nb.Dropout(0.4, 5), lambda x: x * mask, x),
        "CrossEntropy": (loss, F.cross_entropy, logits, TARGETS),
        "CrossEntropy, huge logits": (loss, F.cross_entropy, 30 * logits, TARGETS),
        "SoftCrossEntropy": (merged, soft_cross_entropy, logits, TARGETS),
        "CrossEntropy, rows": (loss, lambda z, t: F.cross_entropy(z, t[t >= 0]), logits, PADDED_Y),
        "TokenAndPosition": (token_and_position, lambda x, C, P: C[ids] + P[positions], PADDED),
        "LayerNorm": (nb.LayerNorm(12), layer_norm, 3 * wide),
        "GELU": (nb.GELU(), lambda x: F.gelu(x, approximate="tanh"), 3 * wide),
        "Attention": (nb.Attention(2, layout), lambda x: nb.sdpa(x, layout, 2), qkv),
        "Attention, sharp": (nb.Attention(4, layout), lambda x: nb.sdpa(x, layout, 4), 20 * qkv),
        "Residual": (nb.Residual(nb.ReLU()), lambda x: x + torch.relu(x), x),
        "Chain": (nb.Chain(nb.Tanh(), nb.ReLU()), lambda x: torch.relu(torch.tanh(x)), x),
    }


CASES = list(cases(definitions()))


@pytest.mark.parametrize("name", CASES)
def test_a_layer_agrees_with_pytorch_forward_and_backward_and_keeps_its_inputs(nb, name):
    layer, reference, *inputs = cases(nb)[name]
    before, all_gradients = [tensor.clone() for tensor in inputs], []
    parameters = ["d" + parameter for parameter in layer.parameter_names]
    layer.training = "training" in name
    errors = nb.gradient_check(layer, reference, *inputs)
    y = layer.forward(*inputs)
    assert set(errors) - {"dx"} == {"y", *parameters}
    assert ("dx" in errors) == inputs[0].is_floating_point()
    assert max(errors.values()) < LIMIT, errors
    for _ in range(2):
        dx = layer.backward(torch.ones_like(y)) if y.dim() else layer.backward()
        gradients = [getattr(layer, parameter).clone() for parameter in parameters]
        all_gradients.append(gradients if dx is None else [dx.clone(), *gradients])
    assert all(map(torch.equal, *all_gradients)), "a second backward gives other gradients"
    assert all(map(torch.equal, inputs, before)), "an input was changed"


def with_a_fault(backward):
    """The same backward, its gradients a tenth too large."""

    def faulty(layer, *dy):
        dx = backward(layer, *dy)
        for name in layer.parameter_names:
            getattr(layer, "d" + name).mul_(1.1)
        return None if dx is None else dx * 1.1

    return faulty


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_check_sees_a_fault_of_a_tenth_in_any_backward(nb, name, monkeypatch):
    layer, reference, *inputs = cases(nb)[name]
    monkeypatch.setattr(type(layer), "backward", with_a_fault(type(layer).backward))
    layer.training = "training" in name
    errors = nb.gradient_check(layer, reference, *inputs)
    assert all(error > 1e-3 for compared, error in errors.items() if compared != "y"), errors


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
    theirs.eval()
    assert torch.allclose(ours.forward(x + 1), theirs(x + 1), atol=1e-5)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-6), "in inference, too"
    assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-5)
    with nb.training_mode(ours), pytest.raises(ValueError, match="one row"):
        ours.forward(x[:1])


def test_dropout_drops_its_share_keeps_the_mean_and_draws_anew(nb):
    ones = torch.ones(400, 500)
    layer, other, none = nb.Dropout(0.3, 1), nb.Dropout(0.3, 2), nb.Dropout(0, 1)
    with nb.training_mode(nb.Chain(layer, other, none)):
        y, dx = layer.forward(ones), layer.backward(ones)
        assert torch.equal(dx, y), "backward has the mask of forward"
        assert not torch.equal(layer.forward(ones), y), "the same mask twice"
        assert not torch.equal(other.forward(ones), y), "another seed, another mask"
        assert torch.equal(none.forward(ones), ones)
    assert (y == 0).double().mean() == pytest.approx(0.3, abs=0.01)
    assert y.mean() == pytest.approx(1, abs=0.01) and y.max() == pytest.approx(1 / 0.7)
    for rate in (1.0, -0.1, 2):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            nb.Dropout(rate, 1)


def test_soft_targets_are_single_ones_over_the_whole_list_and_less_noisy(nb):
    transformer = nb.TransformerConfig(16, 4, context_size=9).make()
    for network in (small(nb, batch_norm=False), transformer):
        results = []
        for loss in (nb.CrossEntropy(), nb.SoftCrossEntropy()):
            X, targets = loss.merge(*loss.examples(network, NAMES + OTHERS))
            with nb.training_mode(network):
                value = loss.forward(network.forward(X), targets).item()
                network.backward(loss.backward())
            results.append((value, network.gradient.clone()))
        (value, gradient), (soft_value, soft_gradient) = results
        assert soft_value == pytest.approx(value, rel=1e-5)
        assert nb.relative_error(soft_gradient, gradient) < 1e-4
        row = loss.shares[targets[0].flatten()[0]]  # of the empty context
        assert row[1] == pytest.approx(2 * 4 / (9 * 4 + 5)), "names that begin with an a"
        same = loss.merge(X[:1].repeat(3, 1), targets[:1].repeat(3, *[1] * (targets.dim() - 1)))
        assert len(same[0]) == 3, "BatchNorm could not train on one row"


def networks(nb):
    sizes = {"hidden_sizes": (9, 8), "dropout": 0.3}
    return [
        small(nb, **sizes),
        small(nb, batch_norm=False, activation="ReLU", **sizes),
        nb.TreeConfig(context_size=4, embedding_dim=3, **sizes).make(),
        nb.TransformerConfig(16, 4, blocks=2, dropout=0.3, context_size=9).make(),
    ]


def test_the_check_of_networks_passes_ours_and_leaves_them_alone(nb):
    for network in networks(nb):
        before = [tensor.clone() for tensor in network.tensors()]
        assert nb.check_network_gradient(network, NAMES[:9]) < LIMIT
        assert all(map(torch.equal, network.tensors(), before))


def tree_logits(X, C, W1, g1, b1, W2, g2, b2, W3, b3):
    h = C[X]  # (B, 4, E)
    for W, gamma, beta in ((W1, g1, b1), (W2, g2, b2)):
        h = h.unflatten(1, (-1, 2)).flatten(2) @ W  # (B, T / 2, H)
        h = batch_norm(h.flatten(0, 1), gamma, beta).tanh().view(h.shape)
    return h[:, 0] @ W3 + b3


def transformer_logits(X, C, P, g1, b1, W1, c1, W2, c2, g2, b2, W3, c3, W4, c4, g3, b3, W5, c5):
    """One block of four heads, on the padded table."""
    h = F.embedding(X.clamp(min=0), C) + P
    q, k, v = (F.layer_norm(h, (16,), g1, b1) @ W1 + c1).split(16, 2)
    q, k, v = (t.unflatten(2, (4, -1)).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    h = h + y @ W2 + c2
    h = h + F.gelu(F.layer_norm(h, (16,), g2, b2) @ W3 + c3, approximate="tanh") @ W4 + c4
    return F.layer_norm(h, (16,), g3, b3) @ W5 + c5


@pytest.mark.parametrize("reference", [tree_logits, transformer_logits])
def test_a_whole_network_has_the_loss_and_gradient_of_one_in_torchs_own_functions(nb, reference):
    config = nb.TreeConfig(hidden_sizes=(6, 5), context_size=4)
    if reference is transformer_logits:
        config = nb.TransformerConfig(16, 4, context_size=9)
    network, loss = config.make().to(torch.float64), nb.CrossEntropy()
    network.parameters.add_(0.1 * random(network.size))
    X, Y = network.examples(["emma", "bo", "isabella"])
    with nb.training_mode(network):
        ours = loss.forward(network.forward(X), Y)
        network.backward(loss.backward())
    leaves = [view.clone().requires_grad_() for view in network.views(network.parameters)]
    logits = reference(X, *leaves).reshape(-1, nb.V)
    theirs = F.cross_entropy(logits, Y.flatten(), ignore_index=-1)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for (layer, name), leaf in zip(network.named, leaves, strict=True):
        assert nb.relative_error(getattr(layer, "d" + name), leaf.grad) < LIMIT, name


def test_the_fifty_lines_of_section_1_have_the_gradients_of_autograd_and_learn(nb, capsys):
    cells = {cell.id: cell.source for cell in code_cells() if cell.id.startswith("walk-")}
    walk = {"NAMES_FILE": ROOT / "names.txt", "FAST": True}
    for cell in ("walk-data", "walk-parameters", "walk-forward", "walk-backward"):
        exec(cells[cell], walk)
    dev_loss = "loss_of(forward(X_dev)[0], Y_dev)"
    assert eval(dev_loss, walk) == pytest.approx(math.log(27), abs=0.02)
    initial = {name: walk[name] for name in ("C", "W1", "b1", "W2", "b2")}
    leaves = [tensor.double().requires_grad_() for tensor in initial.values()]
    walk.update(zip(initial, leaves))
    x, y = walk["X"][:300], walk["Y"][:300]
    logits, kept = walk["forward"](x)
    walk["loss_of"](logits, y).backward()
    with torch.no_grad():
        gradients = walk["backward"](x, y, logits, *kept)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert nb.relative_error(gradient, leaf.grad) < 1e-13
    walk.update(initial)
    for cell in ("walk-train", "walk-names"):
        exec(cells[cell], walk)
    assert eval(dev_loss, walk) < 2.7
    assert len(capsys.readouterr().out.splitlines()[-1].split(", ")) == 14


def test_parameters_and_gradients_of_the_layers_are_views_of_two_flat_tensors(nb):
    network = small(nb)
    assert [name for _, name in network.named] == ["C", "W", "gamma", "beta", "W", "b"]
    assert network.size == 27 * 10 + 30 * 16 + 2 * 16 + 16 * 27 + 27
    for each in (network, copy.deepcopy(network)):
        each.parameters.fill_(7.0)
        each.gradient.fill_(3.0)
        for layer, name in each.named:
            assert (getattr(layer, name) == 7).all() and (getattr(layer, "d" + name) == 3).all()


def test_equal_configs_make_equal_networks_and_each_setting_counts(nb):
    base = small(nb, dropout=0.2)
    assert all(map(torch.equal, base.tensors(), small(nb, dropout=0.2).tensors()))
    sizes = {"context_size": 4, "embedding_dim": 5, "hidden_sizes": (3,)}
    changes = {"seed": 2, "init": "naive", "batch_norm": False, "embedding_std": 0.1, **sizes}
    for name, value in changes.items():
        other = small(nb, **{"dropout": 0.2, name: value})
        same = other.size == base.size and torch.equal(other.parameters, base.parameters)
        assert not same and getattr(other.config, name) == value, f"{name} makes no difference"
    kinds = [type(layer).__name__ for layer in small(nb, dropout=0.2, activation="ReLU").layers]
    assert kinds == ["Embedding", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert base.find("dropout")[0].rate == 0.2 and small(nb).find("dropout") == []
    tree = nb.TreeConfig(hidden_sizes=(6, 5), context_size=4, embedding_dim=3)
    assert tree.shapes() == [(6, 6), (12, 5), (5, nb.V)]
    with pytest.raises(ValueError, match="joins 4 characters, and this one is given 3"):
        dataclasses.replace(tree, context_size=3).make()
    for frozen in (tree, nb.TransformerConfig()):
        with pytest.raises(AttributeError):  # a network keeps it: it must not change
            frozen.seed = 5


def test_initial_weights_have_the_scale_of_their_name(nb):
    hidden_stds = dict(zip(nb.INITS, (1, 1, 0.1, 1 / 6, 0.05), strict=True))
    for init, hidden_std in hidden_stds.items():
        config = nb.Config(init, False, (400,), context_size=4, embedding_dim=25)
        embedding, hidden, _, output = config.make().layers
        assert embedding.C.std() == pytest.approx(1, 0.1) and (hidden.b == 0).all()
        assert hidden.W.std() == pytest.approx(hidden_std, 0.03)
        assert output.W.std() == pytest.approx(1 if init == "naive" else 0.1 / 20, 0.03)


def test_a_folded_network_computes_the_same_without_batchnorm(nb):
    tree = nb.TreeConfig(hidden_sizes=(8, 6), context_size=4)
    mlps = small(nb, hidden_sizes=(8, 6), dropout=0.1), small(nb, batch_norm=False)
    for network in (*mlps, tree.make()):
        fit(nb, network)
        folded, (X, _) = nb.fold(network), network.examples(OTHERS)
        assert folded.find("batch norm") == [] and folded.context_size == network.context_size
        assert torch.allclose(folded.logits(X), network.logits(X), atol=1e-5)
        assert folded.config.make().load(folded.tensors()).loss(OTHERS) == folded.loss(OTHERS)


def test_loading_copies_and_refuses_tensors_of_another_network(nb):
    network, same = small(nb, seed=5), small(nb, seed=5)
    for tensors in (small(nb, hidden_sizes=(5,)).tensors(), network.tensors()[:-1]):
        with pytest.raises(ValueError, match="another network's|shorter"):
            network.load(tensors)
    loaded = small(nb).load(network.tensors())
    fit(nb, network)
    assert all(map(torch.equal, loaded.tensors(), same.tensors())), "loaded tensors are copies"


def test_networks_are_in_inference_mode_but_inside_a_with(nb):
    network = small(nb, dropout=0.5)
    before = [tensor.clone() for tensor in network.tensors()]
    network.loss(OTHERS)
    network.sample(3)
    assert all(map(torch.equal, before, network.tensors())), "evaluation changes nothing"
    with pytest.raises(RuntimeError), nb.training_mode(network) as same:
        assert same is network and all(part.training for part in network.parts())
        raise RuntimeError
    assert not any(part.training for part in network.parts())


def test_a_transformer_sees_no_later_character_and_answers_rows_as_windows(nb):
    network = nb.TransformerConfig(16, 4, blocks=2, context_size=9).make()
    network.parameters.add_(0.1 * random(network.size).float())
    names = ["isabella", "bo", "emma"]
    changed = network.examples(names)[0]
    before = network.forward(changed)
    changed[0, 5:] = 7
    after = network.forward(changed)
    assert torch.equal(before[:5], after[:5]) and not torch.equal(before[5:9], after[5:9])
    assert torch.allclose(network.surprisals(names), nb.Model.surprisals(network, names), atol=1e-5)
    too_long = network.surprisals(["isabellabella", "bo"])  # for a row, not for windows
    assert len(too_long) == 17 and too_long.isfinite().all()
    with pytest.raises(ValueError, match="9 letters needs 10 positions"):
        network.examples(["isabellas"])


def test_an_untrained_transformer_knows_nothing_and_has_the_layers_of_its_config(nb):
    network = nb.TransformerConfig(32, 4, widen=3, blocks=2, context_size=9).make()
    assert network.loss(OTHERS) == pytest.approx(3.296, abs=0.08)
    weights = [layer.W for layer in network.find("linear")]
    shapes = [(32, 96), (32, 32), (32, 96), (96, 32)] * 2 + [(32, 27)]
    assert [tuple(W.shape) for W in weights] == shapes
    gains = [W.std().item() * len(W) ** 0.5 for W in weights]
    assert gains == pytest.approx([1, 0.5, 1, 0.5] * 2 + [0.1], rel=0.1)
    assert len(network.find("layer norm")) == 5
    with pytest.raises(ValueError, match="multiple of heads"):
        nb.TransformerConfig(dim=30, heads=4).make()


ADAMW = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}


@pytest.mark.parametrize("settings", [{"momentum": 0.0}, {"momentum": 0.9}, {}, ADAMW])
def test_optimisers_take_the_steps_that_torch_takes(nb, settings):
    ours, theirs = random(50), random(50)
    if "momentum" in settings:
        optimizer, nesterov = nb.SGD(**settings), settings["momentum"] > 0
        reference = torch.optim.SGD([theirs], lr=0.01, nesterov=nesterov, **settings)
    else:
        optimizer = nb.AdamW(**settings)
        same = {name: getattr(optimizer, name) for name in ADAMW}
        reference = torch.optim.AdamW([theirs], lr=0.01, **same)
    for step in range(100):
        theirs.grad = random(50, seed=step)
        ours = ours - 0.01 * optimizer.direction(theirs.grad.clone(), ours)
        reference.step()
    assert nb.relative_error(ours, theirs) < LIMIT
