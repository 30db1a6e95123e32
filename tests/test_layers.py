"""The notebook's own layers against autograd and torch.nn.functional, in float64."""

import pytest
import torch
import torch.nn.functional as F
from notebook_code import definitions
from small import small

TOLERANCE = 1e-10


def same(ours, theirs, what):
    """Shapes first, since broadcasting could make two different shapes agree; then values."""
    assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, should be {theirs.shape}"
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-300)
    assert error < TOLERANCE, f"{what}: relative error {error:.1e}; check its formula"


def against_autograd(layer, twin, x, *more):
    """Compare y, dx and every dW of a layer with those of `twin(x, *more, **parameters)`."""
    layer.to(torch.float64)
    g = torch.Generator().manual_seed(1)
    for name in layer.parameter_names:  # nothing is zero or one: those could hide an error
        value = torch.randn(getattr(layer, name).shape, generator=g, dtype=torch.float64)
        setattr(layer, name, value)
    with torch.enable_grad():
        leaves = {n: getattr(layer, n).clone().requires_grad_() for n in layer.parameter_names}
        leaf = x.clone().requires_grad_() if x.is_floating_point() else x
        y = twin(leaf, *more, **leaves)
        dy = torch.randn(y.shape, generator=g, dtype=torch.float64) if y.dim() else None
        y.backward(dy)
    same(layer.forward(x, *more), y.detach(), "y")
    for _ in range(2):  # backward must not spoil what forward kept
        dx = layer.backward() if dy is None else layer.backward(dy)
        if x.is_floating_point():
            same(dx, leaf.grad, "dx")
        for name, parameter in leaves.items():
            same(getattr(layer, "d" + name), parameter.grad, "d" + name)


@pytest.mark.parametrize("context", [1, 3, 8])
def test_the_embedding_adds_up_the_gradients_of_repeated_characters(nb, generator, context):
    ids = torch.randint(5, (40, context), generator=generator)  # 5 tokens: every one repeats
    layer = nb.Embedding(7, 4, generator)  # tokens 5 and 6 never occur: their gradient is 0
    against_autograd(layer, lambda x, C: F.embedding(x, C).flatten(1), ids)
    assert layer.dC[5:].abs().max() == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 7), (50, 4, 3), (2, 30, 20), (20, 1, 1)])
def test_linear_agrees_for_tall_and_for_wide_batches(nb, generator, shape, bias):
    rows, fan_in, fan_out = shape
    x = torch.randn(rows, fan_in, generator=generator, dtype=torch.float64)
    layer = nb.Linear(fan_in, fan_out, 1.0, generator, bias=bias)
    against_autograd(layer, lambda x, W, b=None: F.linear(x, W.T, b), x)


@pytest.mark.parametrize("shape", [(3, 5, 7), (50, 4, 3), (1, 1, 1), (27, 200, 256)])
def test_matmul_is_the_plain_product_in_either_order(nb, generator, shape):
    rows, inner, columns = shape
    a = torch.randn(rows, inner, generator=generator, dtype=torch.float64)
    b = torch.randn(inner, columns, generator=generator, dtype=torch.float64)
    same(nb.matmul(a, b), a @ b, "matmul")


def test_tanh_agrees_from_the_middle_to_the_far_ends(nb):
    x = torch.linspace(-30, 30, 241, dtype=torch.float64)[:, None]
    against_autograd(nb.Tanh(), torch.tanh, x)


def test_batchnorm_in_training_mode_agrees(nb, generator):
    x = 3 + 2 * torch.randn(32, 6, generator=generator, dtype=torch.float64)
    layer = nb.BatchNorm1d(6)
    against_autograd(
        layer, lambda x, gamma, beta: F.batch_norm(x, None, None, gamma, beta, training=True), x
    )


def test_batchnorm_in_inference_mode_agrees_and_leaves_its_averages_alone(nb, generator):
    x = torch.randn(32, 6, generator=generator, dtype=torch.float64)
    layer = nb.BatchNorm1d(6)
    layer.training = False
    layer.running_mean, layer.running_var = x[0].clone(), x[1] ** 2 + 0.1
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    against_autograd(
        layer, lambda x, gamma, beta: F.batch_norm(x, mean, var, gamma, beta, training=False), x
    )
    assert torch.equal(layer.running_mean, mean) and torch.equal(layer.running_var, var)
    layer.forward(x[:1])  # one row is enough here


def test_batchnorm_keeps_the_running_statistics_that_torch_keeps(nb, generator):
    ours, theirs = nb.BatchNorm1d(6).to(torch.float64), torch.nn.BatchNorm1d(6).double()
    for size in [2, 3, 32, 256] * 25:
        x = 5 + 3 * torch.randn(size, 6, generator=generator, dtype=torch.float64)
        ours.forward(x)
        theirs(x)
    same(ours.running_mean, theirs.running_mean, "running_mean")
    same(ours.running_var, theirs.running_var, "running_var (unbiased, momentum 0.1)")
    ours.training = False
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    same(ours.forward(x), theirs.eval()(x).detach(), "inference after many batches")


def test_batchnorm_refuses_to_train_on_one_row(nb):
    with pytest.raises(ValueError, match="one row"):
        nb.BatchNorm1d(3).forward(torch.ones(1, 3))


def test_cross_entropy_agrees_also_for_huge_logits(nb, generator):
    logits = torch.randn(50, 27, generator=generator, dtype=torch.float64)
    targets = torch.randint(27, (50,), generator=generator)
    against_autograd(nb.CrossEntropy(), F.cross_entropy, logits, targets)
    against_autograd(nb.CrossEntropy(), F.cross_entropy, 1000 * logits, targets)


def test_a_layer_moves_its_parameters_and_its_buffers(nb):
    layer = nb.BatchNorm1d(3).to(torch.float64)
    for name in ("gamma", "beta", "dgamma", "dbeta", "running_mean", "running_var"):
        assert getattr(layer, name).dtype == torch.float64, name


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(
    "init", ["naive", "output scaled", "fan-in scaled", "gain 5/3", "gain 1/2"]
)
def test_the_gradient_of_a_whole_network_is_autograds(nb, generator, init, batch_norm):
    network = nb.make_mlp(init, batch_norm=batch_norm, hidden_sizes=(9, 8), context_size=2)
    network = nb.Network([layer.to(torch.float64) for layer in network.layers])
    X = torch.randint(27, (30, 2), generator=generator)
    Y = torch.randint(27, (30,), generator=generator)
    loss = nb.CrossEntropy()
    value = loss.forward(network.forward(X), Y)
    network.backward(loss.backward())

    def twin(flat):
        parts = iter(network.views(flat))
        h = F.embedding(X, next(parts)).flatten(1)
        for _ in range(2):
            h = h @ next(parts)
            if batch_norm:
                h = F.batch_norm(h, None, None, next(parts), next(parts), training=True)
            else:
                h = h + next(parts)
            h = torch.tanh(h)
        return F.cross_entropy(h @ next(parts) + next(parts), Y)

    with torch.enable_grad():
        flat = network.parameters.clone().requires_grad_()
        expected = twin(flat)
        expected.backward()
    same(value, expected.detach(), "loss")
    same(network.gradient, flat.grad, "gradient")


def test_parameters_are_views_of_one_flat_tensor(nb):
    network = nb.make_mlp("gain 5/3", batch_norm=True, hidden_sizes=(5,))
    network.parameters.fill_(7.0)
    network.gradient.fill_(8.0)
    for layer, name in network.named:
        assert (getattr(layer, name) == 7).all(), f"{name} is a copy, not a view"
        assert (getattr(layer, "d" + name) == 8).all(), f"d{name} is a copy, not a view"
    assert network.parameters.numel() == 27 * 10 + 30 * 5 + 5 + 5 + 5 * 27 + 27


def test_the_models_have_the_published_number_of_parameters(nb):
    assert nb.make_mlp("naive", batch_norm=False).parameters.numel() == 11_897
    assert nb.make_mlp("gain 1/2", batch_norm=True).parameters.numel() == 12_097


def test_inference_mode_ends_as_it_began_also_after_an_error(nb):
    network = nb.make_mlp("gain 5/3", batch_norm=True, hidden_sizes=(5, 5))
    network.layers[2].training = False  # a mode of its own, to be found again
    before = [layer.training for layer in network.layers]
    with pytest.raises(KeyError), network.inference():
        assert not any(layer.training for layer in network.layers)
        with network.inference():
            pass
        assert not any(layer.training for layer in network.layers), "the inner block reset it"
        raise KeyError
    assert [layer.training for layer in network.layers] == before


def test_folding_batchnorm_away_changes_no_logit(nb, generator):
    network = nb.make_mlp("gain 5/3", batch_norm=True, hidden_sizes=(9, 8))
    for layer in network.layers:
        for name in ("gamma", "beta", "running_mean", "running_var"):
            if hasattr(layer, name):
                getattr(layer, name).uniform_(0.5, 2, generator=generator)
    X = torch.randint(27, (50, 3), generator=generator)
    with network.inference():
        before = network.forward(X)
    folded = nb.fold(network)
    assert not any(isinstance(layer, nb.BatchNorm1d) for layer in folded.layers)
    assert (folded.forward(X) - before).abs().max() < 1e-5
    with network.inference():
        assert torch.equal(network.forward(X), before), "folding changed the original"


@pytest.mark.parametrize("by_batch", [True, False])
def test_batchnorm_goes_back_the_way_it_came_though_the_mode_has_changed_since(
    nb, generator, by_batch
):
    x, dy = torch.randn(2, 8, 3, generator=generator)
    layer = nb.BatchNorm1d(3)
    layer.training = by_batch
    layer.forward(x)
    expected = layer.backward(dy).clone(), layer.dgamma.clone()
    layer.training = not by_batch
    assert torch.equal(layer.backward(dy), expected[0])
    assert torch.equal(layer.dgamma, expected[1])


def test_batchnorm_uses_the_eps_and_the_momentum_that_it_was_given(nb, generator):
    ours = nb.BatchNorm1d(4, eps=0.3, momentum=0.7).to(torch.float64)
    theirs = torch.nn.BatchNorm1d(4, eps=0.3, momentum=0.7).double()
    x = torch.randn(2, 16, 4, generator=generator, dtype=torch.float64)
    for part in x:
        assert torch.allclose(ours.forward(part), theirs(part).detach())
    assert torch.allclose(ours.running_mean, theirs.running_mean)
    assert torch.allclose(ours.running_var, theirs.running_var)
    ours.training = False
    assert torch.allclose(ours.forward(x[0]), theirs.eval()(x[0]).detach())


def test_no_layer_changes_what_it_is_given(nb, generator):
    x, dy = torch.randn(2, 8, 5, generator=generator)
    before = x.clone(), dy.clone()
    for layer in (nb.Linear(5, 5, 1.0, generator), nb.Tanh(), nb.BatchNorm1d(5)):
        layer.forward(x)
        layer.backward(dy)
        assert torch.equal(x, before[0]) and torch.equal(dy, before[1]), type(layer).__name__
    loss = nb.CrossEntropy()
    loss.forward(x, torch.arange(8) % 5)
    loss.backward()
    assert torch.equal(x, before[0]), "CrossEntropy"


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(
    ("init", "hidden", "output"),
    [
        ("naive", lambda n: 1, lambda n: 1),
        ("output scaled", lambda n: 1, lambda n: 0.1 / n**0.5),
        ("fan-in scaled", lambda n: n**-0.5, lambda n: 0.1 / n**0.5),
        ("gain 5/3", lambda n: 5 / 3 / n**0.5, lambda n: 0.1 / n**0.5),
        ("gain 1/2", lambda n: 0.5 / n**0.5, lambda n: 0.1 / n**0.5),
    ],
)
def test_an_initialisation_has_the_spread_that_it_is_named_for(
    nb, init, hidden, output, batch_norm
):
    network = nb.make_mlp(init, batch_norm=batch_norm, hidden_sizes=(300, 500))
    first, second, last = (layer for layer in network.layers if isinstance(layer, nb.Linear))
    assert network.layers[0].C.std().item() == pytest.approx(1, rel=0.15)  # 270 numbers
    assert first.W.std().item() == pytest.approx(hidden(30), rel=0.05)
    assert second.W.std().item() == pytest.approx(hidden(300), rel=0.05)
    assert last.W.std().item() == pytest.approx(output(500), rel=0.05)
    for layer in (first, second, last):
        assert layer.b is None or not layer.b.any(), "a bias starts at 0"


@pytest.mark.parametrize("context_size", [1, 5])
def test_a_network_knows_how_much_context_it_sees(nb, context_size):
    network = small(nb, context_size=context_size)
    assert network.context_size == context_size
    assert len(nb.sample(network, 3, max_length=4)) == 3
    nb.show_surprise(network, "ava")


def test_folding_keeps_eps_and_gives_parameters_that_could_be_trained(nb, generator):
    network = small(nb)
    norm = network.layers[2]
    norm.running_var.fill_(1e-5)  # as small as eps: forgetting it is a factor of 1.4
    X = torch.randint(27, (50, 3), generator=generator)
    with network.inference():
        before = network.forward(X)
    folded = nb.fold(network)
    assert torch.allclose(folded.forward(X), before, atol=1e-4)
    assert folded.parameters.numel() == 270 + 31 * 16 + 17 * 27


@pytest.mark.parametrize("spoilt", ["y", "dx", "dW", "db"])
def test_the_judge_finds_a_layer_guilty_of_each_wrong_result(nb, generator, spoilt):
    class Wrong(nb.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y - 1 if spoilt == "y" else y

        def backward(self, dy):
            dx = super().backward(dy)
            if spoilt in ("dW", "db"):
                getattr(self, spoilt).sub_(1)
            return dx - 1 if spoilt == "dx" else dx

    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    errors = nb.judge(Wrong(4, 3, 1.0, generator), lambda x, W, b: F.linear(x, W.T, b), x)
    assert list(errors) == ["y", "dx", "dW", "db"]
    for name, error in errors.items():
        assert error > 1e-2 if name == spoilt else error < 1e-10, name


def test_the_judge_tells_shapes_apart_and_sees_errors_of_either_sign(nb):
    one = torch.ones(1, 3)
    assert nb.relative_error(one - 0.5, one) == nb.relative_error(one + 0.5, one) == 0.5
    with pytest.raises(ValueError, match="shape"):
        nb.relative_error(one, torch.ones(2, 3))


def test_the_judge_of_the_network_finds_a_wrong_backward(data, monkeypatch):
    own = definitions(train_data=data, dev_data=None, known=set(), real=set())
    assert max(own.judge_network(batch_size=32)) < 1e-10
    monkeypatch.setattr(own.Tanh, "backward", lambda self, dy: dy)
    assert max(own.judge_network(batch_size=32)) > 1e-2


def test_folding_keeps_the_bias_of_a_linear_that_has_one(nb, generator):
    layers = [nb.Linear(4, 3, 1.0, generator), nb.BatchNorm1d(3), nb.Tanh()]
    layers[0].b.copy_(torch.tensor([1.0, -2.0, 3.0]))
    layers[1].running_var.fill_(4.0)
    network, x = nb.Network(layers), torch.randn(6, 4, generator=generator)
    with network.inference():
        before = network.forward(x)
    assert torch.allclose(nb.fold(network).forward(x), before, atol=1e-6)
