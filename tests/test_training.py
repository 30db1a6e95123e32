"""The notebook's training loop, optimiser, evaluation, diagnostics and settings check."""

import math

import pytest
import torch
import torch.nn.functional as F
from notebook_code import definitions

from charlm_utils import build_dataset

NAMES = ["emma", "olivia", "ava", "isabella", "sophia", "mia", "amelia", "harper", "ella"] * 4


@pytest.fixture
def data(nb):
    return build_dataset(NAMES, nb.vocab, 3)


def small(nb, seed=1, **options):
    options = {"batch_norm": True, "hidden_sizes": (16,)} | options
    return nb.make_mlp("gain 5/3", seed=seed, **options)


def fit(nb, network, data, **options):
    options = {"steps": 60, "batch_size": 32, "learning_rate": 0.1, "show": False} | options
    return nb.train(network, data, **options)


def test_training_brings_the_loss_down(nb, data):
    network = small(nb)
    before = nb.evaluate(network, data)
    history = fit(nb, network, data)
    assert abs(before - math.log(27)) < 0.3
    assert nb.evaluate(network, data) < 1.5
    assert history.loss[-1] < history.loss[0] - 1
    assert len(history.loss) == len(history.learning_rate) == 60 and not history.stopped


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(nb, data):
    runs = []
    for seed in (5, 5, 6):
        network = small(nb)
        torch.manual_seed(seed * 100)  # the global generator must play no part
        history = fit(nb, network, data, seed=seed)
        runs.append((network.parameters, history.loss))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], runs[2][0])
    assert torch.equal(small(nb, seed=3).parameters, small(nb, seed=3).parameters)
    assert not torch.equal(small(nb, seed=3).parameters, small(nb, seed=4).parameters)


def test_training_leaves_the_global_random_state_alone(nb, data):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fit(nb, small(nb), data)
    assert torch.equal(torch.rand(3), expected)


def test_an_interrupt_keeps_the_history_and_a_usable_model(nb, data):
    def interrupt(step, change):
        if step == 20:
            raise KeyboardInterrupt

    network = small(nb)
    history = fit(nb, network, data, probe=interrupt)
    assert len(history.loss) == len(history.learning_rate) == 21
    assert "interrupted after 21 of 60" in history.stopped
    assert all(layer.training for layer in network.layers)
    assert nb.evaluate(network, data) < math.log(27)
    assert len(fit(nb, network, data).loss) == 60, "training again after an interrupt"


def test_an_interrupt_while_dev_is_measured_restores_training_mode(nb, data, monkeypatch):
    network = small(nb)
    forward = nb.Tanh.forward

    def interrupted(self, x):
        if not self.training:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(nb.Tanh, "forward", interrupted)
    history = fit(nb, network, data, dev=data, dev_points=2)
    assert history.stopped and len(history.loss) == 30
    assert all(layer.training for layer in network.layers)


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_advice(nb, data):
    network = small(nb, batch_norm=False)
    history = fit(nb, network, data, learning_rate=1e37)
    assert 0 < len(history.loss) < 60
    assert all(math.isfinite(loss) for loss in history.loss), "history up to there is kept"
    for part in (f"step {len(history.loss)}", "learning rate", "try", "1e+36"):
        assert part in history.stopped, history.stopped


def test_the_schedule_and_the_dev_points_are_as_asked(nb, data):
    history = fit(nb, small(nb), data, steps=50, dev=data, dev_points=5)
    expected = [0.1 * (1 - step / 50) for step in range(50)]
    assert history.learning_rate == pytest.approx(expected)
    assert [step for step, _ in history.dev] == [10, 20, 30, 40, 50]
    constant = fit(nb, small(nb), data, steps=5, schedule=lambda progress: 1)
    assert constant.learning_rate == [0.1] * 5


def test_the_last_dev_point_is_the_loss_of_the_network_that_comes_back(nb, data):
    network = small(nb)
    history = fit(nb, network, data, steps=7, dev=data, dev_points=3)
    assert history.dev[-1] == (7, nb.evaluate(network, data))


def test_the_probe_is_told_the_true_change_of_the_parameters(nb, data):
    network = small(nb)
    before = [network.parameters.clone()]

    def probe(step, change):
        assert torch.allclose(network.parameters - before[0], change, atol=1e-6)
        before[0] = network.parameters.clone()

    fit(nb, network, data, probe=probe)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_takes_the_steps_that_torch_takes(nb, generator, momentum):
    ours = torch.randn(20, generator=generator, dtype=torch.float64)
    theirs = ours.clone()
    optimizer = nb.SGD(momentum)
    torch_sgd = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, nesterov=momentum > 0)
    for _ in range(100):
        g = torch.randn(20, generator=generator, dtype=torch.float64)
        ours.sub_(optimizer.direction(g.clone()), alpha=0.1)
        theirs.grad = g
        torch_sgd.step()
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_a_pass_of_minibatches_holds_each_example_once_in_a_new_order(nb):
    X = torch.arange(10)[:, None]
    batches = nb.minibatches((X, X[:, 0]), 5, seed=1)
    passes = []
    for _ in range(3):
        rows = torch.cat([next(batches)[0][:, 0], next(batches)[1]])
        assert sorted(rows.tolist()) == list(range(10)), "an example is missing or stands twice"
        passes.append(rows.tolist())
    assert passes[0] != passes[1] != passes[2]


def test_inputs_and_targets_of_a_minibatch_belong_together(nb):
    X = torch.arange(40)[:, None]
    X_batch, Y_batch = next(nb.minibatches((X, X[:, 0] * 2), 8, seed=3))
    assert torch.equal(X_batch[:, 0] * 2, Y_batch)


def test_a_batch_larger_than_the_data_is_refused(nb, data):
    with pytest.raises(ValueError, match="lower it"):
        fit(nb, small(nb), data, batch_size=10_000)


def test_evaluation_covers_the_whole_split_and_changes_nothing(nb, data):
    network = small(nb)
    fit(nb, network, data)
    buffers = [layer.running_mean.clone() for layer in network.layers if layer.buffer_names]
    loss = nb.evaluate(network, data)
    with network.inference():
        expected = F.cross_entropy(network.forward(data[0]), data[1]).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    pieces = nb.surprises(network, data, chunk=7)  # 7 does not divide the number of examples
    assert torch.allclose(pieces, nb.surprises(network, data), atol=1e-5)
    assert len(pieces) == len(data[1])
    after = [layer.running_mean for layer in network.layers if layer.buffer_names]
    assert all(torch.equal(a, b) for a, b in zip(buffers, after))
    assert all(layer.training for layer in network.layers)


def test_signals_look_at_a_copy(nb, data):
    network = small(nb, hidden_sizes=(9, 8, 7))
    mean = network.layers[2].running_mean.clone()
    seen = nb.signals(network, *data)
    assert [tuple(y.shape) for y in seen["y"]] == [(len(data[1]), n) for n in (9, 8, 7)]
    assert [dy.shape for dy in seen["dy"]] == [y.shape for y in seen["y"]]
    assert [dW.shape for dW in seen["dW"]] == [W.shape for W in seen["W"]]
    assert len(seen["W"]) == 4
    assert torch.equal(network.layers[2].running_mean, mean)


def test_the_gradient_of_an_output_is_the_one_that_the_probe_reports(nb, data):
    """Change one output of the last tanh layer a little: the loss must move by dy times that."""
    network = small(nb, batch_norm=False)
    network = nb.Network([layer.to(torch.float64) for layer in network.layers])
    seen, loss, output = nb.signals(network, *data), nb.CrossEntropy(), network.layers[-1]
    y, step = seen["y"][0].clone(), 1e-6
    y[3, 5] += step
    up = loss.forward(output.forward(y), data[1])
    y[3, 5] -= 2 * step
    down = loss.forward(output.forward(y), data[1])
    assert (up - down) / (2 * step) == pytest.approx(seen["dy"][0][3, 5].item(), rel=1e-4)


def test_update_ratios_are_those_of_the_weight_matrices(nb, data):
    network = small(nb, hidden_sizes=(9, 8))
    probe, seen = nb.update_ratios(network, every=10)
    fit(nb, network, data, probe=probe)
    assert seen["step"] == [0, 10, 20, 30, 40, 50]
    change = torch.zeros_like(network.parameters)
    network.views(change)[1].normal_()  # the first Linear's W, after the embedding's C
    probe(0, change)
    W = network.layers[1].W
    expected = (network.views(change)[1].std() / W.std()).log10().item()
    assert seen["ratio"][-1][0] == pytest.approx(expected)
    assert len(seen["ratio"][-1]) == 3 and seen["ratio"][-1][1] == -math.inf


def test_saturation_counts_stuck_outputs_and_dead_units(nb):
    network = small(nb, batch_norm=False, hidden_sizes=(4,))
    linear = network.layers[1]
    linear.W.zero_()
    linear.b.copy_(torch.tensor([10.0, -10.0, 0.0, 0.1]))
    X = torch.zeros(6, 3, dtype=torch.int64)
    (y,) = nb.hidden_outputs(network, X)
    assert y.shape == (6, 4) and nb.saturation(y) == (0.5, 0.5)
    y[0, 0] = 0  # awake once: saturated mostly, but not dead
    assert nb.saturation(y) == (11 / 24, 0.25)


def test_hidden_outputs_are_the_same_in_chunks_as_in_one_go(nb):
    network = small(nb, hidden_sizes=(4, 3))
    X = torch.randint(27, (5_000, 3), generator=torch.Generator().manual_seed(2))
    outputs = nb.hidden_outputs(network, X)
    with network.inference():
        network.forward(X)
    tanh = [layer for layer in network.layers if isinstance(layer, nb.Tanh)]
    assert all(torch.allclose(a, layer.y, atol=1e-6) for a, layer in zip(outputs, tanh))


def test_the_wrong_mode_differs_and_spoils_nothing(nb, data):
    network = small(nb)
    fit(nb, network, data)
    mean = network.layers[2].running_mean.clone()
    wrong = nb.training_mode_loss(network, data, 4)
    assert abs(wrong - nb.evaluate(network, data)) > 1e-3
    assert torch.equal(network.layers[2].running_mean, mean)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("BATCH_SIZE", -1),
        ("BATCH_SIZE", 1),
        ("BATCH_SIZE", 2.5),
        ("CONTEXT_SIZE", 0),
        ("EMBEDDING_DIM", "10"),
        ("HIDDEN_SIZE", 0),
        ("STEPS", -5),
        ("SEED", -1),
        ("SEED", True),
        ("THREADS", 0),
        ("LEARNING_RATE", 0),
        ("LEARNING_RATE", float("nan")),
        ("LEARNING_RATE", "fast"),
        ("DEVICE", "toaster"),
        ("DEVICE", None),
    ],
)
def test_a_wrong_setting_stops_with_its_name_and_what_to_do(setting, value):
    wrong = definitions(**{setting: value})
    with pytest.raises(ValueError, match=rf"{setting}|{value!r}") as error:
        wrong.check_settings()
    assert "must be" in str(error.value) or "set DEVICE" in str(error.value)


def test_the_settings_as_they_are_pass(nb):
    nb.check_settings()


def test_fast_mode_takes_a_hundredth_of_the_steps():
    assert definitions(FAST=True).budget(5_000) == 50
    assert definitions(FAST=True).budget(500) == 20
    assert definitions(FAST=False).budget(5_000) == 5_000
