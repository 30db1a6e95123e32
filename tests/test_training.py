"""The training loop: the ten lines, and the comfort around them; the settings."""

import math

import pytest
import torch
from notebook_code import definitions
from small import NAMES, OTHERS, fit, small


def resting(network):
    return not any(part.training for part in network.parts())


def test_training_brings_the_loss_down(nb):
    network = small(nb)
    before = network.loss(NAMES)
    history = fit(nb, network)
    assert abs(before - math.log(27)) < 0.3 and network.loss(NAMES) < 1.5
    assert history.loss[-1] < history.loss[0] - 1 and network.history is history
    assert len(history.loss) == len(history.learning_rate) == 60 and not history.stopped
    assert history.seconds > 0 and not history.stopped.startswith("interrupted")


def test_each_step_is_the_one_that_torch_takes_on_the_same_batch(nb):
    network, twin = small(nb), small(nb)
    optimizer = torch.optim.SGD([twin.parameters], lr=0.1, momentum=0.9, nesterov=True)
    batches, loss = nb.minibatches(twin.examples(NAMES), 32, 3), nb.CrossEntropy()
    run = nb.training(network, NAMES, 5, 0.1, 32, nb.linear_to_zero, nb.SGD(), 3)
    for step, (value, rate, direction) in enumerate(run):
        X, Y = next(batches)
        before = twin.parameters.clone()
        with nb.training_mode(twin):
            assert value == pytest.approx(loss.forward(twin.forward(X), Y).item())
            twin.backward(loss.backward())
        assert rate == pytest.approx(0.1 * (1 - step / 5))
        optimizer.param_groups[0]["lr"] = rate
        twin.parameters.grad = twin.gradient
        optimizer.step()
        assert torch.allclose(network.parameters, twin.parameters, atol=1e-6)
        assert torch.allclose(before - rate * direction, network.parameters, atol=1e-6)
        assert resting(network), "between two steps a network is in inference mode"
    assert step == 4


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(nb):
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed * 100)  # the global generator must play no part
        expected = torch.rand(3)
        torch.manual_seed(seed * 100)
        network = small(nb, seed=seed)
        runs.append((fit(nb, network).loss, network.parameters))
        assert torch.equal(torch.rand(3), expected), "the global generator was used"
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


def test_the_order_of_batches_comes_from_the_seed_of_the_config(nb):
    one, other = small(nb, seed=1), small(nb, seed=2).load(small(nb, seed=1).tensors())
    assert fit(nb, one).loss != fit(nb, other).loss
    bare = nb.Network(small(nb, seed=nb.SEED).layers, 3)
    assert fit(nb, bare).loss == fit(nb, small(nb, seed=nb.SEED)).loss, "no config: SEED"


def test_a_pass_of_minibatches_holds_each_example_once_in_a_new_order(nb):
    X = torch.arange(11)[:, None]
    batches = nb.minibatches((X, 2 * X[:, 0]), 5, seed=1)
    passes = []
    for _ in range(3):
        pairs = [next(batches), next(batches)]  # a short rest of one is left out
        assert all(len(Y) == 5 and torch.equal(2 * X[:, 0], Y) for X, Y in pairs)
        passes.append([i for X, _ in pairs for i in X[:, 0].tolist()])
        assert len(set(passes[-1])) == 10, "an example stands twice"
    assert passes[0] != passes[1] != passes[2]
    first = next(nb.minibatches((X, X[:, 0]), 5, seed=2))[1].tolist()
    assert first != passes[0][:5], "another seed, another order"
    whole = next(nb.minibatches((X, X[:, 0]), 11, seed=1))[1]
    assert sorted(whole.tolist()) == list(range(11))
    for size in (12, 0, -1):
        with pytest.raises(ValueError, match=f"No batch of {size} can be had from 11 examples"):
            next(nb.minibatches((X, X[:, 0]), size, seed=1))
    with pytest.raises(ValueError, match="No batch of 0 can be had"):
        fit(nb, small(nb), batch_size=0)  # not what the dial says
    network = small(nb)
    before = network.parameters.clone()
    fit(nb, network, steps=3, learning_rate=0)
    assert torch.equal(network.parameters, before), "a rate of 0 is 0"


def test_the_schedule_and_the_evaluations_on_dev_are_as_given(nb):
    network = small(nb)
    history = fit(nb, network, steps=50, dev=OTHERS)
    expected = [0.1 * (1 - step / 50) for step in range(50)]
    assert history.learning_rate == pytest.approx(expected)
    assert [step for step, _ in history.dev] == list(range(2, 51, 2))
    assert history.dev[-1][1] == pytest.approx(network.loss(OTHERS), abs=1e-6)
    assert history.dev[-1][1] > network.loss(NAMES) + 0.5
    uneven = fit(nb, small(nb), steps=45, dev=OTHERS)
    assert [step for step, _ in uneven.dev] == [*range(2, 45, 2), 45]
    short = fit(nb, small(nb), steps=3, dev=OTHERS)
    assert [step for step, _ in short.dev] == [1, 2, 3]
    assert fit(nb, small(nb), steps=3).dev == []
    constant = fit(nb, small(nb), steps=4, schedule=lambda progress: 1)
    assert constant.learning_rate == [0.1] * 4


def test_looking_at_dev_does_not_change_the_training(nb):
    quiet, watched = small(nb), small(nb)
    fit(nb, quiet)
    fit(nb, watched, dev=OTHERS, watch=lambda *_: None, stop=lambda: False)
    assert torch.equal(quiet.parameters, watched.parameters)


def test_a_watcher_is_told_each_true_change_of_the_parameters(nb):
    network, seen = small(nb), []
    before = [network.parameters.clone()]

    def watch(same, step, change):
        assert same is network
        assert torch.allclose(network.parameters - before[0], change, atol=1e-6)
        before[0] = network.parameters.clone()
        seen.append(step)

    fit(nb, network, watch=watch)
    assert seen == list(range(1, 61))


def test_a_stop_that_is_asked_for_ends_after_the_step(nb):
    network, asked = small(nb), []
    history = fit(nb, network, stop=lambda: asked.append(1) or len(asked) == 7)
    assert len(history.loss) == 7 and history.stopped == "stopped after 7 of 60 steps"
    assert not history.stopped.startswith("interrupted") and resting(network) and network.steps == 7


def test_an_interrupt_keeps_the_history_and_a_usable_network(nb):
    def interrupt(network, step, change):
        if step == 21:
            raise KeyboardInterrupt

    network = small(nb)
    history = fit(nb, network, watch=interrupt)
    assert len(history.loss) == len(history.learning_rate) == 21 == network.steps
    assert (
        history.stopped.startswith("interrupted")
        and "interrupted after 21 of 60" in history.stopped
    )
    assert resting(network) and network.loss(NAMES) < math.log(27)
    again = fit(nb, network)
    assert len(again.loss) == 60 and not again.stopped.startswith("interrupted"), (
        "training again after it"
    )


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_an_interrupt_inside_a_step_leaves_the_network_in_inference_mode(nb, monkeypatch, when):
    network, calls = small(nb), []
    right = getattr(nb.Tanh, when)

    def interrupted(self, x):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return right(self, x)

    monkeypatch.setattr(nb.Tanh, when, interrupted)
    history = fit(nb, network)
    assert (
        len(history.loss) == 19 and history.stopped.startswith("interrupted") and resting(network)
    )


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_advice(nb):
    network = small(nb, batch_norm=False)
    history = fit(nb, network, learning_rate=1e37)
    assert 0 < len(history.loss) < 60 and all(map(math.isfinite, history.loss))
    for part in (f"stopped at step {len(history.loss)}", "learning rate", "try", "1e+36"):
        assert part in history.stopped, history.stopped
    assert resting(network) and not history.stopped.startswith("interrupted")


def test_steps_and_seconds_add_up_over_two_runs(nb):
    network = small(nb)
    first, second = fit(nb, network, steps=5), fit(nb, network, OTHERS, steps=7, batch_size=8)
    assert network.steps == 12 and network.trained_on is OTHERS
    assert network.seconds == pytest.approx(first.seconds + second.seconds)
    assert network.history is second and nb.Model.steps == 0


def test_the_optimizer_that_is_given_is_used(nb):
    plain, usual = small(nb), small(nb)
    fit(nb, plain, steps=5, optimizer=lambda: nb.SGD(0.0))
    fit(nb, usual, steps=5)
    assert not torch.allclose(plain.parameters, usual.parameters, atol=1e-3)


def test_the_dials_are_read_when_training_starts_unless_given():
    own = definitions()
    network = small(own)
    own.globals |= {"LEARNING_RATE": 0.02, "BATCH_SIZE": 16}
    history = own.train(network, NAMES, steps=2, show=False)
    assert history.learning_rate == [0.02, 0.01]
    assert own.train(small(own), NAMES, steps=1, batch_size=32, show=False).loss != [
        history.loss[0]
    ]
    own.globals["BATCH_SIZE"] = 10**6
    with pytest.raises(ValueError, match="No batch of 1000000 can be had"):
        own.train(small(own), NAMES, steps=2, show=False)


def test_the_line_says_what_was_done_and_is_live_meanwhile(nb, monkeypatch):
    texts = []

    class Handle:
        def update(self, data, raw):
            texts.append(data["text/plain"])

    space = nb.globals
    monkeypatch.setitem(space, "display", lambda *_, **__: Handle())
    clock = iter(range(10**6))
    monkeypatch.setattr(space["time"], "perf_counter", lambda: next(clock))
    network = small(nb)
    fit(nb, network, steps=4, dev=OTHERS, show=True)
    assert "step 2 of 4, loss" in texts[1] and "s left" in texts[1]
    last = texts[-1]
    assert last.startswith("4 steps of 32, rate 0.1: training loss")
    assert f"dev loss {network.loss(OTHERS):.4f}" in last
    fit(nb, small(nb), steps=9, stop=lambda: True, show=True)
    assert texts[-1].startswith("stopped after 1 of 9 steps: training loss")


# Settings


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
        ("LEARNING_RATE", 0),
        ("LEARNING_RATE", float("nan")),
        ("LEARNING_RATE", float("inf")),
        ("LEARNING_RATE", "fast"),
        ("DEVICE", "toaster"),
        ("DEVICE", None),
    ],
)
def test_a_wrong_setting_stops_with_its_name_and_what_to_do(setting, value):
    wrong = definitions(**{setting: value})
    for check in (wrong.check_settings, wrong.say_dials):
        with pytest.raises(ValueError, match=setting) as error:
            check()
        assert "must be" in str(error.value) or "set DEVICE" in str(error.value)


@pytest.mark.parametrize("setting", ["BATCH_SIZE", "CONTEXT_SIZE", "SEED", "STEPS"])
def test_the_least_setting_passes(setting):
    least = {"BATCH_SIZE": 2, "SEED": 0}.get(setting, 1)
    definitions(**{setting: least}).check_settings()


def test_what_has_been_changed_is_said_and_nothing_else(capsys):
    definitions().say_dials()
    assert capsys.readouterr().out == ""
    definitions(HIDDEN_SIZE=60, LEARNING_RATE=0.3).say_dials("batches of 64")
    own, hidden, rate = capsys.readouterr().out.splitlines()
    assert "batches of 64" in own and "Settings of this section" in own
    assert "HIDDEN_SIZE is 60" in hidden and "200" in hidden
    assert "LEARNING_RATE is 0.3" in rate and "0.1" in rate


def test_the_usual_dials_are_those_of_the_settings_cell():
    for fast in (False, True):
        own = definitions(FAST=fast)
        assert all(getattr(own, name) == value for name, value in own.USUAL.items())


def test_fast_mode_takes_a_hundredth_of_the_steps():
    assert definitions(FAST=True).budget(5_000) == 50
    assert definitions(FAST=True).budget(500) == 20
    assert definitions(FAST=False).budget(5_000) == 5_000
