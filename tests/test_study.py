"""The runner of the studies, their statistics and measures, and the drawing of means."""

import functools
import math
import os
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from notebook_code import definitions
from small import NAMES, OTHERS

SIZES = {"hidden_sizes": (6,), "context_size": 2, "embedding_dim": 3}
COMMON = {"steps": 8, "batch_size": 16, "learning_rate": 0.1, **SIZES}


def student_within(t, degrees, n=4_000):
    """P(|T| <= t) by Simpson's rule."""
    constant = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2)
    constant /= math.sqrt(degrees * math.pi)
    density = lambda x: constant * (1 + x * x / degrees) ** (-(degrees + 1) / 2)  # noqa: E731
    weights = [1, *([4, 2] * (n // 2 - 1)), 4, 1]
    return 2 * sum(w * density(t * i / n) for i, w in enumerate(weights)) * t / n / 3


def test_the_table_of_students_t_holds_95_percent(nb):
    assert list(nb.T_975) == list(range(1, 10))
    for degrees, t in nb.T_975.items():
        assert student_within(t, degrees) == pytest.approx(0.95, abs=2e-4), degrees


def test_an_interval_is_the_closed_form(nb, generator):
    assert nb.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / math.sqrt(3)))
    assert nb.interval([5.0, 7.0]) == pytest.approx((6.0, 12.706))  # s = sqrt 2, n = 2
    assert nb.interval([4.0] * 5) == (4.0, 0.0)
    assert nb.plus_minus([1.0, 2.0, 3.0], 1) == "2.0 ± 2.5"
    assert nb.plus_minus([1.0, 2.0, 3.0]) == "2.000 ± 2.484"
    draws = torch.randn(2_000, 5, generator=generator).tolist()
    covered = sum(abs(mean) <= half for mean, half in map(nb.interval, draws))
    assert 0.935 < covered / 2_000 < 0.965


def test_p_values_are_those_of_students_distribution(nb):
    for values in ([1.0, 1.2, 0.7, 1.1, 0.9], [0.3, -0.2, 0.1], [2.0, 1.0]):
        mean, half = nb.interval(values)
        t, degrees = abs(mean) / half * nb.T_975[len(values) - 1], len(values) - 1
        assert nb.p_value(values) == pytest.approx(1 - student_within(t, degrees), abs=2e-4)
        assert (nb.p_value(values) < 0.05) == (abs(mean) > half)
    assert nb.p_value([2.0] * 3) == 0 and nb.p_value([0.0] * 3) == 1


def test_holm_stops_at_the_first_p_value_that_is_too_large(nb):
    own = definitions()
    own.globals["p_value"] = lambda values: values
    assert own.holm([0.04, 0.001, 0.02]) == [True, True, True]
    assert own.holm([0.04, 0.001, 0.03]) == [False, True, False], "0.03 > 0.05 / 2: stop"
    assert own.holm([0.02, 0.04, 0.03]) == [False] * 3 and own.holm([]) == []
    # three comparisons: one stands alone, not as one of three
    weak, strong = [0.10, 0.11, 0.02], [1.0, 1.1, 1.2]
    assert 0.05 / 3 < nb.p_value([1.0, 1.4, 1.9]) < 0.05
    texts = nb.verdict_table({"a": [1.0, 1.4, 1.9], "b": weak, "c": "failed", "d": weak})
    assert texts["a"] == nb.plus_minus([1.0, 1.4, 1.9]) and texts["c"] == "failed"
    assert nb.verdict_table({"x": strong}, 1) == {"x": "**1.1 ± 0.2**"}


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 11])
def test_an_interval_of_too_few_or_too_many_values_is_refused(nb, values):
    with pytest.raises(ValueError, match="2 to 10 values"):
        nb.interval(values)


def rows(nb):
    cases = [("a", 0, 3.0), ("a", 1, 4.0), ("b", 0, 2.5), ("b", 1, 2.0)]
    return nb.Runs({"kind": k, "seed": s, "dev": d, "sizes": (1, 2)} for k, s, d in cases)


def test_runs_are_chosen_by_their_settings_and_paired_by_seed(nb):
    runs = rows(nb)
    a, b = runs.where(kind="a"), runs.where(kind="b", sizes=(1, 2))
    assert a.column("dev") == [3.0, 4.0] and b.column("seed") == [0, 1] and len(runs) == 4
    assert runs.where(kind="c") == [] and runs.where(kind="a", seed=1).mean("dev") == 4.0
    assert a.mean("dev") == 3.5 and nb.minus(b, a, "dev") == [-0.5, -2.0]
    with pytest.raises(ValueError, match="same seeds"):
        nb.minus(a, nb.Runs(b[::-1]), "dev")
    assert nb.grid(a=[1, 2], b=["x"]) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]


def test_a_study_trains_a_network_for_each_condition_and_seed():
    nb, seen = definitions(PROCESSES=1), []

    def measure(network):
        seen.append(network)
        return {"last": network.history.loss[-1]}

    conditions = nb.grid(batch_norm=[True, False], learning_rate=[0.1, 0.3], label=["x"])
    runs = nb.study(conditions, measure, seeds=range(2), **COMMON)
    assert len(runs) == 8 == len(seen) and nb.study.finished is runs
    keys = {"batch_norm", "learning_rate", "label", "seed", "size", "dev", "seconds"}
    for row, trained in zip(runs, seen, strict=True):
        network = row["network"]
        assert torch.equal(network.parameters, trained.parameters)
        assert network.steps == 8 and network.seconds == row["seconds"] > 0
        assert set(row) == keys | {"history", "last", "network"}
        config = network.config
        assert (config.batch_norm, config.seed) == (row["batch_norm"], row["seed"])
        assert (config.hidden_sizes, config.context_size) == ((6,), 2)
        assert network.history.learning_rate[0] == row["learning_rate"]
        assert len(network.history.loss) == 8 and row["size"] == network.size
        assert row["dev"] == network.loss(OTHERS) and network.trained_on is NAMES
        assert row["history"] is network.history and row["last"] == row["history"].loss[-1]
    again = nb.study(conditions, measure, seeds=range(2), **COMMON)
    assert again.column("dev") == runs.column("dev"), "equal conditions, equal rows"
    assert len(set(runs.column("dev"))) == 8, "seeds and settings make a difference"


def test_runs_side_by_side_give_the_rows_of_runs_in_turn_in_their_order():
    both = []
    for processes in (1, 3):
        nb = definitions(PROCESSES=processes)
        measure = lambda network: {"C": network.find("embedding")[0].C}  # noqa: E731
        conditions = nb.grid(dropout=[0.0, 0.1])
        own = {"config": nb.DropoutConfig, **COMMON}
        both.append(nb.study(conditions, measure, seeds=range(3), **own))
    for one, other in zip(*both, strict=True):
        assert (one["dropout"], one["seed"], one["dev"]) == tuple(
            other[key] for key in ("dropout", "seed", "dev")
        )
        assert torch.equal(one["C"], other["C"])
        assert torch.equal(one["network"].parameters, other["network"].parameters)
        assert one["history"].loss == other["history"].loss
        other["network"].forward(torch.zeros(2, 2, dtype=torch.int64))  # a whole network


@pytest.mark.skipif(sys.platform != "linux", reason="runs take turns where nothing is forked")
def test_a_fault_in_a_process_is_raised_at_home():
    nb = definitions(PROCESSES=2)

    def fails():
        raise ValueError("batch of one")

    with pytest.raises(ValueError, match="batch of one"):
        list(nb.side_by_side([fails, lambda: 1, lambda: 2]))
    with pytest.raises(BrokenProcessPool):
        list(nb.side_by_side([lambda: os._exit(1)] * 3))
    jobs = [lambda n=n: (os.getpid(), n * n) for n in range(9)]
    results = dict(nb.side_by_side(jobs))
    assert [results[n][1] for n in range(9)] == [n * n for n in range(9)]
    assert os.getpid() not in {process for process, _ in results.values()}
    nb.globals["DEVICE"] = "cuda"
    assert {process for _, (process, _) in nb.side_by_side(jobs)} == {os.getpid()}


def test_a_finished_network_comes_home_whole():
    nb = definitions(PROCESSES=2, FAST=True)
    nb.globals["pretrained"] = nb.DeepConfig(**nb.BASE).make()
    jobs = [functools.partial(nb.finish, names) for names in (NAMES, OTHERS)]
    for network in (sent.to("cpu") for sent in nb.in_order(jobs)):
        nb.train(network, NAMES, steps=2, batch_size=8, show=False)
        again = network.config.make().load(network.tensors())
        assert torch.equal(again.surprisals(OTHERS), network.surprisals(OTHERS))


def test_the_partners_of_a_pair_share_initial_weights_and_batches(monkeypatch):
    nb = definitions(PROCESSES=1)
    batches, right = [], nb.Embedding.forward

    def forward(self, x):
        if self.training:
            batches.append((self.C.clone() if len(batches) % 8 == 0 else None, x.clone()))
        return right(self, x)

    monkeypatch.setattr(nb.Embedding, "forward", forward)
    nb.study(nb.grid(batch_norm=[True, False]), seeds=[3], **COMMON)
    assert len(batches) == 16 and torch.equal(batches[0][0], batches[8][0])
    assert all(torch.equal(a[1], b[1]) for a, b in zip(batches[:8], batches[8:]))


def test_names_and_other_configs_can_be_studied_too(nb):
    short = [{"data": "few", "names": NAMES[:9], "batch_size": 8}]
    (row,) = nb.study(short, seeds=[1], **{k: v for k, v in COMMON.items() if k != "batch_size"})
    assert "names" not in row and row["data"] == "few" and row["batch_size"] == 8
    kind = {"config": nb.TransformerConfig, "heads": 2, "context_size": 9}
    conditions = [{**kind, "dim": 4, "seeds": [7]}, {"context_size": 2}]
    runs = nb.study(conditions, seeds=[1, 2], steps=2, batch_size=4)
    assert runs.column("seed") == [7, 1, 2] and "config" not in runs[0]
    assert [type(row["network"].config) for row in runs] == [kind["config"], nb.Config, nb.Config]


def test_an_interrupt_ends_the_study_and_keeps_the_finished_runs_only():
    nb = definitions(PROCESSES=1)

    def interrupt(network, step, change):
        if network.config.seed == 2 and step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nb.study([{}], seeds=range(4), watch=interrupt, **COMMON)
    assert nb.study.finished.column("seed") == [0, 1]
    assert all(len(row["history"].loss) == 8 for row in nb.study.finished)


def test_a_power_law_is_fitted_on_logarithmic_axes(nb):
    x = [1_000, 2_000, 4_000, 8_000]
    assert nb.power_law(x, [3 * n**-0.05 for n in x]) == pytest.approx((3, 0.05))
    a, b = nb.power_law([1, 2, 4], [4.0, 1.0, 1.0])  # slopes of -2 and 0: -1 on the whole
    assert b == pytest.approx(1) and a == pytest.approx((4 * 2 * 4) ** (1 / 3))


def test_the_level_is_reached_at_the_first_look_at_or_below_it(nb):
    history = nb.History(dev=[(10, 3.0), (20, 2.5), (30, 2.6), (40, 2.4)])
    assert nb.steps_to(2.5, history) == 20 and nb.steps_to(2.0, history) is None
    reached = nb.Runs([{"reached": 20}, {"reached": 41}])
    assert nb.when_reached(reached) == "30" or nb.when_reached(reached) == "31"
    assert nb.when_reached(nb.Runs([{"reached": 20}, {"reached": None}])) == "never"


def test_a_network_that_is_too_sure_is_overconfident(nb):
    network = nb.Config(**SIZES).make()
    network.history = nb.History()
    calm = nb.bn_measures(network)["overconfidence"]
    network.find("linear")[-1].W.mul_(300)  # far surer, and no better
    assert abs(calm) < 0.1 and nb.bn_measures(network)["overconfidence"] > 1


def test_vowels_explain_the_largest_direction_or_nothing(nb, generator):
    C = 0.01 * torch.randn(27, 3, generator=generator)
    C[[1, 5, 9, 15, 21, 25], 2] += 1.0
    assert nb.vowels_explain(C) > 0.99
    C[:13, 0] += 9.0  # half of the letters, and half of the vowels, far away
    assert nb.vowels_explain(C) < 0.1
    assert nb.vowels_explain(C - 5.0) == pytest.approx(nb.vowels_explain(C), abs=1e-4)


def test_pairs_with_failed_runs_say_how_many_failed(nb):
    good = nb.Runs({"seed": s, "dev": 2.0 + s / 10, "real": 1.0} for s in range(3))
    losses = enumerate((2, 9, math.nan))
    bad = nb.Runs({"seed": s, "dev": dev, "real": 1.0} for s, dev in losses)
    assert nb.paired(good, good, "real") == [0.0] * 3
    assert nb.paired(good, bad, "dev") == "failed: 2 without, 0 with"
    assert nb.paired(bad, good, "real") == "failed: 0 without, 2 with"


def test_the_best_rate_is_that_of_the_lowest_mean(nb):
    losses = {0.1: (2.0, 2.2), 0.3: (1.9, 2.1), 1.0: (1.0, 9.0)}
    runs = nb.Runs({"learning_rate": r, "dev": d} for r, some in losses.items() for d in some)
    assert nb.best_rate(runs).column("learning_rate") == [0.3, 0.3]


def test_the_letters_through_the_weights_are_laid_side_by_side_for_each_place(nb):
    network = nb.Config(**SIZES).make()
    C, W = network.find("embedding")[0].C, network.find("linear")[0].W
    table = nb.through_weights(network)
    assert table.shape == (27, 2 * 6)
    x = torch.tensor([[5, 13]])  # e, then m: their parts add up to what the hidden units get
    assert torch.allclose(table[5, :6] + table[13, 6:], C[x[0]].flatten() @ W, atol=1e-6)


def test_a_picture_is_shown_once_with_its_finding_as_alternative_text():
    own, shown = definitions(), []

    own.globals["display"] = lambda fig, **options: shown.append((fig, options))
    with own.picture("A finding", "x", "y", columns=2) as axes:
        for ax in axes:
            ax.plot([1, 2], label="twice the same")
    ((fig, options),) = shown
    alt = {"alt": "A finding"}
    assert options == {"metadata": {"image/png": alt, "image/svg+xml": alt}}
    assert [len(ax.get_legend_handles_labels()[1]) for ax in fig.axes] == [1, 1]
    assert [ax.get_legend() is None for ax in fig.axes] == [False, True], "each legend once"
    with pytest.raises(KeyError), own.picture("Broken"):
        raise KeyError
    assert len(shown) == 1 and not own.plt.get_fignums()


def test_a_table_of_differences_shows_each_beside_its_base(nb, monkeypatch):
    shown = {}
    monkeypatch.setitem(nb.globals, "table", lambda header, rows: shown.update({header: rows}))
    rows = lambda *devs: nb.Runs({"seed": i, "dev": v} for i, v in enumerate(devs))  # noqa: E731
    groups = {"as it is": rows(2.0, 2.2), "other": rows(2.5, 2.7)}
    gains = nb.differences(groups, "as it is", "dial")
    assert list(gains) == ["other"] and gains["other"] == pytest.approx([0.5, 0.5])
    (lines,) = shown.values()
    assert list(shown) == ["dial | dev loss | minus as it is"]
    assert [line[0] for line in lines] == list(groups) and lines[0][2] == "0"
    assert lines[0][1].startswith("2.1000 ±") and lines[1][2] == "**0.500 ± 0.000**"
