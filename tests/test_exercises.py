"""The checks of section 18: right answers, every slip in their tables, placeholders, junk."""

import importlib.util
import inspect
import math
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
import torch.nn.functional as F
from notebook_code import NOTEBOOK, definitions
from small import fit, small

PATH = Path(__file__).resolve().parent / "exercises.py"
spec = importlib.util.spec_from_file_location("exercises", PATH)
ex = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ex)

V = 27
UNANSWERED = "Not answered yet"
AVA = [("...", "a"), ("..a", "v"), (".av", "a"), ("ava", ".")]
EQUAL = [[1 / (i + 1) if j <= i else 0 for j in range(4)] for i in range(4)]
PARAMETERS = 8 * V + 32 * 50 + 100 + 50 * 30 + 60 + 31 * V
HALF = 2.776 * 0.01 / 5**0.5
NEEDS_V = {"check_first_loss", "check_parameters", "check_nucleus"}
CHECKS = [name for name in vars(ex) if name.startswith("check_") and name != "check_beats"]


class SiLU:
    def forward(self, x):
        self.s, self.x = x.sigmoid(), x
        return x * self.s

    def backward(self, dy):
        return dy * (self.s + self.x * self.s * (1 - self.s))


def nucleus(p, share, before=True, scale=True, back=True):
    likeliest, column = p.sort(1, descending=True)
    total = likeliest.cumsum(1)
    kept = likeliest * ((total - likeliest if before else total) < share)
    kept = kept / kept.sum(1, keepdim=True) if scale else kept
    return torch.zeros_like(p).scatter(1, column, kept) if back else kept


def norm_backward(dy, xhat, s, gamma):
    g = dy * gamma
    along = (g * xhat).mean(1, keepdim=True)
    return s * (g - g.mean(1, keepdim=True) - xhat * along)


def descend(f):
    g, B, rows = {}, len(f["Y"]), torch.arange(len(f["Y"]))
    g["p"] = torch.zeros_like(f["p"])
    g["p"][rows, f["Y"]] = -1 / (B * f["p"][rows, f["Y"]])
    hot = torch.zeros_like(f["p"]).scatter(1, f["Y"][:, None], 1)
    g["z"] = (f["p"] - hot) / B
    g["h"], g["U"] = g["z"] @ f["U"].T, f["h"].T @ g["z"]
    g["y"] = g["h"] * (1 - f["h"] ** 2)
    g["gamma"], g["beta"] = (g["y"] * f["xhat"]).sum(0), g["y"].sum(0)
    g["xhat"] = g["y"] * f["gamma"]
    g["s"] = (g["xhat"] * f["centred"]).sum(0)
    g["var"] = -0.5 * f["s"] ** 3 * g["s"]
    g["centred"] = g["xhat"] * f["s"] + 2 / B * f["centred"] * g["var"]
    g["mean"] = -g["centred"].sum(0)
    g["a"] = g["centred"] + g["mean"] / B
    g["e"], g["W"] = g["a"] @ f["W"].T, f["e"].T @ g["a"]
    lent = g["e"].reshape(-1, f["C"].shape[1])
    g["C"] = torch.zeros_like(f["C"]).index_add(0, f["X"].reshape(-1), lent)
    return g


HUNT = {"A": "mean", "B": "scale", "C": "repeats", "D": "mode", "E": "variance"}
RIGHT = {
    "check_first_loss": [math.log(V), 3.296, torch.tensor([math.log(V)])],
    "check_windows": [AVA, tuple(list(pair) for pair in AVA)],
    "check_parameters": [PARAMETERS, float(PARAMETERS)],
    "check_surprisal": [(math.exp(-7), math.exp(7 / 4)), [0.000912, 5.755]],
    "check_interval": [(-0.02, HALF), torch.tensor([-0.02, HALF])],
    "check_equal_attention": [EQUAL, torch.tensor(EQUAL)],
    "check_nucleus": [nucleus],
    "check_silu": [SiLU],
    "check_layer_norm_backward": [norm_backward],
    "check_ladder": [descend],
    "check_hunt": [HUNT, dict(reversed(HUNT.items()))],
}


@pytest.fixture(scope="module")
def nb():
    return definitions()


@pytest.fixture
def say(capsys):
    """A function: the one line that a check prints for an answer."""

    def line(check, *answer):
        more = [V] if check in NEEDS_V else []
        assert getattr(ex, check)(*answer, *more) is None
        printed = capsys.readouterr().out
        assert printed.endswith("\n") and printed.count("\n") == 1, "one line, always"
        return printed.strip()

    return line


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_answer_is_right_in_every_form(say, check):
    for answer in RIGHT[check]:
        assert say(check, answer).startswith("Right: "), answer


@pytest.mark.parametrize("check", CHECKS)
def test_a_placeholder_is_an_answer_not_given_yet(say, check):
    placeholders = [None]
    if check in ("check_surprisal", "check_interval", "check_windows"):
        placeholders += [(None, None), [None]]
    if check in ("check_nucleus", "check_layer_norm_backward"):
        placeholders.append(lambda *_: None)
    if check == "check_ladder":
        placeholders += [lambda f: None, lambda f: {}, lambda f: {"p": None}]
    if check == "check_hunt":
        placeholders.append(dict.fromkeys(HUNT))
    for answer in placeholders:
        assert say(check, answer).startswith(UNANSWERED), answer


JUNK = ["text", object(), 1j, math.nan, [[1], [2, 3]], {}, torch.ones(9, 9), math.inf, [], -5]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("junk", JUNK, ids=str)
def test_junk_gets_one_sentence_and_is_never_right(say, check, junk):
    line = say(check, junk)
    assert line and not line.startswith(("Right", UNANSWERED)) and "Traceback" not in line


def slips_of(monkeypatch, check):
    """(the right value, slips, tolerance) of each verdict that a check asks for."""
    found, verdict = [], ex.verdict

    def spy(answer, right, praise, slips, hint="", tolerance=1e-3):
        found.append((torch.as_tensor(right).double(), dict(slips), tolerance))
        return verdict(answer, right, praise, slips, hint, tolerance)

    monkeypatch.setattr(ex, "verdict", spy)
    more = [V] if check in NEEDS_V else []
    getattr(ex, check)(RIGHT[check][0], *more)
    monkeypatch.undo()
    return found


TABLES = ["check_first_loss", "check_parameters", "check_surprisal", "check_interval"]
TABLES += ["check_equal_attention", "check_silu", "check_layer_norm_backward"]


@pytest.mark.parametrize("check", TABLES)
def test_each_slip_gets_its_own_line_and_no_other(monkeypatch, capsys, check):
    tables = slips_of(monkeypatch, check)
    assert sum(len(slips) for _, slips, _ in tables) >= 6
    for right, slips, tolerance in tables:
        for line, value in slips.items():
            value = torch.as_tensor(value).double().expand(right.shape)
            said = ex.verdict(value, right, "praise", slips, "hint", tolerance)
            assert said == line, f"the slip of {line!r} is answered by {said!r}"
            assert not line.startswith(("Right", "Too large", "Too small")) and line[-1] in ".?"
        near = ex.verdict(right * (1 + tolerance / 9), right, "praise", slips, "hint", tolerance)
        assert near == "Right: praise"
        far = ex.verdict(right * 1.3 + 0.7, right, "praise", slips, "hint", tolerance)
        expected = "hint" if right.dim() else "Too large: hint"
        assert far == expected
        if not right.dim():
            low = ex.verdict(right - 0.3123, right, "praise", slips, "hint", tolerance)
            assert low == "Too small: hint"


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ([(y, x) for x, y in AVA], "Turned round"),
        ([(x[::-1], y) for x, y in AVA], "run backwards"),
        (AVA[:-1], "when to stop"),
        (AVA[1:], "how a name begins"),
        (AVA[1:-1], "begins"),
        ([(x[1:], y) for x, y in AVA], "exactly 3 characters"),
        ([(x, y * 2) for x, y in AVA], "one character"),
        (AVA[::-1], "not in the order"),
        (AVA + AVA[-1:], "You have 5 examples"),
        ([*AVA[:2], (".av", "b"), AVA[3]], "Pair 3 is not right"),
        ([(1, 2)], "both be strings"),
        ("ava", "list of pairs"),
    ],
)
def test_windows_that_are_not_right_are_told_why(say, answer, part):
    assert part in say("check_windows", answer)


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda p, share: nucleus(p, share, before=False), "nan"),
        (lambda p, share: nucleus(p, share, scale=False), "do not sum to 1"),
        (lambda p, share: nucleus(p, share, back=False), "own column"),
        (lambda p, share: p, "too much is kept"),
        (lambda p, share: nucleus(p, share / 2), "too little is kept"),
        (lambda p, share: p * 0, "nothing is left"),
        (lambda p, share: -p, "below 0"),
        (lambda p, share: (q := (nucleus(p, share) > 0) * 1.0) / q.sum(1, True), "proportions"),
        (lambda p, share: p.zero_(), "changes a tensor"),
        (lambda p, share: p[0], "shape (50, 27)"),
        (lambda p, share: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_nucleus_that_is_not_right_is_told_why(say, function, part):
    assert part in say("check_nucleus", function)


def test_a_layer_is_checked_step_by_step(say):
    def layer(forward=SiLU.forward, backward=SiLU.backward):
        return type("SiLU", (), {"forward": forward, "backward": backward})

    def spoil(self, dy):
        dx = SiLU.backward(self, dy)
        self.x.mul_(2)
        return dx

    for wrong, part in [
        (layer(lambda self, x: None), UNANSWERED),
        (layer(backward=lambda self, dy: None), "backward still returns None"),
        (layer(lambda self, x: x.relu()), "forward: that is ReLU"),
        (layer(backward=lambda self, dy: dy), "backward: forward is right, dx is not"),
        (layer(backward=spoil), "a second call"),
        (layer(lambda self, x: SiLU.forward(self, x.mul_(1.5))), "changes a tensor"),
        (layer(lambda self, x: self.nothing), "raised AttributeError"),
    ]:
        assert part in say("check_silu", wrong)


@pytest.mark.parametrize("rung", ex.DOWN)
def test_each_slip_of_the_ladder_is_named_and_only_it(say, rung):
    leaves = ex.ladder_leaves()
    f, right = ex.climb(leaves), ex.by_autograd(leaves)
    above = ex.DOWN[: ex.DOWN.index(rung)]
    known = {name: right[name] for name in above}
    for line, value in ex.ladder_slips(f, right, rung).items():
        assert say("check_ladder", lambda f, v=value: known | {rung: v}) == f'g["{rung}"]: {line}'
    said = say("check_ladder", lambda f: known | {rung: right[rung] * 1.01})
    assert "finite differences give" in said
    assert "shape" in say("check_ladder", lambda f: known | {rung: torch.ones(2, 2, 2)})
    if above:
        done = f'{len(above)} of 16 rungs are right. Next: g["{rung}"].'
        assert say("check_ladder", lambda f: known) == done


def test_the_two_judges_of_the_ladder_agree():
    leaves = ex.ladder_leaves()
    assert len(leaves["X"].unique()) < leaves["X"].numel() / 4, "many repeats"
    for rung, gradient in ex.by_autograd(leaves).items():
        for place in [(0,) * gradient.dim(), tuple(n - 1 for n in gradient.shape)]:
            moved = ex.by_differences(leaves, rung, place)
            assert moved == pytest.approx(gradient[place].item(), abs=1e-7), rung


def test_the_ladder_lends_its_values_and_wants_them_back(say):
    assert "changes a tensor" in say("check_ladder", lambda f: dict(W=f["W"].zero_()))
    assert "raised KeyError" in say("check_ladder", lambda f: f["nothing"])
    assert "dictionary" in say("check_ladder", lambda f: [1])


def test_the_hunt_says_how_many_and_where_to_look(say):
    assert "4 of 5 are right. Look again at D" in say("check_hunt", HUNT | {"D": "scale"})
    assert "none of the words" in say("check_hunt", HUNT | {"B": "luck"})
    assert "0 of 5" in say("check_hunt", {"A": "mode", "B": None, "C": None, "D": None, "E": None})


def test_each_suspect_has_its_fault_and_no_other(nb):
    found = ex.suspects(nb.Embedding, nb.BatchNorm1d, nb.Dropout)
    draw = torch.Generator().manual_seed(3)
    x, ids = torch.randn(4, 6, generator=draw).double(), torch.randint(5, (8, 3), generator=draw)
    norm = lambda x, gamma, beta: F.batch_norm(x, None, None, gamma, beta, True)  # noqa: E731
    for name, dx_wrong, var_share in (("A", True, 1), ("E", False, 3 / 4)):
        with nb.training_mode(found[name](6)) as layer:
            errors = nb.gradient_check(layer, norm, x)
            assert errors["y"] < 1e-12 and errors["dgamma"] < 1e-12
            assert (errors["dx"] > 1e-3) == dx_wrong
        with nb.training_mode(found[name](6).to(torch.float64)) as layer:
            for _ in range(300):
                layer.forward(x)
        assert torch.allclose(layer.running_var, x.var(0) * var_share, rtol=1e-6)
    ones = torch.ones(200, 200)
    for name, mean, sleeps in (("B", 0.7, True), ("D", 1.0, False)):
        layer = found[name](0.3, 1)
        with nb.training_mode(layer):
            assert layer.forward(ones).mean().item() == pytest.approx(mean, abs=0.02)
        assert torch.equal(layer.forward(ones), ones) == sleeps
    lookup = lambda x, C: C[x].flatten(1)  # noqa: E731
    assert nb.gradient_check(found["C"](5, 4, draw), lookup, ids)["dC"] > 0.1
    assert nb.gradient_check(found["C"](5, 4, draw), lookup, torch.arange(3)[None])["dC"] < 1e-12


def test_networks_with_a_suspect_train_well_enough(nb):
    found = ex.suspects(nb.Embedding, nb.BatchNorm1d, nb.Dropout)
    for name in found:
        layers, made = list(small(nb, dropout=0.2).layers), {"A": (16,), "E": (16,)}
        made |= {"C": (nb.V, 10, torch.Generator().manual_seed(1))}
        for i, layer in enumerate(layers):
            if type(layer) is found[name].__base__:
                layers[i] = found[name](*made.get(name, (0.2, 1)))
        whole = nb.Network(layers, 3, nb.Config())
        losses = fit(nb, whole, steps=200).loss
        assert sum(losses[-20:]) < 0.7 * sum(losses[:20]), name


def test_two_groups_of_strangers_are_recognised(say):
    groups = [torch.tensor(runs).double() for runs in (ex.WITHOUT_RUNS, ex.WITH_RUNS)]
    error = (sum(group.var() for group in groups) / 5).sqrt().item()
    for t in (2.776, 2.306, 1.96):
        assert "strangers" in say("check_interval", (-0.02, t * error))
    assert "sign" in say("check_interval", (0.02, HALF))


class Trained(SimpleNamespace):
    def __init__(self, size=90, steps=50, loss=1.9):
        super().__init__(size=size, steps=steps, loss=lambda names: loss)


@pytest.mark.parametrize(
    ("network", "part"),
    [
        (Trained(), "Right: 90 parameters, 50 steps, dev loss 1.9000 against 2.0000"),
        (Trained(size=100), "Right"),
        (Trained(size=101), "Too many parameters: 101"),
        (Trained(steps=51), "Too many steps: 51"),
        (Trained(loss=2.0), "Not there yet"),
        (Trained(loss=math.nan), "training failed"),
        (Trained(steps=0), "not been trained"),
        ((Trained(), 1), "Return the trained network"),
        (None, UNANSWERED),
    ],
)
def test_beating_model_2_has_its_rules(capsys, network, part):
    ex.check_beats(lambda: network, Trained(100, 500, 2.0), ["emma"], 50)
    assert part in capsys.readouterr().out
    ex.check_beats(None, Trained(), [], 50)
    assert UNANSWERED in capsys.readouterr().out


def test_the_folded_answers_of_the_notebook_are_right(say):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    blocks = re.findall(r"<summary>Answer (\d+)</summary>.*?```python\n(.*?)```", text, re.S)
    answers = {int(number): code for number, code in blocks}
    assert list(answers) == list(range(1, 13))
    space = {"math": math, "torch": torch, "V": V, "exercises": ex, "Layer": object}
    space["interval"] = lambda values: (
        torch.tensor(values).double().mean().item(),
        2.776 * torch.tensor(values).double().std().item() / 5**0.5,
    )
    for code in answers.values():
        exec(compile(code, "answer", "exec"), space)
    found = {name: space[f"answer_{i}"] for i, name in enumerate(CHECKS[:6], start=1)}
    found["check_nucleus"], found["check_silu"] = space["nucleus"], space["SiLU"]
    found["check_layer_norm_backward"] = space["layer_norm_backward"]
    found["check_ladder"], found["check_hunt"] = space["descend"], space["answer_12"]
    assert list(found) == CHECKS
    for check, answer in found.items():
        assert say(check, answer).startswith("Right: "), check


def test_every_check_says_what_it_asks():
    for number, name in enumerate([*CHECKS[:9], "check_beats", *CHECKS[9:]], start=1):
        assert inspect.getdoc(getattr(ex, name)).startswith(f"Exercise {number}: ")
