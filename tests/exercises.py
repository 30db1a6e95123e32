"""The checks of section 18 of the notebook, which imports them. The answers are in here.

Each check prints one line and never raises: right, or what may have gone wrong. A check is the
right answer and a table of slips: {what a typical slip would give: the line that names it}.
"""

import functools
import math

import torch
import torch.nn.functional as F

UNANSWERED = "Not answered yet: put your answer in place of None and run the cell again."
SURPRISALS_OF_AVA = (2.0, 3.5, 0.5, 1.0)  # exercise 4: nats for a, v, a and the end
WITHOUT_RUNS = (2.31, 2.35, 2.29, 2.33, 2.32)  # exercise 5: dev losses of five seeds
WITH_RUNS = (2.29, 2.32, 2.28, 2.30, 2.31)  # the same five seeds


class Verdict(Exception):
    """Ends a check early; its text is the line to print."""


def exercise(check):
    """Make check(answer, ...), which returns a line, print that line; nothing raises."""

    @functools.wraps(check)
    def printed(answer=None, *more):
        try:
            if unanswered(answer):
                raise Verdict(UNANSWERED)
            line = check(answer, *more)
        except Verdict as early:
            line = str(early)
        except Exception as error:
            kind = type(error).__name__
            line = f"This cannot be read as an answer ({kind}): see the question."
        print(line)

    return printed


def unanswered(answer):
    """Whether nothing has been put in place of None yet."""
    return answer is None or (
        isinstance(answer, list | tuple) and bool(answer) and all(map(unanswered, answer))
    )


def as_numbers(answer, shape):
    """The answer as a float64 tensor of this shape; a Verdict says why if it is none."""
    if unanswered(answer):
        raise Verdict(UNANSWERED)
    try:
        if isinstance(answer, str | bytes):
            raise TypeError
        tensor = torch.as_tensor(answer).detach().cpu()
        if tensor.is_complex():
            raise TypeError
        tensor = tensor.double()
    except Exception:
        kind = type(answer).__name__
        raise Verdict(f"Numbers are asked for: this {kind} cannot be read as such.") from None
    if tuple(shape) == () and tensor.numel() == 1:
        tensor = tensor.reshape(())
    if tensor.shape != torch.Size(shape):
        wanted = f"of shape {tuple(shape)}" if shape else "a single number"
        yours = tuple(tensor.shape)
        raise Verdict(f"The answer should be {wanted}, yours has shape {yours}.")
    if not tensor.isfinite().all():
        raise Verdict("The answer should be finite: there is a nan or an infinity in yours.")
    return tensor


def verdict(answer, right, praise, slips, hint="", tolerance=1e-3):
    """The line for an answer: right, a known slip ({line: what it would give}), or the hint."""
    right = torch.as_tensor(right).double()
    answer = as_numbers(answer, right.shape)

    def close(value):
        value = torch.as_tensor(value).double().expand(right.shape)
        return torch.allclose(answer, value, rtol=tolerance, atol=1e-9)

    if close(right):
        return f"Right: {praise}"
    found = next((line for line, value in slips.items() if close(value)), None)
    if found or right.dim():
        return found or hint
    return f"Too {'large' if answer > right else 'small'}: {hint}"


def one_by_one(answer, *parts):
    """Verdicts on the numbers of a tuple: the first that is not right, else the last."""
    numbers = as_numbers(answer, (len(parts),))
    for number, part in zip(numbers, parts):
        line = verdict(number, *part)
        if not line.startswith("Right"):
            break
    return line


def call(function, *inputs):
    """What the reader's function returns for copies of `inputs`; a Verdict if it fails."""
    if not callable(function):
        kind = type(function).__name__
        raise Verdict(f"A function or a class is asked for, not {kind}.")
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    try:
        result = function(*copies)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise Verdict(f"Your code raised {type(error).__name__}: {reason}") from None
    for x, given in zip(copies, inputs):
        if isinstance(x, torch.Tensor) and not torch.equal(x, given):
            raise Verdict("Your code changes a tensor that it was given: work on a copy.")
    return result


def random_pair(*shape):
    """Two float64 tensors with the same numbers in every run."""
    draw = torch.Generator().manual_seed(42)
    return (2 * torch.randn(2, *shape, generator=draw).double()).unbind()


@exercise
def check_first_loss(answer, V):
    """Exercise 1: the loss of logits that are all 0, with V tokens."""
    praise = "all tokens alike. A first loss far above that is a network confidently wrong."
    slips = {
        "That is in bits, to base 2: our losses are in nats.": math.log2(V),
        "That is a logarithm to base 10: our losses are in nats.": math.log10(V),
        "One token is missing: a name can also end.": math.log(V - 1),
        "That is the probability of each token: how surprising is it?": 1 / V,
        "That is the number of tokens; the loss is about the probability of one.": V,
        "A loss of 0 is a prophet's: equal logits are not a sure prediction.": 0.0,
        "The sign is wrong: a surprise is never negative.": -math.log(V),
    }
    hint = "which probability has each token, and what is the surprise about it in nats?"
    return verdict(answer, math.log(V), praise, slips, hint)


@exercise
def check_windows(answer):
    """Exercise 2: the examples that 'ava' gives with context 3: (context, next) pairs."""
    padded, T = "..." + "ava" + ".", 3
    right = [(padded[i : i + T], padded[i + T]) for i in range(len(padded) - T)]
    try:
        pairs = [(context, target) for context, target in answer]
    except (TypeError, ValueError):
        raise Verdict("A list of pairs is asked for: [(context, next), ...].") from None
    if not all(isinstance(part, str) for pair in pairs for part in pair):
        return "Context and next should both be strings."
    for slip, line in [
        (
            right,
            "Right: one example for each letter and one for the end, so n letters give n + 1.",
        ),
        (
            [(y, x) for x, y in right],
            "Turned round: the context comes first in each pair.",
        ),
        (
            [(x[::-1], y) for x, y in right],
            "The contexts run backwards: the most recent character stands last.",
        ),
        (right[:-1], "An example is missing: the model must also learn when to stop."),
        (
            right[1:],
            "An example is missing: the model must also learn how a name begins.",
        ),
        (
            right[1:-1],
            "Examples are missing: a model must learn how a name begins, and ends.",
        ),
    ]:
        if pairs == slip:
            return line
    if any(len(context) != T for context, _ in pairs):
        return f"Each context should have exactly {T} characters: what stands before a name?"
    if any(len(target) != 1 for _, target in pairs):
        return "Only one character is predicted at a time."
    if sorted(pairs) == sorted(right):
        return "All pairs are there, but not in the order in which they occur in the name."
    if len(pairs) != len(right):
        return f"You have {len(pairs)} examples: count one for each thing to be foretold."
    wrong = next(i for i, pair in enumerate(pairs) if pair != right[i])
    return f"Pair {wrong + 1} is not right: which characters stand before, which follows?"


@exercise
def check_parameters(answer, V):
    """Exercise 3: the parameters of a network with two normalised hidden layers."""
    E, T, A, B = (
        8,
        4,
        50,
        30,
    )  # embedding, context, and the sizes of the two hidden layers
    right = E * V + T * E * A + 2 * A + A * B + 2 * B + B * V + V
    slips = {
        "Too many: does a Linear before BatchNorm need a bias (section 7)?": right + A + B,
        "Too many: running averages are not trained.": right + 2 * (A + B),
        "Too few: BatchNorm has parameters of its own.": right - 2 * (A + B),
        "Too few: what has BatchNorm for each unit, instead of a bias?": right - A - B,
        "Too few: no BatchNorm follows the last layer, so what has it left?": right - V,
        "Too few: the embedding is trained like everything else.": right - E * V,
        "Too many: one embedding table serves all four places.": right + 3 * E * V,
        "Too few: the first Linear sees four embeddings side by side.": right - 3 * E * A,
    }
    praise = "hardly anything sits in the embedding; most weights are in the widest matrix."
    hint = "go through the layers one by one, from the embedding to the last Linear."
    return verdict(answer, right, praise, slips, hint, 1e-9)


@exercise
def check_surprisal(answer):
    """Exercise 4: (probability of a name, perplexity) from its surprises."""
    s, total, n = SURPRISALS_OF_AVA, sum(SURPRISALS_OF_AVA), len(SURPRISALS_OF_AVA)
    slips = {
        "Probability: surprises in nats belong to base e, not 2.": 2**-total,
        "Probability: that is for an average character, not for all.": math.exp(-total / n),
        "Probability: all have to happen, so do not add.": sum(math.exp(-x) for x in s),
        "Probability: the end has to be drawn, too.": math.exp(s[-1] - total),
        "Probability: that is the total surprise; one step is left.": total,
    }
    hint = "probability: surprises add up where probabilities are multiplied."
    probability = math.exp(-total), "", slips, hint
    slips = {
        "Perplexity: nats belong to base e, not 2.": 2 ** (total / n),
        "Perplexity: it is a mean over characters, not a total.": math.exp(total),
        "Perplexity: the end counts as a character, too.": math.exp(total / (n - 1)),
        "Perplexity: that is the loss; perplexity is a number of choices.": total / n,
        "Perplexity: average the surprises, not the choices.": sum(map(math.exp, s)) / n,
        "Perplexity: that is its inverse.": math.exp(-total / n),
    }
    hint = "perplexity: as many equally likely choices would have the same mean surprise."
    praise = "a blind guesser's is the number of tokens: training leaves fewer to choose from."
    return one_by_one(answer, probability, (math.exp(total / n), praise, slips, hint))


@exercise
def check_interval(answer):
    """Exercise 5: (mean, half-width) of the paired difference, with minus without."""
    without, with_it = (torch.tensor(r).double() for r in (WITHOUT_RUNS, WITH_RUNS))
    differences, t, n = with_it - without, 2.776, len(WITH_RUNS)
    mean, s = differences.mean().item(), differences.std().item()
    half, strangers = (
        t * s / n**0.5,
        ((without.var() + with_it.var()) / n).sqrt().item(),
    )
    hint = "mean: take the difference of each pair, with minus without, and average."
    first = mean, "", {"Mean: the sign is that of without minus with.": -mean}, hint
    unpaired = "Half-width: you took two groups of strangers, but the runs come in pairs."
    if any(  # with t of 4 or 8 degrees of freedom, or of the normal distribution
        math.isclose(as_numbers(answer, (2,))[1], t * strangers, rel_tol=1e-3)
        for t in (2.776, 2.306, 1.96)
    ):
        raise Verdict(unpaired)
    slips = {
        "Half-width: 1.96 is for many values; for so few use Student's t.": 1.96 * s / n**0.5,
        "Half-width: that is for single runs; a mean of n is surer than one.": t * s,
        "Half-width: that is the standard deviation of the differences.": s,
        "Half-width: that is the standard error; t is missing.": s / n**0.5,
        "Half-width: divide by n - 1 in the variance.": half * ((n - 1) / n) ** 0.5,
        "Half-width: t has n - 1 degrees of freedom.": half * 2.571 / t,
    }
    hint = "half-width: from the standard deviation of the differences, as in section 10."
    praise = "0 lies outside. Unpaired, the same losses would show no measurable difference."
    return one_by_one(answer, first, (half, praise, slips, hint))


@exercise
def check_equal_attention(answer):
    """Exercise 6: the causal attention weights of four positions, all scores equal."""
    T = 4
    seen, earlier = (torch.ones(T, T).tril(k).double() for k in (0, -1))
    right = seen / seen.sum(1, keepdim=True)
    slips = {
        "No position may look ahead: where is the mask?": torch.full((T, T), 1 / T),
        "Each row must sum to 1: softmax comes after the mask.": seen,
        "Each row must sum to 1: the mask comes before softmax, not after.": seen / T,
        "Rows and columns are exchanged: row i is the position that looks.": right.T,
        "Columns sum to 1; softmax is over what a position looks at.": seen / seen.sum(0),
        "A position may look at itself, too.": earlier / earlier.sum(1, True).clamp(min=1),
    }
    praise = "with equal scores attention is a plain mean of all that came before."
    A, hint = as_numbers(answer, (T, T)), "What is softmax of equal scores?"
    if (A.sum(1) - 1).abs().max() > 1e-2:
        hint = "Each row must sum to 1. " + hint
    elif A.triu(1).abs().max() > 0:
        hint = "No position may look ahead. " + hint
    return verdict(A, right, praise, slips, hint, 2e-3)


@exercise
def check_nucleus(function, V):
    """Exercise 7: the properties of a top-p filter, on random probabilities."""
    p = random_pair(50, V)[0].softmax(1)
    for share in (0.7, 0.9, 1e-6, 1.0):
        q, at = call(function, p, share), f"share {share:g}:"
        if isinstance(q, torch.Tensor) and q.isnan().any():
            return f"{at} there is a nan; was there a row in which nothing was left to scale?"
        q = as_numbers(q, p.shape)
        kept, mass = q > 0, (p * (q > 0)).sum(1)
        least = p.masked_fill(~kept, 2).amin(1)  # the least likely token that was kept
        for wrong, line in [
            ((q < 0).any(), "a probability below 0."),
            (
                not kept.any(1).all(),
                "in some row nothing is left, not even the likeliest.",
            ),
            (
                (p.masked_fill(kept, -1).amax(1) > least).any(),
                "a token is kept, a likelier one is not: is each in its own column?",
            ),
            (
                (mass < share - 1e-9).any(),
                "too little is kept: the token that reaches the share belongs to it.",
            ),
            (
                (mass - least > share + 1e-9).any(),
                "too much is kept: fewer tokens would do.",
            ),
            (
                not torch.allclose(q.sum(1), torch.ones(50).double()),
                "the rows do not sum to 1 any more.",
            ),
            (
                not torch.allclose(q, p * kept / mass[:, None]),
                "the right tokens, but among them the proportions have changed.",
            ),
        ]:
            if wrong:
                return f"{at} {line}"
    return "Right: unlike top-k it keeps few tokens where the model is sure, many where not."


@exercise
def check_silu(layer_class):
    """Exercise 8: forward and backward of the reader's layer against autograd, float64."""
    x, dy = random_pair(40, 6)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        F.silu(leaf).backward(dy)
    layer, sigma = call(layer_class), x.sigmoid()
    slips = {
        "forward: that is the sigmoid alone; x is missing.": sigma,
        "forward: that is tanh(x).": x.tanh(),
        "forward: that is ReLU.": x.clamp_min(0),
    }
    hint = "forward: the values are not those of the formula."
    line = verdict(call(layer.forward, x), x * sigma, "", slips, hint, 1e-8)
    if not line.startswith("Right"):
        return line
    dx, bend = call(layer.backward, dy), x * sigma * (1 - sigma)
    if dx is None:
        raise Verdict("Not answered yet: forward is right; backward still returns None.")
    slips = {
        "backward: x stands in the formula twice; you have followed one way only.": dy * sigma,
        "backward: x stands in it twice; the way past the sigmoid is missing.": dy * bend,
        "backward: that is the layer's slope; where has dy gone?": sigma + bend,
        "backward: that is the sigmoid's gradient; x times it is a product.": bend / x * dy,
        "backward: a sign is wrong.": dy * (sigma - bend),
    }
    hint = "backward: forward is right, dx is not. The product rule, and then times dy."
    praise = "a gate that is open for large x, and unlike ReLU's it opens softly."
    line = verdict(dx, leaf.grad, praise, slips, hint, 1e-8)
    if line.startswith("Right") and not torch.equal(dx, call(layer.backward, dy)):
        return "backward: a second call gives another dx; leave what forward kept as it is."
    return line


@exercise
def check_layer_norm_backward(function):
    """Exercise 9: the reader's dx against autograd through F.layer_norm, in float64."""
    x, dy = random_pair(7, 12)
    x, gamma = 3 * x + 1, random_pair(12)[1]
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        F.layer_norm(leaf, (12,), gamma).backward(dy)
    s = (x.var(1, keepdim=True, correction=0) + 1e-5).rsqrt()
    xhat, dxhat = (x - x.mean(1, keepdim=True)) * s, dy * gamma

    def project(g, dim=1, mean=1.0, along=1.0):
        """g without its mean and without its part along xhat, in the given measure."""
        taken = mean * g.mean(dim, keepdim=True)
        return g - taken - along * xhat * (g * xhat).mean(dim, keepdim=True)

    slips = {
        "A term is missing: x also acts through the mean.": s * project(dxhat, mean=0.0),
        "A term is missing: x also acts through the variance.": s * project(dxhat, along=0.0),
        "Two terms are missing: mean and variance depend on x, too.": s * dxhat,
        "gamma is missing: the chain starts at y, not at xhat.": s * project(dy),
        "gamma stands outside: it varies within a row.": s * gamma * project(dy),
        "Those are BatchNorm's means: which way round is it here?": s * project(dxhat, 0),
        "The factor s is missing.": project(dxhat),
        "Sums instead of means: where is the number of features?": s
        * project(dxhat, mean=12.0, along=12.0),
    }
    praise = "dx has no mean and no part along xhat: the layer undoes shift and scale."
    hint = "The values are wrong: follow x's three ways: directly, through the mean, through s."
    return verdict(call(function, dy, xhat, s, gamma), leaf.grad, praise, slips, hint, 1e-8)


@exercise
def check_beats(build, rival, names, steps):
    """Exercise 10: a small, briefly trained network against a rival, on dev names."""
    network = call(build)
    if network is None:
        raise Verdict(UNANSWERED)
    if not all(hasattr(network, name) for name in ("size", "steps", "loss")):
        return "Return the trained network: something with size, steps and loss."
    if not network.steps:
        return "This network has not been trained: call train in your function."
    if network.size > rival.size:
        return f"Too many parameters: {network.size:,}, and only {rival.size:,} are allowed."
    if network.steps > steps:
        return f"Too many steps: {network.steps:,}, and only {steps:,} are allowed."
    loss, level = call(network.loss, names), rival.loss(names)
    numbers = f"{network.size:,} parameters, {network.steps:,} steps"
    numbers += f", dev loss {loss:.4f} against {level:.4f}"
    if not math.isfinite(loss):
        return f"The training failed: {numbers}."
    if loss >= level:
        return f"Not there yet: {numbers}. What does section 13 say helped most?"
    return f"Right: {numbers}. What a network sees may be worth more than how long it trains."


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


def climb(leaves, moved=None):
    """All values of the ladder; those in `moved` instead of what they would be."""
    moved = moved or {}
    f = leaves | moved
    for rung, node in RUNGS.items():
        f[rung] = f[rung] if rung in moved else node(f)
    return f


def by_autograd(leaves):
    """The first judge: {rung: gradient}."""
    with torch.enable_grad():
        f = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in leaves.items()}
        f = climb(f)
        for rung in DOWN:
            f[rung].retain_grad()
        f["loss"].backward()
    return {rung: f[rung].grad for rung in DOWN}


def by_differences(leaves, rung, place, step=1e-6):
    """The second judge: one entry of a gradient, from two losses with that entry moved."""
    losses = []
    for sign in (1, -1):
        value = climb(leaves)[rung].clone()
        value[place] += sign * step
        losses.append(climb(leaves, {rung: value})["loss"].item())
    return (losses[0] - losses[1]) / (2 * step)


def ladder_slips(f, g, rung):
    """What typical slips would give at a rung: {line: value}; g holds the right gradients."""
    B, X = len(f["Y"]), f["X"].reshape(-1)
    lent = g["e"].view(len(X), -1)
    own = {
        "z": {"each p depends on all z of its row, not on its own only.": g["p"] * f["p"]},
        "y": {
            "tanh's slope is 1 - h**2: h, not y.": g["h"] * (1 - f["y"] ** 2),
            "the slope of tanh is missing.": g["h"],
        },
        "gamma": {"gamma multiplies xhat: that is beta's gradient.": g["beta"]},
        "xhat": {"the factor gamma is missing.": g["y"]},
        "s": {"s multiplies centred, not a.": (g["xhat"] * f["a"]).sum(0)},
        "var": {
            "the power goes down by one: -1.5, not -0.5.": g["s"] * -0.5 * f["s"],
            "the factor -1/2 is missing.": -2 * g["var"],
        },
        "centred": {
            "it is used twice; the way through var is missing.": g["xhat"] * f["s"],
            "it is used twice; the way through xhat is missing.": g["centred"] - g["xhat"] * f["s"],
        },
        "a": {
            "it is used twice; the way through the mean is missing.": g["centred"],
            "the mean's way brings 1/B of it to each row.": g["centred"] + g["mean"],
        },
        "C": {
            "a character that occurs again has lost all gradients but one (the trap of "
            "`dC[X] += d`): use index_add_.": torch.zeros_like(f["C"]).index_put((X,), lent),
        },
    }
    return own.get(rung, {}) | {
        "a sign is wrong.": -g[rung],
        "the 1/B of a mean is missing.": B * g[rung],
        "there is one 1/B too many.": g[rung] / B,
    }


@exercise
def check_ladder(function):
    """Exercise 11: each rung against autograd and finite differences, the first slip named."""
    leaves = ladder_leaves()
    f, right = climb(leaves), by_autograd(leaves)
    copies = {k: v.clone() for k, v in f.items()}
    answers = call(lambda: function(copies)) if callable(function) else call(function)
    if not all(torch.equal(v, copies.get(k, v)) for k, v in f.items()):
        return "Your code changes a tensor that it was given: work on a copy."
    if answers is None:
        raise Verdict(UNANSWERED)
    if not isinstance(answers, dict):
        return "Return g, a dictionary with a gradient for each rung."
    for done, rung in enumerate(DOWN):
        if answers.get(rung) is None:
            if not done:
                raise Verdict(UNANSWERED)
            return f'{done} of {len(DOWN)} rungs are right. Next: g["{rung}"].'
        try:
            value = as_numbers(answers[rung], right[rung].shape)
        except Verdict as early:
            return f'g["{rung}"]: {early}'
        place = tuple(torch.unravel_index((value - right[rung]).abs().argmax(), value.shape))
        moved, yours = by_differences(leaves, rung, place), value[place].item()
        where = [int(i) for i in place]
        hint = f"at {where} finite differences give {moved:.6f}, yours is {yours:.6f}."
        line = verdict(value, right[rung], "", ladder_slips(f, right, rung), hint, 1e-7)
        if not line.startswith("Right"):
            return f'g["{rung}"]: {line}'
        if abs(moved - yours) > 1e-6:
            return f'g["{rung}"]: the two judges disagree; {hint}'
    return f"Right: all {len(DOWN)} rungs, by autograd and by finite differences."


def suspects(Embedding, BatchNorm1d, Dropout):
    """Exercise 12: five layers, each wrong in one way (do not read on before you have hunted)."""

    class A(BatchNorm1d):
        def backward(self, dy):
            dx = super().backward(dy)
            return dx + self.gamma * self.s * self.dbeta / len(dy) if self.by_batch else dx

    class B(Dropout):
        def forward(self, x):
            y = super().forward(x)
            if self.mask is None:
                return y
            self.mask = self.mask * (1 - self.rate)
            return x * self.mask

    class C(Embedding):
        def backward(self, dy):
            self.dC.zero_()[self.ids] = dy.reshape(len(self.ids), -1)

    class D(Dropout):
        ever = False

        def forward(self, x):
            self.ever, now = self.ever or self.training, self.training
            self.training = self.ever
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


CULPRITS = {"A": "mean", "B": "scale", "C": "repeats", "D": "mode", "E": "variance"}
TOOLS = {
    "A": "judge its dx in training mode.",
    "B": "send many ones through it in training mode and take the mean.",
    "C": "judge its dC on a batch with repeated characters.",
    "D": "train it one step, then ask it twice at rest.",
    "E": "feed it small batches and compare its running_var with x.var(0).",
}


@exercise
def check_hunt(answer):
    """Exercise 12: which of the five faults each suspect has."""
    if not isinstance(answer, dict) or set(answer) != set(CULPRITS):
        return f"A dictionary is asked for, with one word for each of {', '.join(CULPRITS)}."
    if all(map(unanswered, answer.values())):
        raise Verdict(UNANSWERED)
    for name, word in answer.items():
        if word is not None and word not in CULPRITS.values():
            return f"{name}: {word!r} is none of the words {', '.join(CULPRITS.values())}."
    wrong = [name for name, word in CULPRITS.items() if answer[name] != word]
    if wrong:
        found = len(CULPRITS) - len(wrong)
        return f"{found} of {len(CULPRITS)} are right. Look again at {wrong[0]}: {TOOLS[wrong[0]]}"
    return "Right: and none of the five would have shown in a training loss."
