"""The checks of section 18 of the notebook, which imports them. The answers are in here.

Each check prints one line and never raises. It returns its praise for a right answer, and is
ended by `Refused` for any other: by a table of slips {line: what that slip would give}, or a hint.
"""

import functools
import math

import torch
import torch.nn.functional as F

UNANSWERED = "Not answered yet: put your answer in place of None and run the cell again."
SURPRISALS_OF_AVA = (2.0, 3.5, 0.5, 1.0)  # exercise 4: nats for a, v, a and the end
WITHOUT_RUNS = (2.31, 2.35, 2.29, 2.33, 2.32)  # exercise 5: dev losses of five seeds
WITH_RUNS = (2.29, 2.32, 2.28, 2.30, 2.31)  # the same five seeds


class Refused(Exception):
    """Ends a check; its text is the line to print."""


def exercise(check):
    """Make check(answer, ...) print its praise, or why the answer is refused; nothing raises."""

    @functools.wraps(check)
    def printed(answer=None, *more):
        try:
            refuse({UNANSWERED: unanswered(answer)})
            line = f"Right: {check(answer, *more)}"
        except Refused as reason:
            line = str(reason)
        except Exception as error:
            line = f"This cannot be read as an answer ({brief(error)}): what is asked for?"
        print(line)

    return printed


def brief(error):
    """An error in one line that is not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def unanswered(answer):
    """Whether nothing has been put in place of None yet."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        return bool(answer) and all(map(unanswered, answer))
    return answer is None


def refuse(faults):
    """End the check with the first line of {line: whether it applies} that applies."""
    for line, applies in faults.items():
        if applies:
            raise Refused(line)


def as_numbers(answer, shape):
    """The answer as a float64 tensor; Refused if it has another shape, or is not finite."""
    tensor = torch.as_tensor(answer).detach().cpu().double()
    if not shape and tensor.numel() == 1:
        tensor = tensor.reshape(())
    yours = tuple(tensor.shape)
    wanted = f"of shape {tuple(shape)}" if shape else "a single number"
    faults = {
        f"The answer should be {wanted}, yours has shape {yours}.": yours != tuple(shape),
        "The answer should be finite: was there a division by 0?": not tensor.isfinite().all(),
    }
    refuse(faults)
    return tensor


def compare(answer, right, slips, hint, tolerance=2e-3):
    """Refuse an answer that is not right: with the line of a known slip, or with the hint."""
    right = torch.as_tensor(right).double()
    answer = as_numbers(answer, right.shape)

    def close(value):
        value = torch.as_tensor(value).double()
        return torch.allclose(answer, value, rtol=tolerance, atol=1e-9)

    if not close(right):
        refuse({line: close(value) for line, value in slips.items()})
        size = "Too large" if answer.sum() > right.sum() else "Too small"
        raise Refused(hint if right.dim() else f"{size}: {hint}")


def call(function, *inputs):
    """What the reader's function returns for copies of `inputs`; Refused if it fails."""
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    try:
        result = function(*copies)
    except Exception as error:
        raise Refused(f"Your code raised {brief(error)}") from None
    for x, given in zip(copies, inputs):
        changed = isinstance(x, torch.Tensor) and not torch.equal(x, given)
        refuse({"Your code changes a tensor that it was given: work on a copy.": changed})
    refuse({UNANSWERED: unanswered(result)})
    return result


def random_pair(*shape):
    """Two float64 tensors with the same numbers in every run."""
    draw = torch.Generator().manual_seed(42)
    return (2 * torch.randn(2, *shape, generator=draw).double()).unbind()


@exercise
def check_first_loss(answer, V):
    """Exercise 1: the loss of logits that are all 0, with V tokens."""
    slips = {
        "That is in bits, to base 2: our losses are in nats.": math.log2(V),
        "One token is missing: a name can also end.": math.log(V - 1),
        "That is the probability of each token: how surprising is it?": 1 / V,
        "The sign is wrong: a surprisal is never negative.": -math.log(V),
    }
    hint = "which probability has each token, and what is its surprisal in nats?"
    compare(answer, math.log(V), slips, hint)
    return "all tokens alike. A first loss far above that is a network confidently wrong."


@exercise
def check_windows(answer):
    """Exercise 2: the examples that 'ava' gives with context 3: (context, next) pairs."""
    right = [("...", "a"), ("..a", "v"), (".av", "a"), ("ava", ".")]
    pairs = [(context, target) for context, target in answer]
    lengths = [(len(context), len(target)) for context, target in pairs]
    turned = pairs == [(y, x) for x, y in right]
    backwards = pairs == [(x[::-1], y) for x, y in right]
    faults = {
        f"You have {len(pairs)} examples: how does a name begin, and end?": len(pairs) != 4,
        "Turned round: the context comes first in each pair.": turned,
        "The contexts run backwards: the most recent character stands last.": backwards,
        "Each pair is 3 characters and 1: what stands before a name?": lengths != [(3, 1)] * 4,
    }
    refuse(faults)
    wrong = [i for i, (pair, wanted) in enumerate(zip(pairs, right), start=1) if pair != wanted]
    refuse({f"Not right yet, pairs {wrong}: what stands before, what follows?": wrong})
    return "one example for each letter and one for the end, so n letters give n + 1."


@exercise
def check_parameters(answer, V):
    """Exercise 3: the parameters of a network with two normalised hidden layers."""
    E, T, A, B = 8, 4, 50, 30  # embedding, context, and the sizes of the two hidden layers
    right = E * V + T * E * A + 2 * A + A * B + 2 * B + B * V + V
    slips = {
        "Too many: does a Linear before BatchNorm need a bias (section 7)?": right + A + B,
        "Too many: running averages are not trained.": right + 2 * (A + B),
        "Too few: BatchNorm has parameters of its own.": right - 2 * (A + B),
        "Too few: what has BatchNorm for each unit, instead of a bias?": right - A - B,
        "Too few: no BatchNorm follows the last layer, so what has it left?": right - V,
        "Too few: the embedding is trained like everything else.": right - E * V,
        "Too few: the first Linear sees four embeddings side by side.": right - 3 * E * A,
    }
    hint = "go through the layers one by one, from the embedding to the last Linear."
    compare(answer, right, slips, hint, 1e-9)
    return "hardly anything sits in the embedding; most weights are in the widest matrix."


@exercise
def check_surprisal(answer):
    """Exercise 4: (probability of a name, perplexity) from its surprisals."""
    total, n = sum(SURPRISALS_OF_AVA), len(SURPRISALS_OF_AVA)
    probability, perplexity = as_numbers(answer, (2,))
    slips = {
        "Probability: that is for an average character, not for all.": math.exp(-total / n),
        "Probability: the end has to be drawn, too.": math.exp(SURPRISALS_OF_AVA[-1] - total),
    }
    hint = "probability: surprisals add up where probabilities are multiplied."
    compare(probability, math.exp(-total), slips, hint)
    slips = {
        "Perplexity: it is a mean over characters, not a total.": math.exp(total),
        "Perplexity: the end counts as a character, too.": math.exp(total / (n - 1)),
        "Perplexity: that is the loss; perplexity is a number of choices.": total / n,
    }
    hint = "perplexity: as many equally likely choices would have the same mean surprisal."
    compare(perplexity, math.exp(total / n), slips, hint)
    return "a blind guesser's is the number of tokens: training leaves fewer to choose from."


@exercise
def check_interval(answer):
    """Exercise 5: (mean, half-width) of the paired difference, with minus without."""
    without, with_it = (torch.tensor(r).double() for r in (WITHOUT_RUNS, WITH_RUNS))
    differences, t, root = with_it - without, 2.776, len(WITH_RUNS) ** 0.5
    mean, s = differences.mean(), differences.std()
    strangers = (without.var() + with_it.var()).sqrt() / root
    yours, half = as_numbers(answer, (2,))
    hint = "mean: take the difference of each pair, with minus without, and average."
    compare(yours, mean, {"Mean: the sign is that of without minus with.": -mean}, hint)
    slips = {
        "Half-width: these are no strangers, the runs come in pairs.": t * strangers,
        "Half-width: in pairs, please, and with n - 1 degrees of freedom.": 2.306 * strangers,
        "Half-width: 1.96 is for many values; for so few use Student's t.": 1.96 * s / root,
        "Half-width: that is the standard deviation of the differences.": s,
        "Half-width: that is the standard error; t is missing.": s / root,
        "Half-width: divide by n - 1 in the variance.": t * s * 0.8**0.5 / root,
    }
    hint = "half-width: from the standard deviation of the differences, as in section 10."
    compare(half, t * s / root, slips, hint)
    return "0 lies outside. Unpaired, the same losses would show no measurable difference."


@exercise
def check_equal_attention(answer):
    """Exercise 6: the causal attention weights of four positions, all scores equal."""
    seen, earlier = (torch.ones(4, 4).tril(k).double() for k in (0, -1))
    right = seen / seen.sum(1, keepdim=True)
    slips = {
        "No position may look ahead: where is the mask?": torch.full((4, 4), 1 / 4),
        "Each row must sum to 1: softmax comes after the mask.": seen,
        "Each row must sum to 1: the mask comes before softmax, not after.": seen / 4,
        "Rows and columns are exchanged: row i is the position that looks.": right.T,
        "A position may look at itself, too.": earlier / earlier.sum(1, True).clamp(min=1),
    }
    hint = "Not so: each row is softmax of equal scores, over what its position may look at."
    compare(answer, right, slips, hint)
    return "with equal scores attention is a plain mean of all that came before."


@exercise
def check_nucleus(function, V):
    """Exercise 7: the properties of a top-p filter, on random probabilities."""
    p = random_pair(50, V)[0].softmax(1)
    for share in (0.7, 0.9, 1e-6, 1.0):
        q, at = as_numbers(call(function, p, share), p.shape), f"share {share:g}:"
        kept = q > 0
        mass = (p * kept).sum(1, keepdim=True)
        least = p.masked_fill(~kept, 2).amin(1, keepdim=True)  # the least likely one kept
        swapped = "a token is kept, a likelier one is not: is each in its own column?"
        few = "too little is kept: the token that reaches the share belongs to it."
        scaled = "the right tokens, but only a row's sum may change: it should be 1."
        faults = {
            f"{at} in some row nothing is left, not even the likeliest.": not kept.any(1).all(),
            f"{at} {swapped}": (~kept & (p > least)).any(),
            f"{at} {few}": (mass < share - 1e-9).any(),
            f"{at} too much is kept: fewer tokens do.": (mass - least > share + 1e-9).any(),
            f"{at} {scaled}": not torch.allclose(q, p * kept / mass),
        }
        refuse(faults)
    return "unlike top-k it keeps few tokens where the model is sure, many where not."


@exercise
def check_silu(layer_class):
    """Exercise 8: forward and backward of the reader's layer against autograd, float64."""
    x, dy = random_pair(40, 6)
    y, dx = torch.autograd.functional.vjp(F.silu, x, dy)
    layer, sigma = call(layer_class), x.sigmoid()
    compare(call(layer.forward, x), y, {}, "forward: the values are not the formula's.", 1e-8)
    bend = x * sigma * (1 - sigma)
    slips = {
        "backward: x stands in the formula twice; you have followed one way only.": dy * sigma,
        "backward: x stands in it twice; the way past the sigmoid is missing.": dy * bend,
        "backward: that is the layer's slope; where has dy gone?": sigma + bend,
    }
    hint = "backward: forward is right, dx is not. The product rule, and then times dy."
    compare(call(layer.backward, dy), dx, slips, hint, 1e-8)
    return "a gate that is open for large x, and unlike ReLU's it opens softly."


@exercise
def check_layer_norm_backward(function):
    """Exercise 9: the reader's dx against autograd through F.layer_norm, in float64."""
    (x, dy), (_, gamma) = random_pair(7, 12), random_pair(12)
    y = functools.partial(F.layer_norm, normalized_shape=(12,))  # before gamma
    dx = torch.autograd.functional.vjp(lambda x: y(x) * gamma, x, dy)[1]
    plain = torch.autograd.functional.vjp(y, x, dy)[1]
    s = (x.var(1, keepdim=True, correction=0) + 1e-5).rsqrt()
    xhat, dxhat = (x - x.mean(1, keepdim=True)) * s, dy * gamma
    mean, along = dxhat.mean(1, keepdim=True), xhat * (dxhat * xhat).mean(1, keepdim=True)
    slips = {
        "A term is missing: x also acts through the mean.": s * (dxhat - along),
        "A term is missing: x also acts through the variance.": s * (dxhat - mean),
        "Two terms are missing: mean and variance depend on x, too.": s * dxhat,
        "gamma is missing: the chain starts at y, not at xhat.": plain,
        "The factor s is missing.": dx / s,
        "Means, not sums: where is the number of features?": s * (dxhat - 12 * (mean + along)),
    }
    hint = "The values are wrong: follow x's three ways: directly, through the mean, through s."
    compare(call(function, dy, xhat, s, gamma), dx, slips, hint, 1e-8)
    return "dx has no mean and no part along xhat: the layer undoes shift and scale."


@exercise
def check_beats(build, rival, names, steps):
    """Exercise 10: a small, briefly trained network against a rival, on dev names."""
    network = call(build)
    if not all(hasattr(network, name) for name in ("size", "steps", "loss")):
        raise Refused("Return the trained network: something with size, steps and loss.")
    size, taken = f"{network.size:,} parameters", f"{network.steps:,} steps"
    loss, level = call(network.loss, names), rival.loss(names)
    numbers = f"{size}, {taken}, dev loss {loss:.4f} against {level:.4f}"
    faults = {
        "This network has not been trained: call train in your function.": not network.steps,
        f"{size} are too many: {rival.size:,} are allowed.": network.size > rival.size,
        f"{taken} are too many: {steps:,} are allowed.": network.steps > steps,
        f"Not there yet: {numbers}. What helped most in section 13?": not loss < level,
    }
    refuse(faults)
    return f"{numbers}. What a network sees may be worth more than how long it trains."


# Exercise 11. The rungs, each from those above it; leaves are X, Y, C, W, gamma, beta and U.
RUNGS = {
    "e": lambda f: f["C"][f["X"]].flatten(1),
    "a": lambda f: f["e"] @ f["W"],
    "mean": lambda f: f["a"].mean(0),
    "centred": lambda f: f["a"] - f["mean"],
    "var": lambda f: (f["centred"] ** 2).mean(0),
    "s": lambda f: (f["var"] + 1e-5) ** -0.5,
    "xhat": lambda f: f["centred"] * f["s"],
    "y": lambda f: f["gamma"] * f["xhat"] + f["beta"],
    "h": lambda f: f["y"].tanh(),
    "z": lambda f: f["h"] @ f["U"],
    "p": lambda f: f["z"].softmax(1),
    "loss": lambda f: -f["p"].gather(1, f["Y"][:, None]).log().mean(),
}
DOWN = tuple("p z h U y gamma beta xhat s var centred mean a W e C".split())


def ladder_leaves():
    """X (32, 3) with many repeats, Y (32,), and the parameters, float64."""
    draw = torch.Generator().manual_seed(11)
    shapes = {"C": (6, 4), "W": (12, 5), "gamma": (5,), "beta": (5,), "U": (5, 6)}
    leaves = {k: torch.randn(n, generator=draw).double() for k, n in shapes.items()}
    ids = torch.randint(6, (32, 4), generator=draw)
    return leaves | {"X": ids[:, :3].contiguous(), "Y": ids[:, 3].contiguous()}


def climb(leaves, **moved):
    """All values of the ladder; those in `moved` instead of what they would be."""
    f = leaves | moved
    for rung, node in RUNGS.items():
        f[rung] = f[rung] if rung in moved else node(f)
    return f


def by_autograd(leaves):
    """The first check: {rung: gradient}."""
    with torch.enable_grad():
        f = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in leaves.items()}
        f = climb(f)
        return dict(zip(DOWN, torch.autograd.grad(f["loss"], [f[rung] for rung in DOWN])))


def by_differences(leaves, rung, place, step=1e-6):
    """The second check: one entry of a gradient, from two losses with that entry moved."""
    value = climb(leaves)[rung]
    nudge = torch.zeros_like(value)
    nudge[place] = step
    up, down = (climb(leaves, **{rung: value + way})["loss"] for way in (nudge, -nudge))
    return (up - down).item() / (2 * step)


def ladder_slips(f, g, rung):
    """What typical slips would give at a rung: {line: value}; g holds the right gradients."""
    B, X = len(f["Y"]), f["X"].reshape(-1)
    last = torch.zeros_like(f["C"]).index_put((X,), g["e"].view(len(X), -1))
    own = {
        "z": {"each p depends on all z of its row, not on its own only.": g["p"] * f["p"]},
        "y": {"tanh's slope is 1 - h**2: h, not y.": g["h"] * (1 - f["y"] ** 2)},
        "xhat": {"the factor gamma is missing.": g["y"]},
        "var": {"the power goes down by one: -1.5, not -0.5.": g["s"] * -0.5 * f["s"]},
        "centred": {"it is used twice; the way through var is missing.": g["xhat"] * f["s"]},
        "a": {"it is used twice; the way through the mean is missing.": g["centred"]},
        "C": {"of a character that occurs twice one gradient is lost: use index_add_.": last},
    }
    return own.get(rung, {}) | {
        "a sign is wrong.": -g[rung],
        "the 1/B of a mean is missing.": B * g[rung],
    }


@exercise
def check_ladder(function):
    """Exercise 11: each rung against autograd and finite differences, the first slip named."""
    leaves = ladder_leaves()
    f, right = climb(leaves), by_autograd(leaves)
    answers = call(lambda *values: function(dict(zip(f, values))), *f.values())
    for done, rung in enumerate(DOWN):
        missing = f'{done} of {len(DOWN)} rungs are right. Next: g["{rung}"].'
        refuse({missing: answers.get(rung) is None})
        try:
            value = as_numbers(answers[rung], right[rung].shape)
            worst = torch.unravel_index((value - right[rung]).abs().argmax(), value.shape)
            place = tuple(index.item() for index in worst)
            moved, yours = by_differences(leaves, rung, place), value[place].item()
            hint = f"at {place} finite differences give {moved:.6f}, yours is {yours:.6f}."
            compare(value, right[rung], ladder_slips(f, right, rung), hint, 1e-7)
            refuse({f"the two checks disagree; {hint}": abs(moved - yours) > 1e-6})
        except Refused as reason:
            raise Refused(f'g["{rung}"]: {reason}') from None
    return f"all {len(DOWN)} rungs, by autograd and by finite differences."


def suspects(Embedding, BatchNorm1d, Dropout):
    """Exercise 12: five layers, each wrong in one way (do not read on before you have hunted)."""

    class A(BatchNorm1d):
        def backward(self, dy):
            dx = super().backward(dy)
            return dx + self.gamma * self.s * self.dbeta / len(dy) if self.by_batch else dx

    class B(Dropout):
        def forward(self, x):
            y = super().forward(x)
            return y if self.mask is None else x * self.mask.mul_(1 - self.rate)

    class C(Embedding):
        def backward(self, dy):
            self.dC.zero_()[self.ids] = dy.reshape(len(self.ids), -1)

    class D(Dropout):
        ever = False

        def forward(self, x):
            now = self.training
            self.ever = self.training = self.ever or now
            y = super().forward(x)
            self.training = now
            return y

    class E(BatchNorm1d):
        def forward(self, x):
            before, y = self.running_var.clone(), super().forward(x)
            if self.by_batch:
                unbiased = before + (self.running_var - before) / self.momentum
                self.running_var -= self.momentum * unbiased / len(x)
            return y

    return {kind.__name__: kind for kind in (A, B, C, D, E)}


CULPRITS = {  # the fault of each, and how to find it
    "A": ("mean", "check its dx in training mode."),
    "B": ("scale", "send many ones through it in training mode and take the mean."),
    "C": ("repeats", "check its dC on a batch with repeated characters."),
    "D": ("mode", "train it one step, then ask it twice at rest."),
    "E": ("variance", "feed it small batches and compare its running_var with x.var(0)."),
}


@exercise
def check_hunt(answer):
    """Exercise 12: which of the five faults each suspect has."""
    words = [word for word, _ in CULPRITS.values()]
    for name, word in answer.items():
        stray = f"{name}: {word!r} is none of the words {', '.join(words)}."
        refuse({stray: word is not None and word not in words})
    found = sum(answer[name] == word for name, (word, _) in CULPRITS.items())
    for name, (word, tool) in CULPRITS.items():
        line = f"{found} of {len(CULPRITS)} are right. Look again at {name}: {tool}"
        refuse({line: answer[name] != word})
    return "and none of the five would have shown in a training loss."
