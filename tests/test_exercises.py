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
from notebook_code import NOTEBOOK

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


RIGHT = {
    "check_first_loss": [math.log(V), 3.296, torch.tensor([math.log(V)])],
    "check_windows": [AVA, tuple(list(pair) for pair in AVA)],
    "check_parameters": [PARAMETERS, float(PARAMETERS)],
    "check_surprise": [(math.exp(-7), math.exp(7 / 4)), [0.000912, 5.755]],
    "check_interval": [(-0.02, HALF), torch.tensor([-0.02, HALF])],
    "check_equal_attention": [EQUAL, torch.tensor(EQUAL)],
    "check_nucleus": [nucleus],
    "check_silu": [SiLU],
    "check_layer_norm_backward": [norm_backward],
}


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
    if check in ("check_surprise", "check_interval", "check_windows"):
        placeholders += [(None, None), [None]]
    if check in ("check_nucleus", "check_layer_norm_backward"):
        placeholders.append(lambda *_: None)
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


TABLES = ["check_first_loss", "check_parameters", "check_surprise", "check_interval"]
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
    assert list(answers) == list(range(1, 11))
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
    assert list(found) == CHECKS
    for check, answer in found.items():
        assert say(check, answer).startswith("Right: "), check


def test_every_check_says_what_it_asks():
    for name in [*CHECKS, "check_beats"]:
        number = CHECKS.index(name) + 1 if name in CHECKS else 10
        assert inspect.getdoc(getattr(ex, name)).startswith(f"Exercise {number}: ")
