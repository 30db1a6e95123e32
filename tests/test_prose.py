"""What the notebook's sentences and titles claim, against the outputs that are stored."""

import math
import re

import pytest
from notebook_code import code_cells


@pytest.fixture(scope="module")
def text():
    """Cell id -> everything the cell has stored as text."""
    found = {}
    for cell in code_cells():
        parts = []
        for output in cell.outputs:
            data = output.get("data", {})
            parts.append(output.get("text") or data.get("text/markdown") or "")
            if "image/png" not in data and "text/markdown" not in data:
                parts.append(data.get("text/plain", ""))
        found[cell["id"]] = "\n".join(parts)
    return found


def number(text, pattern):
    """The number that the pattern's group matches."""
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is nowhere in {text!r}"
    return float(match.group(1).replace(",", ""))


def rows(text):
    """A Markdown table as {first cell: [numbers of the other cells]}; signs and units dropped."""
    table = {}
    for line in text.splitlines():
        if line.startswith("|") and "---" not in line:
            first, *others = (cell.strip() for cell in line.strip("|").split("|"))
            numbers = [re.search(r"[-+]?[\d.,]*\d(?:e[-+]\d+)?", cell) for cell in others]
            table[first] = [n and float(n.group().replace(",", "")) for n in numbers]
    return table


def test_one_dev_name_in_eight_leaks(text):
    assert 100 / 8.5 < number(text["data-leak"], r"repeats kept: ([\d.]+)%") < 100 / 7.5
    assert number(text["data-leak"], r"unique names: ([\d.]+)%") == 0


def test_the_yardsticks_rank_as_told(text):
    losses = {name: row[-1] for name, row in rows(text["yardsticks-table"]).items()}
    uniform, bigram, four, five = list(losses.values())[1:]
    assert uniform == pytest.approx(math.log(27), abs=1e-4)
    assert uniform > bigram > four > five
    model_1 = number(text["model-1"], r"dev loss ([\d.]+)")
    model_2 = number(text["model-2"], r"dev loss ([\d.]+): ")
    assert model_1 > four, "'the first does not beat it at all'"
    assert 0.015 <= four - model_2 < 0.025, "'by only about 0.02'"
    assert model_2 > five


def test_model_2_keeps_about_half_as_many_numbers_as_the_table(text):
    counts = rows(text["yardsticks-table"])
    four = next(row[1] for name, row in counts.items() if name.startswith("4-gram"))
    assert 0.4 < 12_097 / four < 0.6
    assert number(text["model-2"], r"([\d,]+) parameters") == 12_097
    assert number(text["folding"], r"([\d,]+) parameters") == 11_897


def test_the_judge_agreed_to_about_fifteen_digits(text):
    for name, row in rows(text["judge-table"]).items():
        assert name == "layer" or row[-1] < 1e-14, name
    assert number(text["network-judge"], r"error ([\de.-]+)") < 1e-13


def test_the_learning_rate_lies_in_the_valley(text):
    low = number(text["range-test-plot"], r"from ([\d.]+) to")
    high = number(text["range-test-plot"], r"to ([\d.]+)\n")
    assert low < 0.1 and high > 0.5, "'inside the valley and well before the cliff'"


def test_model_1_starts_confidently_wrong_and_nobody_is_dead(text):
    assert number(text["model-1"], r"first loss ([\d.]+)") > 5 * math.log(27)
    assert re.findall(r"([\d.]+)% of the units dead", text["saturation"]) == ["0.0", "0.0"]


def test_running_statistics_are_good_to_a_few_percent(text):
    assert number(text["running-stats"], r"([\d.]+) at worst") < 0.06
    assert number(text["running-stats"], r"deviation: ([\d.]+) to") > 0.94
    assert number(text["running-stats"], r"to ([\d.]+) times") < 1.06


def test_the_wrong_mode_costs_more_the_smaller_the_batch(text):
    losses = [row[0] for name, row in rows(text["modes"]).items() if "mode" in name]
    assert losses == sorted(losses), "large batches: small difference; small ones: ruin"
    assert losses[1] - losses[0] < 0.01 and losses[-1] - losses[0] > 1
    spread = [float(s) for s in re.findall(r"deviation ([\d.]+)", text["coupling-plot"])]
    assert spread == sorted(spread, reverse=True)


def test_the_leak_flatters_as_told(text):
    found = re.findall(r"\| (.+?) \| [\d,]+ \| ([\d.]+) ± ([\d.]+) \|", text["leak-table"])
    table = {name: (float(loss), float(half)) for name, loss, half in found}
    seen, margin_seen = table["... of it, names seen in training"]
    unseen, margin = table["... of it, names not seen"]
    assert seen + margin_seen < unseen - margin, "'far below that of the others'"
    ordinary, margin_ordinary = table["... of it, names of both sexes"]
    unique, _ = table["unique names: dev"]
    assert abs(unique - ordinary) < margin_ordinary, "'explains little of that, if anything'"
    assert seen + margin_seen < ordinary, "being seen, and not being ordinary, makes them easy"


def test_the_shuffle_moves_a_loss_as_much_as_the_protocol(text):
    found = re.findall(r"mean ([\d.]+), from ([\d.]+) to ([\d.]+)", text["shuffles"])
    (unique, low, high), (kept, *_) = [[float(n) for n in line] for line in found]
    assert unique > kept, "'the protocol moves the mean'"
    assert high - low > 0.8 * (unique - kept) and high - low > 0.01


def test_healthy_and_sick_networks_differ_as_told(text):
    outputs = rows(text["activations"])
    for layer in (1, 6):
        mean, std, saturated, dead = outputs[f"healthy, layer {layer}, start"]
        assert abs(mean) < 0.1 and 0.3 < std < 0.8 and saturated < 10 and dead == 0
        assert outputs[f"saturated, layer {layer}, start"][2] > 60
    assert outputs["saturated, layer 1, end"][3] > 1, "some of the first layer's units are dead"
    assert outputs["fading, layer 6, start"][1] < 0.03 < outputs["fading, layer 6, end"][1]
    gradients, weights = rows(text["gradients"]), rows(text["weight-gradients"])
    assert 0.2 < gradients["healthy"][4] < 5 and 0.2 < weights["healthy"][4] < 5
    assert gradients["saturated"][4] > 10 and gradients["fading"][4] < 0.1
    assert weights["saturated"][4] > 10 and 0.2 < weights["fading"][4] < 5
    assert 10 * weights["fading"][2] <= weights["healthy"][2], "'ten times and more smaller'"


def test_update_ratios_are_as_told(text):
    line = {
        s: re.search(rf"\| {s} \|(.*)", text["update-ratios"]).group(1)
        for s in ("healthy", "saturated", "fading")
    }
    spans = {s: [float(n) for n in re.findall(r"-\d\.\d", part)] for s, part in line.items()}
    first, middle = {}, {}
    for state, (a, b, c, d) in spans.items():
        first[state], middle[state] = (a, b), (c, d)
    assert -3.5 <= first["healthy"][0] and middle["healthy"][1] <= -2, "in the grey band"
    assert first["healthy"][1] - first["healthy"][0] < 0.5, "hidden layers in step"
    assert first["saturated"][1] - first["saturated"][0] > 1.5
    assert middle["saturated"][1] - middle["saturated"][0] >= 0.5, "'several times apart'"
    assert first["fading"][1] < -3.5 and middle["fading"][0] > -3.5, "climbs back"
    losses = {s: float(re.findall(r"\d\.\d{3}", part)[-1]) for s, part in line.items()}
    assert losses["healthy"] < losses["fading"] < losses["saturated"]


def test_the_shares_of_real_names_are_told_apart_as_told(text):
    found = re.findall(r"\| (.+?) \| [\d.]+% \| ([\d.]+)% ± ([\d.]+)% \|", text["quality"])
    span = {n: (float(share) - float(half), float(share) + float(half)) for n, share, half in found}
    model_1, model_2 = span["Model 1"], span["Model 2, temperature 1.0"]
    assert span["bigram counts"][1] < min(model_1[0], model_2[0])
    assert sum(span["5-gram, Kneser-Ney"]) > max(sum(model_1), sum(model_2)), "'slightly ahead'"
    assert model_1[0] < model_2[1] and model_2[0] < model_1[1], "'not the two networks'"
    table = rows(text["quality"])
    heats = [table[f"Model 2, temperature {t}"] for t in (0.5, 0.8, 1.0, 1.2)]
    assert [h[1] for h in heats] == sorted((h[1] for h in heats), reverse=True)
    assert [h[0] for h in heats] == sorted(h[0] for h in heats), "back to the list"
    assert [h[3] for h in heats] == sorted((h[3] for h in heats), reverse=True)


def test_training_brings_letters_of_a_kind_together(text):
    table = {}
    for line in text["embedding-measure"].splitlines():
        if "training |" in line:
            when, closer, *same = (cell.strip() for cell in line.strip("|").split("|"))
            table[when] = int(closer.replace(",", "")), *(int(cell.split()[0]) for cell in same)
    before, after = table["before training"], table["after training"]
    assert after[0] < 1_000 < before[0], "'training moves the vowels together'"
    assert after[1] >= before[1] and before[2] > 15, "'most letters sit beside one by chance'"


def test_the_noise_is_that_of_the_batches(text):
    found = re.search(
        r"noise of the last 500 batches: ([\d.]+), Model 1 ([\d.]+)", text["model-2-curve"]
    )
    ours, model_1 = map(float, found.groups())
    assert abs(ours - model_1) < 0.1 * model_1, "'as noisy as Model 1's'"


def plus_minus(text, first):
    """The (mean, half-width) pairs of the table row that begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [(float(m), float(h)) for m, h in re.findall(r"(-?[\d.]+) ± ([\d.]+)", line)]


def test_embeddings_of_several_seeds_agree_as_told(text):
    shown = text["embedding-seeds"]
    change = re.search(r"after minus before: (-[\d.]+) ±", shown)
    assert change and -0.1 < float(change.group(1)) < 0, "'by a few hundredths'"
    before, after = re.findall(r"\| (\d+)% \(", shown)
    assert 0 <= int(after) - int(before) < 15, "'hardly more often than two random tables'"


def test_each_start_is_better_than_the_last_by_less_and_less(text):
    shown = text["init-study-table"]
    gains = [tuple(map(float, g)) for g in re.findall(r"minus .*: (-[\d.]+) ± ([\d.]+)", shown)]
    assert len(gains) == 3 and all(mean + half < 0 for mean, half in gains), "'all measurable'"
    output, fan_in, gain = (-mean for mean, _ in gains)
    assert output > 0.1 and 0.015 < fan_in < 0.03 and 0.005 < gain < 0.02
    table = rows(shown)
    assert all(table[init][3] == 0 for init in table if table[init][0]), "'no unit is dead'"
    first = {init: row[0] for init, row in table.items() if row[0]}
    assert first.pop("naive") > 5 * math.log(27)
    assert all(abs(loss - math.log(27)) < 0.05 for loss in first.values())


def test_the_conclusions_on_batchnorm_are_those_the_intervals_allow(text):
    best, table = text["bn-best"], text["bn-table"]
    lines = [line for line in best.splitlines() if line.startswith(("| depth", "| ..."))]
    sections = {}
    for plain, normed, difference in zip(lines[::3], lines[1::3], lines[2::3]):
        pairs = [tuple(map(float, p)) for p in re.findall(r"(-?[\d.]+) ± ([\d.]+)", difference)]
        name = plain.strip("| ").split(", without")[0]
        cells = [[c.strip() for c in line.strip("|").split("|")] for line in (plain, normed)]
        sections[name] = (*cells, *pairs)
    plain, normed, dev, _ = sections["depth 6, naive"]
    assert dev[0] + dev[1] < 0 and -0.55 < dev[0] < -0.25, "'by about 0.4 nats'"
    assert plain[4] == "never" and normed[4] != "never"
    plain, normed, dev, rough = sections["depth 6, gain 5/3"]
    assert abs(dev[0]) < dev[1] and abs(rough[0]) < rough[1], "'no measurable difference'"
    assert abs(float(plain[4]) - float(normed[4])) <= 0.2 * float(plain[4]), "as many steps"
    plain, normed, dev, rough = sections["depth 1, gain 5/3"]
    assert dev[0] - dev[1] > 0 and 0.03 < dev[0] < 0.06, "'ahead by about 0.04'"
    assert 0.35 < float(normed[4]) / float(plain[4]) < 0.65, "'halves the steps'"
    assert 0.05 < -rough[0] / float(plain[3].split()[0]) < 0.2, "'a tenth of the noise'"
    for plain, normed, *_ in sections.values():
        assert 1.1 < float(normed[6]) / float(plain[6]) < 1.8, "'a fifth to two thirds'"
    for depth in (1, 6):
        for rate in (0.003, 0.03):
            mean, half = plus_minus(table, f"depth {depth}, naive, rate {rate}")[1]
            assert mean + half < 0, "'smoother after a naive start, at the two lowest rates'"
    mean, half = plus_minus(table, "depth 6, naive, rate 0.3")[1]
    assert abs(mean) < half, "'differ too much from each other to say'"
    high, low = (plus_minus(table, f"depth 6, gain 5/3, rate {r}")[0] for r in (0.3, 0.003))
    assert high[0] + high[1] < 0 < low[0] - low[1]
    for rate in (0.03, 0.3):
        for depth in (1, 6):
            mean, half = plus_minus(table, f"depth {depth}, gain 5/3, rate {rate}")[2]
            assert abs(mean) < half, "'the share of real names does not differ measurably'"
        mean, half = plus_minus(table, f"depth 6, naive, rate {rate}")[2]
        assert mean - half > 0, "'better names at depth 6 after a naive start'"
    scaled = [
        plus_minus(table, f"depth {depth}, gain 5/3, rate {rate}")
        for depth in (1, 6)
        for rate in (0.03, 0.3)
    ]
    assert max(abs(row[1][0]) for row in scaled) < 0.18 * 0.16, "'at most a sixth of the noise'"
    assert sum(row[3][0] > 0 for row in scaled) == 3, "'in three cases of four'"
    for init in ("naive", "gain 5/3"):
        mean, half = plus_minus(table, f"depth 1, {init}, rate 3.0")[1]
        assert mean - half > 0, "'far rougher with BatchNorm'"
    dev, _, real, _ = plus_minus(table, "depth 1, naive, rate 0.03")
    assert dev[0] < -0.2 and real[0] + real[1] < 0, "'lower loss, and the names are worse'"


def test_the_scoreboard_holds_the_losses_of_the_sections(text):
    table = rows(text["scoreboard"])
    model_1 = number(text["model-1"], r"dev loss ([\d.]+)")
    model_2 = number(text["model-2"], r"dev loss ([\d.]+):")
    assert table["Model 1"][-2] == pytest.approx(model_1, abs=6e-4)
    assert table["Model 2"][-2] == pytest.approx(model_2, abs=6e-4)
    assert table["uniform"][-1] == pytest.approx(math.log(27), abs=6e-4)
    for name, row in table.items():
        if row[-1]:
            assert row[-1] <= row[-2] + 0.002, f"{name}: 'a little less than on dev, or as much'"
    order = [
        "bigram counts",
        "Model 1",
        "4-gram counts, alpha 0.1",
        "Model 2",
        "5-gram, Kneser-Ney",
    ]
    tests = [table[name][-1] for name in order]
    assert tests == sorted(tests, reverse=True), "'and so are those of Part I'"
    best = ["best MLP + 5-gram", "best MLP + Transformer + 5-gram", list(table)[-1]]
    assert list(table)[-3:] == best, "sorted, the best last"
    assert [table[n][-1] for n in best] == sorted(row[-1] for row in table.values() if row[-1])[
        2::-1
    ], "'the same three, in the same order'"
    assert table["best MLP"][-1] < table["5-gram, all years"][-1]
    assert table["best MLP"][-2] > table["5-gram, all years"][-2]
    finished = table["2 x 256, all years, then names.txt"]
    assert finished[-1] < table["both 5-grams"][-1] and finished[-2] > table["both 5-grams"][-2]


def difference(text, name):
    """(mean, low, high) of the difference in a row of a comparison with the 5-gram."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    found = re.search(r"([-+][\d.]+) \(([-+][\d.]+) to ([-+][\d.]+)\)", line)
    return tuple(map(float, found.groups()))


def test_dropout_helps_as_told(text):
    shown = text["dropout-picture"]
    gap, at_01, at_03 = plus_minus(shown, "256 units, without BatchNorm")
    assert gap[0] > 0.4 and 0.04 < -at_01[0] < 0.08 and at_01[0] + at_01[1] < 0, "'some 0.06'"
    normed_gap, at_01, at_03 = plus_minus(shown, "256 units, with BatchNorm")
    assert normed_gap[0] < gap[0], "'with BatchNorm the gap is smaller'"
    assert 0.005 < -at_01[0] < 0.015 and at_01[0] + at_01[1] < 0, "'0.01 at rate 0.1'"
    assert abs(at_03[0]) < at_03[1], "'nothing measurable at 0.3'"
    for case in ("without", "with"):
        for mean, half in plus_minus(shown, f"32 units, {case} BatchNorm")[1:]:
            assert mean + half > 0, "'no measurable gain at any rate'"
    assert mean - half > 0, "'with BatchNorm and rate 0.3 a loss'"
    assert re.search(r"30\.\d\d% dropped", text["dropout-judge"])


def test_depth_and_activation_bring_what_is_told(text):
    found = re.findall(r"minus .*: (-?[\d.]+) ± ([\d.]+)", text["depth-study"])
    (second, s), (relu, r), (third, t) = [tuple(map(float, pair)) for pair in found]
    assert abs(second) < s, "'nothing measurable'"
    assert 0.03 < -relu < 0.042 and relu + r < 0, "'nearly 0.04'"
    assert 0 < third - t and third < 0.02, "'slightly worse than two'"


def test_the_best_mlp_passes_the_5_gram_as_told(text):
    shown = text["best-mlp"]
    assert 0.025 < -number(shown, r": (-[\d.]+) against the 5-gram") < 0.037, "'by about 0.03'"
    assert number(shown, r"([\d,]+) parameters") < 150_000
    train, dev = number(shown, r"train ([\d.]+),"), number(shown, r", dev ([\d.]+):")
    assert dev - train > 0.1, "'far better than new ones'"


def test_tables_turn_back_up_with_context_and_networks_do_not(text):
    table = {int(name): row for name, row in rows(text["context-picture"]).items() if row[-1]}
    counts, smoothed, nets = ([row[i] for row in table.values()] for i in (2, 3, 4))
    assert min(counts) == counts[2] and all(loss > counts[1] for loss in counts[4:])
    assert counts[2:] == sorted(counts[2:]), "'turns back up'"
    known = [loss for loss in smoothed if loss]
    assert max(known[3:]) - min(known[3:]) < 0.01, "'does not turn far, gains nothing beyond 4'"
    assert nets[:6] == sorted(nets[:6], reverse=True) and max(nets[5:]) - min(nets[5:]) < 0.005
    assert number(text["context-picture"], r"at context (\d+)") == 4
    assert all(net > loss for net, loss in zip(nets[1:], known[1:])), "'stays above Kneser-Ney'"
    best = number(text["best-mlp"], r"([\d,]+) parameters")
    assert 6 < best / table[8][1] < 8 and 5 <= 5_000 / 900 < 6


def test_the_mean_is_better_than_either_as_told(text):
    mean, low, high = difference(text["mix"], "best MLP and 5-gram")
    single, *_ = difference(text["mix"], "best MLP")
    assert 0.02 < single - mean < 0.04 and high < -0.05, "'by some 0.03', 'far from 0'"
    kept = {name: row[0] for name, row in rows(text["kept"]).items() if row[0]}
    assert kept["best MLP"] < 1.993 < kept["5-gram"] < 1.996, "'so, nearly, is a table of counts'"


def test_more_data_bring_what_is_told(text):
    shown = text["scaling-fit"]
    assert number(shown, r"measured ([\d.]+)") > number(shown, r"foretells ([\d.]+)") + 0.05
    board = {name: row[-2] for name, row in rows(text["scoreboard"]).items()}
    assert board["2 x 256, all years"] >= board["2 x 256, all of names.txt"], "'no lower'"
    names, years = text["finish"], text["finish-table"]
    before, _, _ = difference(names, "network, all years")
    after, _, _ = difference(names, "network, all years, then names.txt")
    assert 0.03 < before - after < 0.05, "'some 0.04'"
    tables, _, _ = difference(names, "both 5-grams, half and half")
    assert abs(tables - after) < 0.006, "'level with the two tables'"
    best, _, high = difference(names, "that network and both 5-grams")
    assert 0.085 < -best < 0.1 and high < -0.05, "'0.09 below'"
    best, _, high = difference(years, "that network and both 5-grams")
    assert 0.045 < -best < 0.055 and high < -0.02, "'0.05 below that of all years'"
    alone, _, high = difference(years, "network, all years, then names.txt")
    assert 0.009 < -alone < 0.015 and high < 0, "'0.012 below the 5-gram of all years'"
    added = number(text["more-names"], r"([\d,]+) of them are not") / 23_747
    assert 3 < added < 3.5, "'four times as many names'"


def test_the_transformer_stands_where_it_is_told(text):
    shown = text["transformer-compare"]
    mean, low, high = difference(shown, "Transformer")
    assert low < 0 < high, "'the interval just holds 0'"
    best, *_ = difference(shown, "best MLP")
    assert 0.03 < mean - best < 0.05, "'0.04 behind'"
    size = number(text["transformer-train"], r"([\d,]+) parameters")
    assert 0.37 < size / number(text["best-mlp"], r"([\d,]+) parameters") < 0.43, "'two fifths'"
    all_three, *_ = difference(shown, "Transformer, best MLP and 5-gram")
    without, *_ = difference(text["mix"], "best MLP and 5-gram")
    assert 0 < without - all_three < 0.01, "'adds a little'"
    assert number(shown, r"without: .* to (-[\d.]+)\)") < 0, "'that little is measurable'"
    assert "logits before it move by 0.0," in text["same-exam"]
    for name, row in rows(text["block-judge"]).items():
        assert name == "layer" or row[-1] < 1e-10
    before = sorted(row[1] for name, row in rows(text["heads"]).items() if name.startswith("head"))
    assert 0.7 < before[-1] < 0.8 and before[-2] < 0.5, "'three quarters of its weight'"


def test_the_names_of_the_next_steps_are_as_told(text):
    shown = text["transformer-names"]
    found = re.findall(r"\| (.+?) \| ([\d.]+)% \| ([\d.]+)% ± ([\d.]+)% .* ([\d.]+)% \|", shown)
    table = {name: list(map(float, numbers)) for name, *numbers in found}
    real = {name: row[1] for name, row in table.items()}
    assert 1.4 < real["5-gram, Kneser-Ney"] - real["best MLP"] < 2.6, "'about two points higher'"
    nets = [table[name] for name in ("Model 2", "best MLP", "Transformer")]
    assert max(r[1] - r[2] for r in nets) < min(r[1] + r[2] for r in nets)
    assert 2.5 < table["Model 2"][3] / table["best MLP"][3] < 3.5, "'three times as often'"
    assert min(table, key=lambda name: table[name][0]).startswith("5-gram")


def test_what_helped_most_is_what_is_told(text):
    table = {name: row for name, row in rows(text["helped"]).items() if row[-1] is not None}
    gains = {name: row[0] for name, row in table.items()}
    wide = "context 8, two wide layers, ReLU"
    assert max(gains, key=gains.get) == wide and table[wide][2] < 0, "'took the least time'"
    per = {n: g / table[n][1] for n, g in gains.items() if table[n][1] > 0 and "mean" not in n}
    assert max(per, key=per.get).startswith("a Transformer"), "'per parameter'"
    finish = table["then names.txt"]
    assert finish[1] == 0 and finish[3] == 0 and finish[2] < 12
    assert gains["dropout, more steps, lower rate"] < 0.0125, "'a hundredth at most'"
    both = gains["all years' names"] + gains["then names.txt"]
    assert 0.025 < both < 0.035 and gains["all years' names"] < 0, "'together take 0.03 off'"
    seconds = table["all years' names"][2] + finish[2]
    assert 10 < seconds < 22, "'some 15 seconds'"
    gains_only = {name: g for name, g in gains.items() if g > 0}
    assert min(gains_only, key=gains_only.get) == "Transformer into the mean"
    assert table["Transformer into the mean"][3] == 138


def test_the_dials_move_the_loss_as_readme_shows(text):
    table = rows(text["dials"])
    for setting in ("`CONTEXT_SIZE`", "`EMBEDDING_DIM`", "`HIDDEN_SIZE`", "`STEPS`"):
        assert table[setting][1] > 0 > table[setting][3], f"{setting}: down is worse, up is better"
    assert table["`LEARNING_RATE`"][1] > 0.1 and table["`LEARNING_RATE`"][3] > 0.1


def test_every_model_comes_back_bit_for_bit(text):
    lines = text["bring-back"].strip().splitlines()
    assert len(lines) == 6 and all(line.endswith("logits equal: True") for line in lines)


def test_no_exercise_is_answered_in_the_stored_file(text):
    answers = [shown for name, shown in text.items() if re.fullmatch(r"exercise-\d+", name)]
    assert len(answers) == 10 and all(shown.startswith("Not answered yet") for shown in answers)
