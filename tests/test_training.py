"""The training loop, what `train` adds to it, and the settings."""

import math

import pytest
import torch
from notebook_code import definitions
from small import NAMES, OTHERS, fit, small


def in_inference_mode(network):
    return not any(part.training for part in network.parts())


def test_training_brings_the_loss_down_and_adds_up_over_two_runs(nb):
    network = small(nb)
    before = network.loss(NAMES)
    first = fit(nb, network)
    assert abs(before - math.log(27)) < 0.3 and network.loss(NAMES) < 1.5
    assert len(first.loss) == len(first.learning_rate) == 60 and not first.stopped
    second = fit(nb, network, OTHERS, steps=7, batch_size=8)
    assert network.steps == 67 and network.seconds == first.seconds + second.seconds > 0
    assert network.trained_on is OTHERS and network.history is second and nb.Model.steps == 0


def test_each_step_is_the_one_that_torch_takes_on_the_same_batch(nb):
    network, other = small(nb), small(nb)
    optimizer = torch.optim.SGD([other.parameters], lr=0.1, momentum=0.9, nesterov=True)
    batches, loss = nb.minibatches(other.examples(NAMES), 32, 3), nb.CrossEntropy()
    run = nb.training(network, NAMES, 5, 0.1, 32, nb.linear_to_zero, nb.SGD(), nb.CrossEntropy(), 3)
    for step, (value, rate, direction) in enumerate(run):
        X, Y = next(batches)
        before = other.parameters.clone()
        with nb.training_mode(other):
            assert value == pytest.approx(loss.forward(other.forward(X), Y).item())
            other.backward(loss.backward())
        assert rate == pytest.approx(0.1 * (1 - step / 5))
        optimizer.param_groups[0]["lr"] = rate
        other.parameters.grad = other.gradient
        optimizer.step()
        assert torch.allclose(network.parameters, other.parameters, atol=1e-6)
        assert torch.allclose(before - rate * direction, network.parameters, atol=1e-6)
        assert in_inference_mode(network), "training mode outside a step"
    assert step == 4


def test_the_seed_of_the_config_alone_decides_the_run(nb):
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed * 100)  # the global generator must play no part
        before, network = torch.get_rng_state(), small(nb, seed=seed)
        runs.append((fit(nb, network).loss, network.parameters))
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]
    same_weights = small(nb, seed=6).load(small(nb, seed=5).tensors())
    assert fit(nb, same_weights).loss != runs[0][0], "the seed orders the batches, too"
    without_config = nb.Network(small(nb, seed=nb.SEED).layers, 3)
    assert fit(nb, without_config).loss == fit(nb, small(nb, seed=nb.SEED)).loss


def test_a_pass_of_minibatches_holds_each_example_once_in_a_new_order(nb):
    data = torch.arange(11)[:, None], 2 * torch.arange(11)
    batches, passes = nb.minibatches(data, 5, seed=1), []
    for _ in range(3):
        pairs = [next(batches), next(batches)]  # the eleventh is left out
        assert all(len(Y) == 5 and torch.equal(2 * X[:, 0], Y) for X, Y in pairs)
        passes.append([i for X, _ in pairs for i in X[:, 0].tolist()])
        assert len(set(passes[-1])) == 10, "an example stands twice"
    assert passes[0] != passes[1] != passes[2]
    other_seed = next(nb.minibatches(data, 5, seed=2))[0][:, 0].tolist()
    assert other_seed != passes[0][:5]
    assert set(next(nb.minibatches(data, 11, seed=1))[0][:, 0].tolist()) == set(range(11))


def test_the_schedule_the_optimizer_and_the_evaluations_are_as_given(nb):
    network = small(nb)
    history = fit(nb, network, steps=50, dev=OTHERS)
    rates = [0.1 * (1 - step / 50) for step in range(50)]
    assert history.learning_rate == pytest.approx(rates)
    assert [step for step, _ in history.dev] == list(range(2, 51, 2))
    assert history.dev[-1][1] == pytest.approx(network.loss(OTHERS), abs=1e-6)
    for steps, evaluated in ((45, [*range(2, 45, 2), 45]), (3, [1, 2, 3])):
        history = fit(nb, small(nb), steps=steps, dev=OTHERS)
        assert [step for step, _ in history.dev] == evaluated
    assert fit(nb, small(nb), steps=3).dev == []
    constant, momentum = small(nb), small(nb)
    history = fit(nb, constant, steps=4, schedule=lambda progress: 1, optimizer=lambda: nb.SGD(0))
    fit(nb, momentum, steps=4, schedule=lambda progress: 1)
    assert history.learning_rate == [0.1] * 4
    assert not torch.allclose(constant.parameters, momentum.parameters, atol=1e-3)


def test_a_watcher_sees_each_change_of_the_parameters_and_changes_nothing(nb):
    watched, seen = small(nb), []
    before = watched.parameters.clone()

    def watch(network, step, change):
        assert network is watched
        before.add_(change)
        assert torch.allclose(network.parameters, before, atol=1e-6)
        seen.append(step)

    fit(nb, watched, watch=watch, dev=OTHERS, stop=lambda: False)
    unwatched = small(nb)
    fit(nb, unwatched)
    assert seen == list(range(1, 61)) and torch.equal(watched.parameters, unwatched.parameters)


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_an_interrupt_inside_a_step_leaves_a_history_and_a_usable_network(nb, monkeypatch, method):
    network, calls, uninterrupted = small(nb), [], getattr(nb.Tanh, method)

    def interrupted(self, x):
        calls.append(1)
        if len(calls) == 22:
            raise KeyboardInterrupt
        return uninterrupted(self, x)

    monkeypatch.setattr(nb.Tanh, method, interrupted)
    history = fit(nb, network)
    assert history.stopped == "interrupted after 21 of 60 steps"
    assert len(history.loss) == len(history.learning_rate) == network.steps == 21
    assert in_inference_mode(network) and network.loss(NAMES) < math.log(27)
    assert not fit(nb, network).stopped, "training again after it"


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_advice(nb):
    network, untrained = small(nb, batch_norm=False), small(nb, batch_norm=False)
    history = fit(nb, network, learning_rate=1e37)
    assert 0 < len(history.loss) < 60 and all(map(math.isfinite, history.loss))
    for part in (f"stopped at step {len(history.loss)}", "learning rate", "try", "1e+36"):
        assert part in history.stopped, history.stopped
    assert in_inference_mode(network) and torch.equal(network.parameters, untrained.parameters)


def test_the_dials_are_read_when_training_starts_unless_given():
    own = definitions()
    own.globals |= {"LEARNING_RATE": 0.02, "BATCH_SIZE": 16}
    history = own.train(small(own), NAMES, steps=2, show=False)
    assert history.learning_rate == [0.02, 0.01]
    assert history.loss == fit(own, small(own), steps=2, batch_size=16, learning_rate=0.02).loss
    own.globals["BATCH_SIZE"] = 10**6
    for options, size in (({}, 10**6), ({"batch_size": 0}, 0)):
        with pytest.raises(ValueError, match=f"No batch of {size} can be had from"):
            own.train(small(own), NAMES, steps=2, show=False, **options)
    assert fit(own, small(own), steps=2, learning_rate=0).learning_rate == [0, 0]


def test_the_line_says_what_was_done_and_is_live_meanwhile(nb, monkeypatch):
    texts, clock = [], iter(range(10**6))

    class Handle:
        def update(self, data, raw):
            texts.append(data["text/plain"])

    monkeypatch.setitem(nb.globals, "display", lambda *_, **__: Handle())
    monkeypatch.setattr(nb.globals["time"], "perf_counter", lambda: next(clock))
    network = small(nb)
    fit(nb, network, steps=4, dev=OTHERS, show=True)
    assert "step 2 of 4, loss" in texts[1]
    assert texts[-1].startswith("4 steps of 32, rate 0.1: last training loss")
    assert f"dev loss {network.loss(OTHERS):.4f}" in texts[-1]
    stopped = small(nb)
    history = fit(nb, stopped, stop=lambda: len(stopped.history.loss) == 7, show=True)
    assert texts[-1].startswith("stopped after 7 of 60 steps: last training loss")
    assert len(history.loss) == stopped.steps == 7 and in_inference_mode(stopped)


WRONG = {
    "BATCH_SIZE": [-1, 1, 2.5],
    "CONTEXT_SIZE": [0],
    "EMBEDDING_DIM": ["10"],
    "HIDDEN_SIZE": [0],
    "STEPS": [-5],
    "SEED": [-1, True],
    "LEARNING_RATE": [0, math.nan, math.inf, "fast"],
    "DEVICE": ["toaster", None],
}


@pytest.mark.parametrize("setting", WRONG)
def test_a_wrong_setting_stops_with_its_name_and_what_to_do(setting):
    for value in WRONG[setting]:
        wrong = definitions(**{setting: value})
        for check in (wrong.check_settings, wrong.say_dials):
            with pytest.raises(ValueError, match=f"{setting} (must be|to 'cpu')"):
                check()


@pytest.mark.parametrize(("fast", "steps"), [(False, [5_000, 500]), (True, [50, 20])])
def test_the_least_setting_passes_and_a_changed_one_is_said(capsys, fast, steps):
    usual = definitions(FAST=fast)
    usual.say_dials()
    assert capsys.readouterr().out == ""
    assert [usual.budget(5_000), usual.budget(500)] == steps
    least = {"BATCH_SIZE": 2, "CONTEXT_SIZE": 1, "SEED": 0, "STEPS": 1, "LEARNING_RATE": 1e-9}
    definitions(FAST=fast, **least).say_dials("batches of 64")
    first, *changes = capsys.readouterr().out.splitlines()
    assert first == "Settings of this section: batches of 64." and len(changes) == len(least)
    for name, value in least.items():
        assert f"Changed: {name} is {value}, in the stored run {usual.USUAL[name]}." in changes
