"""The notebook's count models against dictionaries and loops; its sampling statistics."""

import math
from collections import Counter, defaultdict

import pytest
import torch
from notebook_code import definitions
from small import small

from charlm_utils import build_dataset

NAMES = ["emma", "ava", "anna", "hannah", "mia", "maria", "ada", "emma", "ana"]


@pytest.fixture
def data(nb):
    return build_dataset(NAMES, nb.vocab, 3)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_count_table_counts_as_a_dictionary_does(nb, data, length):
    X, Y = data
    counts = defaultdict(Counter)
    for context, target in zip(X.tolist(), Y.tolist()):
        counts[tuple(context[3 - length :])][target] += 1
    table = nb.CountTable(X, Y, length)
    unseen = torch.tensor([[26, 26, 26]])
    for context, row in zip(X.tolist() + unseen.tolist(), table(torch.cat([X, unseen]))):
        expected = counts[tuple(context[3 - length :])]
        assert row.tolist() == [expected[i] for i in range(27)]


def test_add_alpha_gives_a_distribution_for_seen_and_unseen_contexts(nb, data):
    X = torch.cat([data[0], torch.tensor([[26, 26, 26]])])
    p = nb.add_alpha(nb.CountTable(*data, 3), 0.1)(X)
    assert torch.allclose(p.sum(1), torch.ones(len(X))) and (p > 0).all()
    assert torch.allclose(p[-1], torch.full((27,), 1 / 27))
    counts = nb.CountTable(*data, 3)(X[:1])[0]
    assert torch.allclose(p[0], (counts + 0.1) / (counts.sum() + 2.7))


def kneser_ney_by_hand(X, Y, context, discounts):
    """p(. | context), straight from the formula, with dictionaries."""
    longest = X.shape[1]
    p = [1 / 27] * 27
    for length in range(longest + 1):
        rows = [(*x, y) for x, y in zip(X.tolist(), Y.tolist())]
        if length < longest:  # different contexts one character longer
            rows = {row[longest - length - 1 :] for row in rows}
        h = tuple(context[longest - length :])
        counts = Counter(row[-1] for row in rows if tuple(row[-1 - length : -1]) == h)
        total = sum(counts.values())
        if total:
            taken = {c: discounts[length][min(n, 3)] for c, n in counts.items()}
            saved = sum(taken.values()) / total
            p = [(counts[c] - taken.get(c, 0)) / total + saved * p[c] for c in range(27)]
    return torch.tensor(p)


def test_kneser_ney_is_its_formula(nb, data):
    X, Y = data
    model = nb.KneserNey(X, Y)
    discounts = [d.tolist() for d in model.discounts]
    contexts = torch.cat([X[::3], torch.tensor([[26, 26, 26], [26, 26, 1], [26, 13, 1]])])
    p = model(contexts)
    assert torch.allclose(p.sum(1), torch.ones(len(contexts)), atol=1e-5) and (p > 0).all()
    for context, row in zip(contexts.tolist(), p):
        expected = kneser_ney_by_hand(X, Y, context, discounts)
        assert torch.allclose(row, expected, atol=1e-6), f"at {context}"


def test_kneser_ney_discounts_are_estimated_from_counts_of_counts(nb):
    counts = torch.tensor([1] * 8 + [2] * 4 + [3] * 2 + [4] * 1 + [9] * 5)
    y = 8 / (8 + 2 * 4)
    expected = [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2]
    assert nb.KneserNey.discount(counts).tolist() == pytest.approx(expected)


def test_cross_entropy_of_uniform_is_ln_27(nb, data):
    loss = nb.cross_entropy_of(lambda X: torch.full((len(X), 27), 1 / 27), data)
    assert loss == pytest.approx(math.log(27))


def test_quality_counts_new_real_and_repeated_names(nb):
    new, real, count, repeats = nb.quality(["emma", "mia", "mia", "zzz"])
    assert new == "66.7%"  # of emma, mia, zzz only emma was in training
    assert real.startswith("50.0% ± ")  # of mia and zzz, mia is real
    assert count == "1" and repeats == "25.0%"


def test_samples_from_a_network_come_through_the_helper_in_inference_mode(nb):
    network = nb.make_mlp("gain 5/3", batch_norm=True, hidden_sizes=(8,))
    before = network.layers[2].running_mean.clone()
    names = nb.sample(network, 20, prefix="ab", max_length=6)
    assert len(names) == 20 and all(n.startswith("ab") and len(n) <= 6 for n in names)
    assert names == nb.sample(network, 20, prefix="ab", max_length=6)
    assert torch.equal(network.layers[2].running_mean, before)
    assert all(layer.training for layer in network.layers)


def test_smoothing_is_a_moving_mean(nb):
    assert nb.smooth([1.0, 2.0, 3.0, 6.0], 2).tolist() == pytest.approx([1.5, 2.5, 4.5])
    assert nb.smooth([1.0, 3.0], 10).tolist() == pytest.approx([2.0])


def test_scores_have_the_agreed_keys(nb):
    row = nb.score("x", 1, 2, 3.0, 4.0, 5.0)
    assert list(row) == ["model", "parameters", "steps", "seconds", "train", "dev", "test"]
    assert row["test"] is None


def test_no_two_contexts_share_a_code(nb):
    X = torch.cartesian_prod(torch.arange(27), torch.arange(27))
    table = nb.CountTable(X, X[:, 0], 2)
    assert len(table.contexts) == 27 * 27
    assert torch.equal(table(X).argmax(1), X[:, 0])


def test_a_small_table_is_discounted_by_a_half(nb):
    for counts in ([], [1, 1, 3], [1, 2], [2, 3]):  # no 1, 2 or 3 at all: nothing to estimate
        D = nb.KneserNey.discount(torch.tensor([0, *counts]))
        assert D.tolist() == [0, 0.5, 0.5, 0.5]
    D = nb.KneserNey.discount(torch.tensor([1] * 4 + [2] * 2 + [3]))  # no 4 is no obstacle
    assert D.tolist() == pytest.approx([0, 0.5, 2 - 3 * 0.5 * 1 / 2, 3])


def test_cross_entropy_of_is_the_mean_surprise_of_the_targets(nb):
    X, Y = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1])
    p = torch.tensor([0.5, 0.125]).expand(2, 2)
    assert nb.cross_entropy_of(lambda X: p, (X, Y)) == pytest.approx(2 * math.log(2))


def test_quality_gives_the_95_percent_margin_and_survives_no_new_name(nb):
    assert nb.quality(["emma", "mia", "mia", "zzz"])[1] == "50.0% ± 69.3%"
    assert nb.quality(["emma", "ava"]) == ["0.0%", "0.0% ± 0.0%", "0", "0.0%"]


def test_logits_for_sampling_cover_all_rows_in_chunks(nb):
    network = small(nb)
    X = torch.randint(27, (1_100, 3), generator=torch.Generator().manual_seed(4))
    with network.inference():
        expected = network.forward(X)
    assert torch.allclose(nb.next_logits(network)(X), expected, atol=1e-6)


@pytest.mark.parametrize("context_size", [1, 4])
def test_names_drawn_from_a_count_model_follow_its_counts(nb, context_size):
    X, Y = nb.dataset(["abc"] * 3, context_size)
    assert X.shape == (12, context_size)
    model = nb.add_alpha(nb.CountTable(X, Y, context_size), 1e-9)
    assert nb.sample_counts(model, context_size, 20) == ["abc"] * 20


def test_a_surprise_is_shown_for_each_letter_and_as_one_draw_in_so_many(nb, monkeypatch):
    network, shown = small(nb), []
    monkeypatch.setitem(
        nb.show_surprise.__globals__, "display", lambda data, raw: shown.append(data)
    )
    nb.show_surprise(network, " Ava ", "mia")
    total = nb.surprises(network, nb.dataset(["ava"])).sum().item()
    first, second = shown[0]["text/plain"].splitlines()
    assert first == f"ava: one draw in {math.exp(total):,.0f}" and second.startswith("mia:")
    assert shown[0]["text/html"].count("<span") == 8  # both names have 3 letters and an end


def test_a_score_has_each_number_under_its_own_key(nb):
    row = nb.score("x", 1, 2, 3.0, 4.0, 5.0, 6.0)
    assert row == {
        "model": "x",
        "parameters": 1,
        "steps": 2,
        "seconds": 3.0,
        "train": 4.0,
        "dev": 5.0,
        "test": 6.0,
    }


def test_the_scoreboard_ends_with_the_best_model_and_a_dash_where_nothing_is_known(nb, monkeypatch):
    shown = []
    monkeypatch.setitem(
        nb.show_scoreboard.__globals__, "table", lambda header, rows: shown.extend(rows)
    )
    best, worst = nb.score("best", 1_000, 20, 3.4, 1.0, 2.0), nb.score("worst", 9, *[None] * 3, 3.0)
    nb.show_scoreboard([best, worst], {"best": 0.25})
    assert shown == [
        ["worst", "9", "-", "-", "-", "3.000", "-"],
        ["best", "1,000", "20", "3.4", "1.000", "2.000 ± 0.250", "-"],
    ]


def test_a_table_puts_numbers_to_the_right_and_text_to_the_left(nb, monkeypatch):
    shown = []
    monkeypatch.setitem(nb.table.__globals__, "display", lambda shown_as: shown.append(shown_as))
    nb.table(["name", "loss", "mixed"], [["a", "1.5", "2"], ["b", -2, "x"]])
    lines = shown[0].data.splitlines()
    assert lines[1] == "| --- | ---: | --- |"
    assert lines[2:] == ["| a | 1.5 | 2 |", "| b | -2 | x |"]


def test_each_table_of_kneser_ney_has_its_own_discounts(nb):
    g = torch.Generator().manual_seed(0)
    X = torch.randint(4, (80, 2), generator=g)
    model = nb.KneserNey(X, (X.sum(1) + torch.randint(3, (80,), generator=g)) % 5)
    for table, discount in zip(model.tables, model.discounts, strict=True):
        assert torch.equal(discount, nb.KneserNey.discount(table.counts))
    assert not torch.equal(model.discounts[0], model.discounts[-1])


def test_samples_are_those_of_the_seed_of_the_settings(nb):
    network = small(nb)
    drawn = {}
    for seed in (nb.SEED, nb.SEED + 1):
        own = definitions(SEED=seed, known=set(), real=set(), train_data=None, dev_data=None)
        drawn[seed] = (
            own.sample(network, 20),
            own.sample_counts(lambda X: torch.full((len(X), 27), 1 / 27), 1, 20),
        )
    assert drawn[nb.SEED][0] != drawn[nb.SEED + 1][0]
    assert drawn[nb.SEED][1] != drawn[nb.SEED + 1][1]


def test_a_name_of_the_training_data_is_never_counted_as_new_and_real():
    own = definitions(known={"emma"}, real={"emma", "mia"}, train_data=None, dev_data=None)
    assert own.quality(["emma", "mia", "zzz"])[:2] == ["66.7%", "50.0% ± 69.3%"]


def test_kneser_ney_never_gives_a_negative_probability(nb):
    """Counts of counts as odd as these give negative estimates of the discounts."""
    X = torch.tensor([[0]] * 2 + [[1]] * 3 + [[2]] * 3 + [[3]] * 3 + [[4]] + [[5]])
    Y = torch.tensor([1] * 2 + [2] * 3 + [3] * 3 + [4] * 3 + [5] + [6])
    assert (nb.KneserNey(X, Y)(X) > 0).all()
    odd = torch.tensor([1] * 10 + [2] + [3] * 5 + [4] * 8)
    assert nb.KneserNey.discount(odd).tolist() == [0, 0.5, 0.5, 0.5]
