"""The notebook's count models against dictionaries and loops; its sampling statistics."""

import math
from collections import Counter, defaultdict

import pytest
import torch

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
