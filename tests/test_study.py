"""Part II: intervals, pairing, the measures of the study, the rows that it leaves."""

import math

import pytest
import torch
from notebook_code import definitions
from small import fit, small

from charlm_utils import build_dataset


def student_within(t, degrees):
    """P(|T| < t) for Student's t, by integrating its density (Simpson's rule)."""
    scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    n = 20_000
    xs = [t * i / n for i in range(n + 1)]
    density = [scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2) for x in xs]
    weights = [1, *([4, 2] * (n // 2 - 1)), 4, 1]
    return 2 * sum(w * d for w, d in zip(weights, density)) * t / n / 3


def test_the_table_of_students_t_holds_95_percent(nb):
    assert list(nb.T_975) == list(range(1, 10))
    for degrees, t in nb.T_975.items():
        assert student_within(t, degrees) == pytest.approx(0.95, abs=2e-4), degrees


def test_an_interval_is_the_closed_form(nb):
    assert nb.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / math.sqrt(3)))
    mean, half = nb.interval([5.0, 7.0])
    assert (mean, half) == pytest.approx((6.0, 12.706))  # s = sqrt 2, n = 2: t s / sqrt n = t
    assert nb.interval([4.0] * 5) == (4.0, 0.0)
    assert nb.plus_minus([1.0, 2.0, 3.0], 1) == "2.0 ± 2.5"


def test_an_interval_covers_the_truth_in_95_of_100_draws(nb, generator):
    draws = torch.randn(2_000, 5, generator=generator).tolist()
    covered = sum(abs(mean) <= half for mean, half in map(nb.interval, draws))
    assert 0.935 < covered / 2_000 < 0.965


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 11])
def test_an_interval_of_too_few_or_too_many_values_is_refused(nb, values):
    with pytest.raises(ValueError, match="2 to 10 values"):
        nb.interval(values)


def test_roughness_is_the_deviation_of_noise_and_blind_to_a_slow_slope(nb, generator):
    noise = 0.3 * torch.randn(20_000, generator=generator)
    slope = torch.linspace(3, 2, 20_000)
    assert nb.roughness(noise.tolist()) == pytest.approx(0.3, rel=0.02)
    assert nb.roughness((noise + slope).tolist()) == pytest.approx(0.3, rel=0.02)
    assert nb.roughness(slope.tolist()) < 1e-4 and nb.roughness([2.0] * 100) == 0


def test_roughness_sees_a_spike_but_not_in_the_first_tenth(nb):
    flat = [2.0] * 1_001
    late, early = list(flat), list(flat)
    late[500], early[50] = 12.0, 12.0
    # 900 differences after the first 100 steps, two of them of size 10
    assert nb.roughness(late) == pytest.approx(math.sqrt(2 * 100 / 900 / 2))
    assert nb.roughness(early) == 0


def test_the_level_is_reached_at_the_first_dev_point_at_or_below_it(nb):
    history = nb.History(dev=[(10, 3.0), (20, 2.5), (30, 2.6), (40, 2.4)])
    assert nb.steps_to(2.5, history) == 20 and nb.steps_to(2.0, history) is None


@pytest.mark.parametrize("init", ["naive", "gain 5/3"])
def test_the_two_nets_of_a_pair_start_from_the_same_weights(nb, init):
    plain, normed = (small(nb, batch_norm=flag, hidden_sizes=(8, 8), seed=4) for flag in (0, 1))
    ours, theirs = (
        [getattr(layer, name) for layer, name in net.named if name in ("C", "W")]
        for net in (plain, normed)
    )
    assert len(ours) == len(theirs) == 4
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_the_two_nets_of_a_pair_see_the_same_batches(nb, data, monkeypatch):
    seen = []
    forward = nb.Embedding.forward
    monkeypatch.setattr(
        nb.Embedding, "forward", lambda s, x: (seen.append(x.clone()), forward(s, x))[1]
    )
    for flag in (False, True):
        fit(nb, small(nb, batch_norm=flag), data, steps=30, seed=9)
    assert len(seen) == 60
    assert all(torch.equal(a, b) for a, b in zip(seen[:30], seen[30:]))


def test_pairs_are_matched_by_seed_and_signed_with_minus_without(nb):
    plain, normed = (
        [{"seed": s, "dev": 3.0 + s} for s in (0, 1)],
        [{"seed": s, "dev": 2.5} for s in (0, 1)],
    )
    assert nb.paired(plain, normed, "dev") == [-0.5, -1.5]
    with pytest.raises(AssertionError):
        nb.paired(plain, normed[::-1], "dev")


def test_a_saved_state_brings_the_same_logits_back(nb, data):
    trained, fresh = small(nb), small(nb, seed=2)
    fit(nb, trained, data)
    state = trained.state()
    fresh.load(state)
    with trained.inference(), fresh.inference():
        assert torch.equal(trained.forward(data[0]), fresh.forward(data[0]))
    fit(nb, trained, data)  # the state is a copy: training on does not change it
    assert torch.equal(state[0], fresh.parameters)
    with pytest.raises((RuntimeError, ValueError)):
        small(nb, hidden_sizes=(5,)).load(state)


def test_the_quality_of_names_is_measured_by_the_given_list_and_the_5_gram(nb):
    own = definitions(
        known={"emma"},
        real={"mia"},
        fivegram=lambda X: torch.full((len(X), 27), 1 / 27),
        dataset=lambda names, size: build_dataset(names, nb.vocab, size),
    )
    share, surprise = own.names_quality(["emma", "mia", "zzz", "zzz"])
    assert share == 0.5 and surprise == pytest.approx(math.log(27))


def test_the_spread_of_vowels_is_one_for_letters_alike_and_small_for_a_cluster(nb):
    own = definitions(vowels=[1, 5, 9, 15, 21, 25])
    assert own.vowel_spread(torch.eye(27)) == pytest.approx(1.0)
    C = torch.eye(27)
    C[own.vowels] = torch.eye(27)[1]
    assert own.vowel_spread(C) == pytest.approx(0.0, abs=1e-6)
    line = torch.arange(27.0)[:, None] ** 2
    assert own.nearest_letters(line).tolist()[:3] == [1, 0, 1]
