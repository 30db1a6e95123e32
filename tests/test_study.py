"""The runner of the studies, their statistics and measures, and the drawing of means."""

import math

import pytest
import torch
from notebook_code import definitions
from small import NAMES, OTHERS

COMMON = {"steps": 8, "batch_size": 16, "learning_rate": 0.1, "hidden_sizes": (6,)}
COMMON |= {"context_size": 2, "embedding_dim": 3}


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
    assert nb.bold_if_measurable([1.0, 1.1, 1.2]).startswith("**1.100 ± ")
    assert nb.bold_if_measurable([-1.0, 1.1, 1.2], 1) == "0.4 ± 3.1"


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
    assert nb.average([1, 3], lambda n: n) == 2
    assert nb.average([1, 3], lambda n: n if n == 1 else None) is None


def test_a_study_trains_a_network_for_each_condition_and_seed(nb):
    seen = []

    def measure(network):
        seen.append(network)
        return {"last": network.history.loss[-1]}

    conditions = nb.grid(batch_norm=[True, False], learning_rate=[0.1, 0.3], label=["x"])
    runs = nb.study(conditions, measure, seeds=range(2), **COMMON)
    assert len(runs) == 8 == len(seen) and nb.study.finished is runs
    keys = {"batch_norm", "learning_rate", "label", "seed", "size", "dev", "seconds"}
    for row, network in zip(runs, seen, strict=True):
        assert set(row) == keys | {"history", "last"}
        recipe = network.recipe
        assert (recipe.batch_norm, recipe.seed) == (row["batch_norm"], row["seed"])
        assert (recipe.hidden_sizes, recipe.context_size) == ((6,), 2)
        assert network.history.learning_rate[0] == row["learning_rate"]
        assert len(network.history.loss) == 8 and row["size"] == network.size
        assert row["dev"] == network.loss(OTHERS) and network.trained_on is NAMES
        assert row["history"] is network.history and row["last"] == row["history"].loss[-1]
    again = nb.study(conditions, measure, seeds=range(2), **COMMON)
    assert again.column("dev") == runs.column("dev"), "equal conditions, equal rows"
    assert len(set(runs.column("dev"))) == 8, "seeds and settings make a difference"


def test_the_partners_of_a_pair_share_initial_weights_and_batches(nb, monkeypatch):
    batches, right = [], nb.Embedding.forward

    def forward(self, x):
        if self.training:
            batches.append((self.C.clone() if len(batches) % 8 == 0 else None, x.clone()))
        return right(self, x)

    monkeypatch.setattr(nb.Embedding, "forward", forward)
    nb.study(nb.grid(batch_norm=[True, False]), seeds=[3], **COMMON)
    assert len(batches) == 16 and torch.equal(batches[0][0], batches[8][0])
    assert all(torch.equal(a[1], b[1]) for a, b in zip(batches[:8], batches[8:]))


def test_names_and_other_recipes_can_be_studied_too(nb):
    short = [{"data": "few", "names": NAMES[:9], "batch_size": 8}]
    (row,) = nb.study(short, seeds=[1], **{k: v for k, v in COMMON.items() if k != "batch_size"})
    assert "names" not in row and row["data"] == "few" and row["batch_size"] == 8
    kind = {"recipe": nb.TransformerRecipe, "heads": 2, "context_size": 9}
    runs = nb.study(nb.grid(dim=[4, 8]), seeds=[1], steps=2, batch_size=4, **kind)
    assert runs.column("dim") == [4, 8] and runs[0]["size"] < runs[1]["size"]


def test_an_interrupt_ends_the_study_and_keeps_the_finished_runs_only(nb):
    def interrupt(network, step, change):
        if network.recipe.seed == 2 and step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nb.study([{}], seeds=range(4), watch=interrupt, **COMMON)
    assert nb.study.finished.column("seed") == [0, 1]
    assert all(len(row["history"].loss) == 8 for row in nb.study.finished)


def test_a_power_law_is_found_with_its_interval(nb, generator):
    x = [1_000, 2_000, 4_000, 8_000]
    assert nb.power_law(x, [3 * n**-0.05 for n in x]) == pytest.approx((3, 0.05, 0), abs=1e-9)
    noise = torch.randn(4, generator=generator).tolist()
    y = [3 * n**-0.05 * math.exp(0.01 * e) for n, e in zip(x, noise)]
    u, v = (torch.tensor(n, dtype=torch.float64).log() for n in (x, y))
    A = torch.stack([torch.ones(4).double(), u], 1)
    solution = torch.linalg.lstsq(A, v[:, None]).solution[:, 0]
    rest = (v - A @ solution).square().sum() / 2
    error = (rest / (u - u.mean()).square().sum()).sqrt()
    expected = solution[0].exp().item(), -solution[1].item(), 4.303 * error.item()
    assert nb.power_law(x, y) == pytest.approx(expected, rel=1e-6)
    for bad in ([1, 2], [1, -2, 3]):
        with pytest.raises(ValueError, match="3 to 11 points, all positive"):
            nb.power_law(bad, bad)


def test_roughness_is_the_deviation_of_noise_and_blind_to_a_slow_slope(nb, generator):
    noise = 0.3 * torch.randn(20_000, generator=generator)
    slope = torch.linspace(3, 2, 20_000)
    assert nb.roughness(noise.tolist()) == pytest.approx(0.3, rel=0.02)
    assert nb.roughness((noise + slope).tolist()) == pytest.approx(0.3, rel=0.02)
    assert nb.roughness(slope.tolist()) < 1e-4 and nb.roughness([2.0] * 100) == 0
    late, early = [2.0] * 1_001, [2.0] * 1_001
    late[500], early[50] = 12.0, 12.0  # 900 differences count, two of them of size 10
    assert nb.roughness(late) == pytest.approx(math.sqrt(2 * 100 / 900 / 2))
    assert nb.roughness(early) == 0, "the first tenth does not count"


def test_the_level_is_reached_at_the_first_look_at_or_below_it(nb):
    history = nb.History(dev=[(10, 3.0), (20, 2.5), (30, 2.6), (40, 2.4)])
    assert nb.steps_to(2.5, history) == 20 and nb.steps_to(2.0, history) is None
    reached = nb.Runs([{"reached": 20}, {"reached": 41}])
    assert nb.when_reached(reached) == "30" or nb.when_reached(reached) == "31"
    assert nb.when_reached(nb.Runs([{"reached": 20}, {"reached": None}])) == "never"


def test_names_are_measured_by_the_lists_and_the_5_gram(nb):
    own = definitions(known={"emma"}, real={"mia"}, fivegram=nb.Model())
    share, surprise = own.names_quality(["emma", "mia", "zzz", "zzz"])
    assert share == 0.5 and surprise == pytest.approx(math.log(27))


def test_vowels_are_as_spread_as_all_letters_or_a_cluster(nb):
    assert nb.vowel_spread(torch.eye(27)) == pytest.approx(1.0)
    C = torch.eye(27)
    C[[1, 5, 9, 15, 21, 25]] = torch.eye(27)[1]
    assert nb.vowel_spread(C) == pytest.approx(0.0, abs=1e-3)
    line = torch.arange(27.0)[:, None] ** 2
    assert nb.nearest_letters(line).tolist()[:3] == [1, 0, 1]
    assert nb.agreement([line, line]) == "100% (100% to 100%)"


def test_means_are_drawn_with_their_intervals_and_an_arrow_beyond_the_frame(nb):
    ax = nb.matplotlib.figure.Figure().subplots()
    nb.plot_means(ax, [1, 2], [[1.0, 3.0], [9.0, 9.0]], "label", "C0", top=5.0)
    (line,), (band,) = ax.lines, ax.collections
    assert line.get_ydata().tolist() == [2.0, 9.0] and line.get_label() == "label"
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.max() == pytest.approx(2 + 12.706) and edges.min() == pytest.approx(2 - 12.706)
    (note,) = ax.texts
    assert "9" in note.get_text() and note.xy == (2, 5.0)


def test_differences_of_curves_are_taken_pair_by_pair(nb):
    flat = [nb.History(loss=[float(n)] * 100) for n in (3, 5, 1, 2)]
    runs = nb.Runs({"history": history} for history in flat)
    steps, samples = nb.curve_differences(nb.Runs(runs[:2]), nb.Runs(runs[2:]), 50, 10)
    assert steps.tolist() == [25, 35, 45, 55, 65, 75] and samples == [[2.0, 3.0]] * 6
