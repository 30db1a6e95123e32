"""Everything that predicts characters, by one suite; count tables, leaderboard, diagnostics."""

import math
from collections import Counter, defaultdict

import pytest
import torch
from notebook_code import ROOT, definitions, read_notebook
from small import NAMES, OTHERS, fit, small

from charlm_utils import load_names

KINDS = ["uniform", "AddAlpha", "KneserNey", "MLP", "folded", "Transformer", "Ensemble", "nested"]


@pytest.fixture(scope="module")
def models(nb):
    mlp, other = small(nb), small(nb, seed=2, context_size=4, batch_norm=False)
    fit(nb, mlp)
    fit(nb, other)
    transformer = nb.TransformerConfig(16, 4, context_size=9).make()
    fit(nb, transformer, batch_size=8, learning_rate=0.01, optimizer=nb.AdamW)
    table, smoothed = nb.AddAlpha(NAMES, 2, 0.1), nb.KneserNey(NAMES, 3)
    ensemble = nb.Ensemble(mlp, smoothed)
    nested = nb.Ensemble(ensemble, transformer, table)
    trained = mlp, nb.fold(other), transformer, ensemble, nested
    return dict(zip(KINDS, (nb.Model(), table, smoothed, *trained), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_surprisals_are_those_of_softmax_at_what_follows(nb, models, kind):
    model, expected = models[kind], []
    for name in OTHERS:
        tokens = [0] * model.context_size + nb.vocab.encode(name + ".")
        for t in range(model.context_size, len(tokens)):
            X = torch.tensor([tokens[t - model.context_size : t]])
            p = model.logits(X).double().softmax(1)[0]
            expected.append(-p[tokens[t]].log().item())
    surprisals = model.surprisals(OTHERS)
    assert surprisals.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert model.loss(OTHERS) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    totals = [model.surprisals([name]).sum().item() for name in OTHERS]
    assert nb.name_surprisals(model, OTHERS).tolist() == pytest.approx(totals, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_wider_contexts_and_any_number_of_them_give_the_same_logits(nb, models, kind):
    model = models[kind]
    X = nb.windows(NAMES * 20, model.context_size + 3)[0]  # more than one part
    assert len(X) > 1_024
    logits = model.logits(X)
    own = torch.cat([model.logits(X[i : i + 300, 3:]) for i in range(0, len(X), 300)])
    assert logits.shape == (len(X), 27) and logits.isfinite().all()
    assert torch.allclose(logits.softmax(1), own.softmax(1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_is_seeded_and_takes_the_helpers_options(nb, models, kind):
    model = models[kind]
    names = model.sample(40, prefix="ab", max_length=6)
    assert len(names) == 40 and all(n.startswith("ab") and len(n) <= 6 for n in names)
    assert names == model.sample(40, prefix="ab", max_length=6)
    assert names == model.sample(40, seed=nb.SEED, prefix="ab", max_length=6)
    assert model.sample(40, seed=7) != model.sample(40, seed=8)
    assert len(set(model.sample(5, temperature=0))) == 1
    with pytest.raises(ValueError, match="is not in the vocabulary"):
        model.loss(["ñandú"])


@pytest.mark.parametrize("kind", ["AddAlpha", "MLP", "Transformer", "nested"])
def test_first_letters_are_drawn_as_often_as_predicted(models, kind):
    model, count = models[kind], 4_000
    start = torch.zeros(1, model.context_size, dtype=torch.int64)
    p = model.logits(start).softmax(1)[0]
    first = Counter(name[:1] for name in model.sample(count))
    for letter, id_ in (("a", 1), ("e", 5), ("m", 13)):
        expected = p[id_].item()
        margin = 4 * (expected * (1 - expected) / count) ** 0.5
        assert first[letter] / count == pytest.approx(expected, abs=margin)


def test_an_ensemble_is_the_mean_of_its_models_probabilities(nb, models):
    ensemble, X = models["Ensemble"], nb.windows(OTHERS, 9)[0]
    parts = [models[kind].logits(X).softmax(1) for kind in ("MLP", "KneserNey")]
    assert torch.allclose(ensemble.logits(X).softmax(1), sum(parts) / 2, atol=1e-6)
    assert ensemble.size == models["MLP"].size + models["KneserNey"].size
    assert ensemble.context_size == 3 and models["nested"].context_size == 9
    assert ensemble.seconds == models["MLP"].seconds and ensemble.steps == 0


@pytest.mark.parametrize("size", [1, 3, 9, 16])
def test_different_rows_are_found_however_wide_they_are(nb, size):
    X = nb.windows(NAMES + OTHERS, size)[0]
    rows, which = nb.different_rows(X)
    assert torch.equal(rows[which], X) and len(rows) == len(set(map(tuple, X.tolist())))
    assert nb.different_rows(X[:0])[0].shape == (0, size)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_count_table_counts_as_a_dictionary_does(nb, length):
    X, Y = nb.windows(NAMES, 3)
    counts = defaultdict(Counter)
    for context, target in zip(X.tolist(), Y.tolist()):
        counts[tuple(context[3 - length :])][target] += 1
    table, unseen = nb.CountTable(X, Y, length), torch.tensor([[26, 26, 26]])
    for context, row in zip(X.tolist() + unseen.tolist(), table(torch.cat([X, unseen]))):
        expected = counts[tuple(context[3 - length :])]
        assert row.tolist() == [expected[i] for i in range(27)]
    assert table.size == sum(map(len, counts.values()))


def test_add_alpha_is_its_formula(nb):
    model = nb.AddAlpha(NAMES, 2, 0.3)
    X, Y = nb.windows(NAMES, 2)
    X = torch.cat([X[:9], torch.tensor([[26, 26]])])
    counts = nb.CountTable(*nb.windows(NAMES, 2), 2)(X)
    expected = (counts + 0.3) / (counts.sum(1, keepdim=True) + 27 * 0.3)
    assert torch.allclose(model.logits(X).softmax(1), expected)
    assert torch.allclose(expected[-1], torch.full((27,), 1 / 27))


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


def test_kneser_ney_is_its_formula(nb):
    model, (X, Y) = nb.KneserNey(NAMES + OTHERS, 3), nb.windows(NAMES + OTHERS, 3)
    discounts = [d.tolist() for d in model.discounts]
    contexts = torch.cat([X[::9], torch.tensor([[26, 26, 26], [26, 26, 1], [26, 13, 1]])])
    p = model.logits(contexts).softmax(1)
    for context, row in zip(contexts.tolist(), p):
        expected = kneser_ney_by_hand(X, Y, context, discounts)
        assert torch.allclose(row, expected, atol=1e-6), f"at {context}"
    assert model.size == sum(t.size for t in model.tables) and len(model.tables) == 4
    for table, discount in zip(model.tables, model.discounts, strict=True):
        assert torch.equal(discount, nb.KneserNey.discount(table.counts))


def test_discounts_are_estimated_from_counts_of_counts(nb):
    counts = torch.tensor([1] * 8 + [2] * 4 + [3] * 2 + [4] * 1 + [9] * 5)
    y = 8 / (8 + 2 * 4)
    expected = [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2]
    assert nb.KneserNey.discount(counts).tolist() == pytest.approx(expected)
    odd = [1] * 10 + [2] + [3] * 5 + [4] * 8  # its estimates are negative
    for few in ([], [1, 1, 3], [1, 2], [2, 3], odd):
        D = nb.KneserNey.discount(torch.tensor([0, *few]))
        assert D.tolist() == [0, 0.5, 0.5, 0.5]
    no_four = nb.KneserNey.discount(torch.tensor([1] * 4 + [2] * 2 + [3]))
    assert no_four.tolist() == pytest.approx([0, 0.5, 2 - 3 * 0.5 * 1 / 2, 3])


def test_the_bootstrap_is_about_names_and_pairs_them(nb, models):
    mlp, table = models["MLP"], models["AddAlpha"]
    names = OTHERS * 20
    loss, low, high = nb.bootstrap(mlp, names, draws=300)
    assert loss == pytest.approx(mlp.loss(names), rel=1e-5) and low < loss < high
    assert nb.bootstrap(mlp, names, mlp, draws=50) == (0, 0, 0)
    difference, low, high = nb.bootstrap(mlp, names, table, draws=300)
    assert difference == pytest.approx(mlp.loss(names) - table.loss(names), rel=1e-4)
    assert low < difference < high
    totals = nb.name_surprisals(mlp, names)
    sizes = torch.tensor([len(n) + 1 for n in names])
    spread = (totals - loss * sizes).square().sum().sqrt() / sizes.sum()
    compared = nb.compare({"table": table, "mlp": mlp}, table, "table")
    assert compared["mlp"][0] == pytest.approx(mlp.loss(OTHERS) - table.loss(OTHERS), rel=1e-4)
    wide = nb.bootstrap(mlp, names, draws=2_000)
    assert (wide[2] - wide[1]) / 2 == pytest.approx(1.96 * spread.item(), rel=0.15)
    assert nb.with_interval((1.0, 0.25, 2.0)) == "1.000 (0.250 to 2.000)"
    assert nb.with_interval((1.0, -0.25, 2.0), "+") == "+1.000 (-0.250 to +2.000)"


def test_quality_counts_new_real_and_repeated_names(nb):
    own = definitions(known={"emma", "ava"}, real={"mia"})
    drawn = ["emma", "mia", "mia", "zzz", "emma", "ava", "mia", "xxx"]
    new, real = own.share_of(5, 8), own.share_of(3, 5)
    assert own.quality(drawn) == [new, real, "1", "37.5%"]
    assert own.quality(["emma", "", "ava", ""]) == ["0.0 ± 0.0", "0.0 ± 0.0", "0", "25.0%"]
    kinds = [own.kind_of_name(name) for name in ("emma", "mia", "zzz", "")]
    assert kinds == ["known", "real", "invented", "empty"]
    assert own.share_of(50, 100) == "50.0 ± 9.8", "1.96 times the root of 0.25 / 100"


CELLS = {
    "1": 1, "-2": 1, "1,234": 1, "-0.1 ± 0.2": 1, "**0.1 ± 0.2**": 1, "2%": 1, "1e-05": 1,
    "3.1 (2.9 to 3.3)": 1, "-": 1, "+0.3": 1, "32 units": 0, "1 x 450": 0, "a": 0, "": 1,
    "70.1% ± 0.2%": 1, "[0, 1]": 0, "10% (0% to 27%)": 1,
    "2 (see section 3)": 0, "5-gram": 0, "holds": 0, "never": 0,
}  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
def test_a_column_stands_to_the_right_only_if_all_its_cells_are_numbers(nb, cell):
    lines = nb.markdown_table("name | number", [["a", cell], [3, 1.5]]).splitlines()
    assert lines[0] == "| name | number |"
    assert lines[1] == ("| --- | ---: |" if CELLS[cell] else "| --- | --- |")
    assert lines[2:] == [f"| a | {cell} |", "| 3 | 1.5 |"]


def test_the_leaderboard_has_a_row_for_each_entry_the_best_last():
    own = definitions(test_names=NAMES[:9])
    own.globals["table"] = lambda header, rows: None
    one = small(own)
    fit(own, one, steps=50)
    mean = own.Ensemble(one, own.AddAlpha(NAMES, 2, 0.1))
    own.leaderboard.update({"uniform": own.Model(), "one": one, "mean": mean})
    rows = own.show_leaderboard()
    keys = ["model", "parameters", "steps", "seconds", "train", "dev", "test"]
    assert all(list(row) == keys for row in rows)
    assert rows == sorted(rows, key=lambda row: -row["dev"])
    by_name = {row["model"]: row for row in rows}
    row, losses = by_name["one"], (one.loss(NAMES), one.loss(OTHERS), one.loss(NAMES[:9]))
    assert (row["steps"], row["parameters"], row["seconds"]) == (50, one.size, one.seconds)
    assert (row["train"], row["dev"], row["test"]) == losses
    assert by_name["uniform"]["steps"] is by_name["mean"]["train"] is None
    assert by_name["mean"]["seconds"] == one.seconds


def test_saturation_counts_stuck_outputs_and_dead_units(nb):
    network = small(nb, batch_norm=False, hidden_sizes=(4,))
    linear = network.find("linear")[0]
    linear.W.zero_()
    linear.b.copy_(torch.tensor([10.0, -10.0, 0.0, 0.1]))
    (y,) = nb.activation_outputs(network, torch.zeros(6, 3, dtype=torch.int64))
    assert y.shape == (6, 4) and nb.saturation(y) == (0.5, 0.5)
    y[0, 0] = 0  # awake once: saturated mostly, but not dead
    assert nb.saturation(y) == pytest.approx((11 / 24, 0.25))
    assert nb.saturation(torch.tensor([[0.96, -0.98]])) == (0.5, 0.5)


def test_layer_signals_look_at_a_copy_and_the_gradients_are_true(nb):
    network = small(nb, batch_norm=False, hidden_sizes=(9, 8)).to(torch.float64)
    (X, Y), kept = network.examples(NAMES), [t.clone() for t in network.tensors()]
    seen = nb.layer_signals(network, X, Y)
    assert [tuple(y.shape) for y in seen["y"]] == [(len(Y), n) for n in (9, 8)]
    assert [dy.shape for dy in seen["dy"]] == [y.shape for y in seen["y"]]
    assert [dW.shape for dW in seen["dW"]] == [layer.W.shape for layer in network.find("linear")]
    assert all(map(torch.equal, kept, network.tensors()))
    loss, output, y, step = nb.CrossEntropy(), network.layers[-1], seen["y"][1].clone(), 1e-6
    y[3, 5] += step
    up = loss.forward(output.forward(y), Y)
    y[3, 5] -= 2 * step
    down = loss.forward(output.forward(y), Y)
    slope = ((up - down) / (2 * step)).item()
    assert slope == pytest.approx(seen["dy"][1][3, 5].item(), rel=1e-4)
    normed = small(nb)
    mean = normed.find("batch norm")[0].running_mean.clone()
    nb.layer_signals(normed, X, Y)
    assert torch.equal(mean, normed.find("batch norm")[0].running_mean)
    assert not any(part.training for part in normed.parts())


def test_update_ratios_are_those_of_the_weight_matrices(nb):
    network = small(nb, hidden_sizes=(9, 8))
    history = fit(nb, network, watch=nb.update_ratios(10))
    assert [step for step, _ in history.seen] == [0, 10, 20, 30, 40, 50]
    assert all(len(ratios) == 3 for _, ratios in history.seen)
    change = torch.zeros(network.size)
    network.views(change)[1].normal_()  # the first Linear's W, after the embedding's C
    nb.update_ratios(10)(network, 1, change)
    W = network.find("linear")[0].W
    expected = (network.views(change)[1].std() / W.std()).log10().item()
    assert history.seen[-1][1][0] == pytest.approx(expected)
    assert history.seen[-1][1][1] == -math.inf


def test_the_loss_by_place_is_the_mean_of_the_names_that_have_it(nb):
    model = nb.AddAlpha(NAMES, 1, 0.1)
    mean, surprisals = nb.loss_by_place(model), [model.surprisals([n]).tolist() for n in OTHERS]
    for place, loss in enumerate(mean.tolist()):
        there = [losses[place] for losses in surprisals if place < len(losses)]
        assert loss == pytest.approx(sum(there) / len(there))


def test_the_same_network_in_pytorchs_words_loses_the_same(nb, capsys):
    cells = [cell.source for cell in read_notebook().cells if cell.cell_type == "markdown"]
    (text,) = [source for source in cells if "<summary>Twenty lines of torch.nn" in source]
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    space = dict(nb.globals) | {"train_names": load_names(ROOT / "names.txt")[:5_000]}
    exec(code, space)
    assert 0 < float(capsys.readouterr().out.splitlines()[-1]) < 1e-5
    assert len(space["losses"]) == 200 and space["losses"][-1] < 2.6
