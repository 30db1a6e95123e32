"""The notebook's training loop, optimiser, evaluation, diagnostics and settings check."""

import copy
import math
import time

import pytest
import torch
import torch.nn.functional as F
from notebook_code import definitions
from small import OTHERS, fit, small

from charlm_utils import build_dataset


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
        ours.sub_(optimizer.direction(g.clone(), ours), alpha=0.1)
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
    with pytest.raises(ValueError, match=setting) as error:
        wrong.check_settings()
    assert "must be" in str(error.value) or "set DEVICE" in str(error.value)


def test_the_settings_as_they_are_pass(nb):
    nb.check_settings()


def test_fast_mode_takes_a_hundredth_of_the_steps():
    assert definitions(FAST=True).budget(5_000) == 50
    assert definitions(FAST=True).budget(500) == 20
    assert definitions(FAST=False).budget(5_000) == 5_000


def test_a_run_takes_the_steps_that_torch_takes_on_the_same_batches(nb, data):
    network, twin = small(nb), small(nb)
    history = fit(nb, network, data, steps=5, seed=3)
    optimizer = torch.optim.SGD([twin.parameters], lr=0.1, momentum=0.9, nesterov=True)
    batches, loss = nb.minibatches(data, 32, 3), nb.CrossEntropy()
    for step in range(5):
        X, Y = next(batches)
        assert history.loss[step] == pytest.approx(loss.forward(twin.forward(X), Y).item())
        twin.backward(loss.backward())
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 5)
        twin.parameters.grad = twin.gradient
        optimizer.step()
    assert torch.allclose(network.parameters, twin.parameters, atol=1e-6)


def test_the_optimizer_that_is_given_is_used(nb, data):
    plain, default = small(nb), small(nb)
    fit(nb, plain, data, steps=5, optimizer=nb.SGD(0.0))
    fit(nb, default, data, steps=5)
    assert not torch.allclose(plain.parameters, default.parameters, atol=1e-3)


def test_the_dev_loss_is_that_of_the_dev_data(nb, data):
    other = build_dataset(OTHERS, nb.vocab, 3)
    network = small(nb)
    history = fit(nb, network, data, dev=other)
    assert history.dev[-1] == (60, nb.evaluate(network, other))
    assert history.dev[-1][1] > nb.evaluate(network, data) + 0.5


def test_a_run_shorter_than_the_dev_points_measures_after_each_step(nb, data):
    history = fit(nb, small(nb), data, steps=3, dev=data, dev_points=20)
    assert [step for step, _ in history.dev] == [1, 2, 3]


def test_a_run_says_how_long_it_took(nb, data):
    start = time.perf_counter()
    history = fit(nb, small(nb), data)
    assert 0 < history.seconds <= time.perf_counter() - start


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_infinite_loss_stops_as_one_that_is_not_a_number_does(nb, data, monkeypatch, bad):
    forward, calls = nb.CrossEntropy.forward, []

    def failing(self, logits, targets):
        calls.append(1)
        loss = forward(self, logits, targets)
        return torch.tensor(bad) if len(calls) == 31 else loss

    monkeypatch.setattr(nb.CrossEntropy, "forward", failing)
    history = fit(nb, small(nb), data)
    assert len(history.loss) == 30 and "learning rate 0.05;" in history.stopped


def test_the_progress_line_ends_with_what_was_done_and_the_last_losses(nb, data, monkeypatch):
    lines = []
    monkeypatch.setattr(nb.Progress, "write", lambda self, text: lines.append(text))
    history = fit(nb, small(nb), data, steps=600, dev=data)
    mean = sum(history.loss[-500:]) / 500
    assert lines == [
        f"600 steps: training loss {mean:.4f} (mean of the last 500 batches), "
        f"dev loss {history.dev[-1][1]:.4f}"
    ]


def test_the_live_line_counts_the_steps_and_the_time_that_is_left(nb, monkeypatch):
    clock, shown = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    progress = nb.Progress(100, show=False)
    progress.handle, progress.write = True, shown.append
    clock[0] = 2.0
    progress.update(20, nb.History(loss=[2.5], dev=[(10, 2.25)]))
    assert shown == ["step 20 of 100, loss 2.5000, dev loss 2.2500, 8 s left"]
    progress.update(21, nb.History(loss=[2.5]))
    assert len(shown) == 1, "twice a second is enough"


def test_a_quiet_run_shows_nothing(nb, data, capsys):
    fit(nb, small(nb), data, steps=2)
    assert capsys.readouterr().out == ""


def test_progress_is_told_how_many_steps_are_done(nb, data, monkeypatch):
    steps = []
    monkeypatch.setattr(nb.Progress, "update", lambda self, step, history: steps.append(step))
    fit(nb, small(nb), data, steps=3)
    assert steps == [1, 2, 3]


def test_every_batch_is_full_and_the_first_pass_is_shuffled_too(nb):
    X = torch.arange(11)[:, None]
    batches = nb.minibatches((X, X[:, 0]), 4, seed=1)
    first = [next(batches)[1] for _ in range(5)]
    assert [len(Y) for Y in first] == [4] * 5
    assert first[0].tolist() + first[1].tolist() != list(range(8))


def test_all_the_data_can_be_one_batch(nb):
    X = torch.arange(6)[:, None]
    _, Y = next(nb.minibatches((X, X[:, 0]), 6, seed=1))
    assert sorted(Y.tolist()) == list(range(6))


def test_evaluation_weighs_each_example_alike_beyond_one_chunk(nb, data):
    network = small(nb)
    X, Y = (part.repeat(75 if part.dim() == 1 else (75, 1)) for part in data)  # 16,500
    Y[2**14 :] = 26  # the last chunk is short, and hard
    losses = torch.cat([nb.surprises(network, (X[i::2], Y[i::2])) for i in range(2)])
    assert nb.evaluate(network, (X, Y)) == pytest.approx(losses.double().mean().item(), rel=1e-9)


def test_signals_are_those_of_each_tanh_in_training_mode(nb, data):
    network = small(nb)
    seen = nb.signals(network, *data)
    twin = copy.deepcopy(network)
    twin.forward(data[0])
    (y,) = (layer.y for layer in twin.layers if isinstance(layer, nb.Tanh))
    assert torch.equal(seen["y"][0], y)


def test_weight_gradients_of_the_signals_are_the_networks(nb, data):
    network = small(nb)
    seen, loss = nb.signals(network, *data), nb.CrossEntropy()
    loss.forward(network.forward(data[0]), data[1])
    network.backward(loss.backward())
    linear = [layer for layer in network.layers if isinstance(layer, nb.Linear)]
    for layer, W, dW in zip(linear, seen["W"], seen["dW"], strict=True):
        assert torch.equal(W, layer.W) and torch.allclose(dW, layer.dW)


def test_the_update_ratio_is_one_of_deviations(nb):
    network = small(nb)
    probe, seen = nb.update_ratios(network, every=1)
    network.layers[1].W.add_(5)  # a common offset is no spread
    probe(0, network.parameters / 100)
    assert seen["ratio"] == [pytest.approx([-2, -2], abs=1e-4)]


def test_saturated_means_that_less_than_6_percent_of_the_gradient_passes(nb):
    assert 0.05 < 1 - nb.SATURATED**2 < 0.06
    assert nb.saturation(torch.tensor([[-0.98, 0.98, 0.96, -0.96]]))[0] == 0.5


def test_the_depth_profile_holds_with_gain_5_3_and_fades_with_a_half(nb):
    good, faint = nb.depth_profile(5 / 3), nb.depth_profile(0.5)
    assert len(good) == len(faint) == 10
    assert 0.5 < good[-1] < good[0] < 0.8
    for shallow, deep in zip(faint, faint[1:]):
        assert deep == pytest.approx(shallow / 2, rel=0.25)


def test_what_enters_batchnorm_is_the_first_linear_layers_output(nb, data):
    network = small(nb, hidden_sizes=(9, 8))
    inputs = nb.batchnorm_inputs(network, data[0])
    embedding, linear = network.layers[:2]
    assert torch.equal(inputs, linear.forward(embedding.forward(data[0])))
    assert not network.layers[2].running_mean.any(), "it must not run the layer"


def test_the_wrong_mode_with_one_batch_is_the_loss_of_that_batch(nb, data):
    network = small(nb)
    fit(nb, network, data)
    twin, loss = copy.deepcopy(network), nb.CrossEntropy()
    expected = loss.forward(twin.forward(data[0]), data[1]).item()
    assert nb.training_mode_loss(network, data, len(data[1])) == pytest.approx(expected, rel=1e-5)


def test_companions_change_the_answer_and_the_original_stays_as_it_is(data):
    own = definitions(train_data=data, dev_data=None, known=set(), real=set())
    network = small(own)
    fit(own, network, data)
    mean = network.layers[2].running_mean.clone()
    context, target = data[0][6], data[1][6]
    few, many = (own.coupled(network, context, target, n, trials=50) for n in (4, 200))
    assert torch.equal(network.layers[2].running_mean, mean)
    assert few.shape == (50,) and few.std() > 2 * many.std() > 0
    alone = own.surprises(network, (context[None], target[None])).neg().exp()
    assert many.mean().item() == pytest.approx(alone.item(), abs=0.1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("SEED", 0),
        ("BATCH_SIZE", 2),
        ("CONTEXT_SIZE", 1),
        ("EMBEDDING_DIM", 1),
        ("HIDDEN_SIZE", 1),
        ("STEPS", 1),
        ("LEARNING_RATE", 1),
    ],
)
def test_the_least_allowed_setting_passes(setting, value):
    definitions(**{setting: value}).check_settings()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("BATCH_SIZE", 1),
        ("SEED", True),
        ("LEARNING_RATE", 0),
        ("LEARNING_RATE", -0.1),
        ("LEARNING_RATE", math.inf),
        ("DEVICE", "toaster"),
    ],
)
def test_a_wrong_setting_is_named(setting, value):
    with pytest.raises(ValueError, match=setting):
        definitions(**{setting: value}).check_settings()


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, NotImplementedError])
def test_a_device_that_torch_lacks_stops_with_one_sentence(monkeypatch, error):
    own = definitions(DEVICE="cuda")  # without CUDA torch raises AssertionError

    def refuse(*size, **options):
        raise error("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(ValueError, match="set DEVICE to 'cpu'"):
        own.check_settings()


def test_the_number_of_threads_is_set():
    before = torch.get_num_threads()
    try:
        definitions(THREADS=before + 1).check_settings()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_loss_over_names_is_the_loss_and_its_interval_the_formula(nb):
    network = small(nb)
    names = ["emma", "bo", "isabella", "zoe"]
    own = definitions(dataset=lambda some: build_dataset(some, nb.vocab, 3))
    loss, half = own.loss_interval(network, names)
    assert loss == pytest.approx(nb.evaluate(network, build_dataset(names, nb.vocab, 3)), rel=1e-6)
    each = [build_dataset([name], nb.vocab, 3) for name in names]
    excess = [nb.surprises(network, d).sum().item() - loss * len(d[1]) for d in each]
    characters = sum(len(d[1]) for d in each)
    expected = 1.96 * math.sqrt(sum(e * e for e in excess)) / characters
    assert half == pytest.approx(expected, rel=1e-4)
