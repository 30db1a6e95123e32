"""The main claims of the notebook, computed from its objects: section 16 shows them."""

from __future__ import annotations

from typing import Any

Claim = tuple[str, float, float, float]  # what, the number, from, to


def claims(run: Any) -> list[Claim]:
    """All claims; `run` has the names of the notebook, after a run, as attributes."""
    return walk(run) + evidence(run) + next_steps(run)


def interval_ends(run: Any, values: list[float]) -> tuple[float, float]:
    """Both ends of the 95 % interval of a mean."""
    mean, half = run.interval(values)
    return mean - half, mean + half


def dev_losses(run: Any) -> dict[str, float]:
    return {row["model"]: row["dev"] for row in run.board_rows}


def walk(run: Any) -> list[Claim]:
    """What Part I says. A claim about vowels is about the nearer end of an interval."""
    dev = dev_losses(run)
    model_2, kneser_ney = dev["Model 2"], dev["4-gram, Kneser-Ney"]
    contexts = run.windows(run.dev_names, run.model_1.context_size)[0]
    outputs = run.activation_outputs(run.model_1.config.make(), contexts)[0]
    saturated = run.saturation(outputs)[0]
    characters = sum(len(name) + 1 for name in run.dev_names)
    first_letter = run.by_place["best MLP + 5-gram"][0].item() * len(run.dev_names) / characters
    first_share = first_letter / dev["best MLP + 5-gram"]
    vowels = interval_ends(run, run.vowel_shares["start 0.1, C times W"][1])[0]
    leaked = len(run.seen_lines) / len(run.dev_lines)
    gap = model_2 - run.model_2.loss(run.train_names)
    all_claims = [
        ("repeats kept: one dev name in eight is known", leaked, 0.11, 0.135),
        ("naive start: seven tenths of outputs saturated", saturated, 0.68, 0.75),
        ("Model 2 beats the plain 4-gram", dev["4-gram counts"] - model_2, 0.005, 0.02),
        ("Kneser-Ney on 3 characters beats Model 2", model_2 - kneser_ney, 0.03, 0.045),
        ("Model 2 is level with the scaled start alone", run.bn_alone[0], -0.01, 0.01),
        ("Model 2 has a generalisation gap", gap, 0.06, 0.09),
        ("small start: the largest direction is vowels", vowels, 0.7, 0.95),
        ("the first letter: a fifth of the best loss", first_share, 0.18, 0.22),
    ]
    if run.seen_lines:
        all_claims.append(("names seen in training: memory", run.memory[1], 0.04, 0.08))
    return all_claims


def evidence(run: Any) -> list[Claim]:
    """What sections 11 and 12 say; mostly the end of an interval nearer to 0."""

    def worst_gain(init: str) -> float:
        return max(interval_ends(run, run.init_gains[init, r])[1] for r in run.INIT_RATES)

    deep_naive = interval_ends(run, run.bn_best["depth 6, naive"])[1]
    shallow_scaled = interval_ends(run, run.bn_best["depth 1, gain 5/3"])[0]
    deep_scaled = interval_ends(run, run.bn_best["depth 6, gain 5/3"])[0]
    dropout = interval_ends(run, run.dropout_gains[256, False])[1]
    arms = max(map(abs, interval_ends(run, run.arm_gains)))
    return [
        ("BatchNorm after a scaled start, five pairs: a hundredth at most", arms, 0, 0.01),
        ("scaling the output helps at every rate", worst_gain("output scaled"), -0.4, -0.1),
        ("the gain of 5/3 on top of it does", worst_gain("gain 5/3"), -0.03, 0),
        ("depth 6, naive: BatchNorm helps", deep_naive, -0.5, -0.15),
        ("depth 1, scaled: BatchNorm costs", shallow_scaled, 0.01, 0.05),
        ("depth 6, scaled: BatchNorm costs", deep_scaled, 0, 0.03),
        ("256 units, few names: dropout helps", dropout, -0.1, -0.02),
    ]


def next_steps(run: Any) -> list[Claim]:
    """What sections 13 to 16 say."""
    dev, gains = dev_losses(run), run.ensemble_gains
    best_mlp, best_test = dev["best MLP"], min(row["test"] for row in run.board_rows)
    second_seed = gains["best MLP + second seed"][0] / gains["best MLP + 5-gram"][0]
    tanh = interval_ends(run, run.search_gains["all names"]["tanh"])[0]
    mlp_and_block = interval_ends(run, run.fair_gains["MLP, 2 x 128"])[1]
    soft = interval_ends(run, run.soft_gains)[1]
    ensembles = run.transformer_gains
    helps = ensembles["the same + Transformer"][0] - ensembles["best MLP + second seed + 5-gram"][0]
    tree = run.interval(run.tree_gain)[0]
    longer = dev["small Transformer"] - dev["Transformer, 5 passes"]
    table = dev["5-gram, Kneser-Ney"] - best_mlp
    with_table = best_mlp - dev["best MLP + 5-gram"]
    same_best = best_test - run.board_rows[-1]["test"]
    all_claims = [
        ("all names, short: tanh costs", tanh, 0.01, 0.1),
        ("the best MLP beats the 5-gram", table, 0.05, 0.075),
        ("its ensemble with the 5-gram beats it", with_table, 0.005, 0.02),
        ("a second network brings as much", second_seed, 0.7, 1.3),
        ("five passes: 2 x 128 beats a Transformer", mlp_and_block, -0.04, 0),
        ("the tree is level with 2 x 192", tree, -0.01, 0.01),
        ("more passes and dropout help a Transformer", longer, -0.05, -0.02),
        ("12 passes: a Transformer is level with 2 x 192", run.long_gain[0], -0.015, 0.01),
        ("the best MLP is ahead of the Transformer", ensembles["Transformer"][1], 0, 0.02),
        ("soft targets help at equal steps", soft, -0.04, -0.01),
        ("a Transformer helps the ensemble", helps, -0.02, -0.003),
        ("best on dev, best on test", same_best, 0, 0),
    ]
    if run.all_years_train:
        measured = run.all_years_runs[0]["dev"] - run.predicted_loss
        finishing = dev["2 x 256, all years, then names.txt"] - dev["2 x 256, all years"]
        all_claims += [
            ("all years, equal passes: a lower loss", run.more_gain[2], -0.03, -0.005),
            ("all years lie above the fitted line", measured, 0.06, 0.12),
            ("finishing on names.txt: a lower loss", finishing, -0.045, -0.02),
        ]
    return all_claims
