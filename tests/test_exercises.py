"""The checks of section 18: right answers, every slip in their tables, placeholders, junk."""

import inspect
import math
import re
from types import SimpleNamespace

import exercises as ex
import pytest
import torch
import torch.nn.functional as F
from notebook_code import read_notebook
from small import fit, small

V = 27
CHECKS = [name for name in vars(ex) if name.startswith("check_")]  # one for each exercise
ANSWERED = [name for name in CHECKS if name != "check_beats"]  # that one needs a training
MORE = dict.fromkeys(("check_first_loss", "check_parameters", "check_nucleus"), [V])
MORE["check_beats"] = [SimpleNamespace(size=100, loss=lambda names: 2.0), ["emma"], 50]
PROPERTIES = {"check_windows", "check_nucleus", "check_hunt"}  # these have no table of slips
AVA = [("...", "a"), ("..a", "v"), (".av", "a"), ("ava", ".")]
HUNT = {"A": "mean", "B": "scale", "C": "repeats", "D": "mode", "E": "variance"}
OTHER_FORMS = {
    "check_first_loss": [3.296, torch.tensor([math.log(V)])],
    "check_windows": [[list(pair) for pair in AVA], tuple(AVA)],
    "check_parameters": [4313.0, torch.tensor(4313)],
    "check_surprisal": [[0.000912, 5.755], torch.tensor([math.exp(-7), math.exp(7 / 4)])],
    "check_interval": [(-0.02, 0.0124), torch.tensor([-0.02, 2.776 * 0.01 / 5**0.5])],
    "check_equal_attention": [torch.tensor([[1] * 4] * 4).tril() / torch.arange(1, 5)[:, None]],
    "check_hunt": [dict(reversed(HUNT.items()))],
}


@pytest.fixture(scope="module")
def folded(nb):
    """{check: the answer that stands folded in the notebook}."""
    text = "\n".join(cell.source for cell in read_notebook().cells)
    blocks = re.findall(r"<summary>Answer (\d+)</summary>.*?```python\n(.*?)```", text, re.S)
    assert [int(number) for number, _ in blocks] == list(range(1, 13))
    space = {**nb.globals, "exercises": ex}
    for _, code in blocks:
        exec(compile(code, "answer", "exec"), space)
    names = [f"answer_{number}" for number in range(1, 7)]
    names += ["nucleus", "SiLU", "layer_norm_backward", "beat_model_2", "descend", "answer_12"]
    return {check: space[name] for check, name in zip(CHECKS, names)}


@pytest.fixture
def say(capsys):
    """A function: the one line that a check prints for an answer."""

    def line(check, answer):
        assert getattr(ex, check)(answer, *MORE.get(check, [])) is None
        printed = capsys.readouterr().out
        assert printed.endswith("\n") and printed.count("\n") == 1, "one line, always"
        return printed.strip()

    return line


def test_there_are_twelve_checks_and_each_says_what_it_asks():
    starts = [inspect.getdoc(getattr(ex, check)).split(":")[0] for check in CHECKS]
    assert starts == [f"Exercise {number}" for number in range(1, 13)]


@pytest.mark.parametrize("check", ANSWERED)
def test_a_right_answer_is_right_in_every_form(say, folded, check):
    for answer in [folded[check], *OTHER_FORMS.get(check, [])]:
        assert say(check, answer).startswith("Right: "), answer


@pytest.mark.parametrize("check", CHECKS)
def test_a_placeholder_is_an_answer_not_given_yet(say, check):
    placeholders = [None, (None, None), [[None] * 4] * 4, dict.fromkeys(HUNT)]
    if check in ("check_nucleus", "check_layer_norm_backward", "check_beats", "check_ladder"):
        placeholders = [lambda *_: None, lambda *_: {"p": None}]
    if check == "check_silu":
        placeholders = [lambda: SimpleNamespace(forward=lambda x: None)]
    for answer in placeholders:
        assert say(check, answer) == ex.UNANSWERED, answer


JUNK = ["text", object(), math.nan, [[1], [2, 3]], {}, torch.ones(9, 9), math.inf, [], -5, len]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("junk", JUNK, ids=str)
def test_junk_gets_one_sentence_and_is_never_right(say, check, junk):
    line = say(check, junk)
    assert line and not line.startswith(("Right", ex.UNANSWERED)) and "Traceback" not in line


@pytest.mark.parametrize("check", sorted({*ANSWERED} - PROPERTIES))
def test_each_slip_gets_its_own_line_and_no_other(monkeypatch, say, folded, check):
    asked, compare = [], ex.compare
    monkeypatch.setattr(ex, "compare", lambda *given: asked.append(given) or compare(*given))
    say(check, folded[check])
    assert asked
    for _, right, slips, hint, *tolerance in asked:
        right = torch.as_tensor(right).double()
        size = ["", ""] if right.dim() else ["Too large: ", "Too small: "]
        wrong = {size[0] + hint: right * 1.3 + 0.7, size[1] + hint: right - 0.3123}
        for line, value in (slips | wrong).items():
            with pytest.raises(ex.Refused) as refusal:
                compare(value, right, slips, hint, *tolerance)
            assert str(refusal.value) == line and line[-1] in ".?"
        compare(right * (1 + 1e-10), right, slips, hint, *tolerance)


WRONG = [
    ("check_windows", [(y, x) for x, y in AVA], "Turned round"),
    ("check_windows", [(x[::-1], y) for x, y in AVA], "run backwards"),
    ("check_windows", AVA[1:], "3 examples: how does a name begin"),
    ("check_windows", [(x[1:], y) for x, y in AVA], "3 characters and 1"),
    ("check_windows", [*AVA[:2], (".av", "b"), AVA[3]], "pairs [3]"),
    ("check_first_loss", math.log2(V), "in bits"),
    ("check_parameters", 4313 + 50 + 30, "need a bias"),
    ("check_surprisal", (math.exp(-7), 4.0), "Too small: perplexity"),
    ("check_interval", (0.02, 0.0124), "sign"),
    ("check_equal_attention", [1, 2, 3, 4], "of shape (4, 4), yours has shape (4,)"),
    ("check_nucleus", lambda p, share: p / 0, "division by 0"),
    ("check_nucleus", lambda p, share: p, "too much is kept"),
    ("check_nucleus", lambda p, share: p * (p >= p.amax(1, True)), "too little is kept"),
    ("check_nucleus", lambda p, share: -p, "nothing is left"),
    ("check_nucleus", lambda p, share: p * (torch.arange(V) > 0), "own column"),
    ("check_nucleus", lambda p, share: p.zero_(), "changes a tensor"),
    ("check_nucleus", lambda p, share: 1 / 0, "raised ZeroDivisionError"),
    ("check_silu", lambda: SimpleNamespace(forward=torch.tanh), "forward: the values"),
    ("check_silu", lambda: SimpleNamespace(forward=F.silu, backward=lambda dy: dy), "dx is not"),
    ("check_layer_norm_backward", lambda dy, xhat, s, gamma: dy, "follow x's three ways"),
    ("check_beats", lambda: 1, "Return the trained network"),
    ("check_ladder", lambda f: {"p": f["p"]}, "finite differences give"),
    ("check_ladder", lambda f: {"W": f["W"].zero_()}, "changes a tensor"),
    ("check_ladder", lambda f: {"p": 1.0}, "shape (32, 6)"),
    ("check_hunt", HUNT | {"D": "scale"}, "4 of 5 are right. Look again at D"),
    ("check_hunt", HUNT | {"B": "luck"}, "none of the words"),
    ("check_hunt", {**dict.fromkeys(HUNT), "A": "mode"}, "0 of 5"),
]


@pytest.mark.parametrize(("check", "answer", "part"), WRONG)
def test_an_answer_that_is_not_right_is_told_why(say, check, answer, part):
    assert part in say(check, answer)


def test_a_nucleus_has_to_be_scaled(say, folded):
    kept = lambda p, share: p * (folded["check_nucleus"](p, share) > 0)  # noqa: E731
    assert "should be 1" in say("check_nucleus", kept)


def test_the_ladder_names_the_first_rung_that_is_wrong_or_missing(say):
    right = ex.by_autograd(ex.ladder_leaves())
    for done, rung in enumerate(ex.DOWN):
        missing = {name: value for name, value in right.items() if name != rung}
        line = f'{done} of 16 rungs are right. Next: g["{rung}"].'
        assert say("check_ladder", lambda f, g=missing: g) == line
        wrong = right | {rung: -right[rung]}
        assert say("check_ladder", lambda f, g=wrong: g) == f'g["{rung}"]: a sign is wrong.'


def test_the_two_judges_of_the_ladder_agree():
    leaves = ex.ladder_leaves()
    assert len(leaves["X"].unique()) < leaves["X"].numel() / 4, "many repeats"
    for rung, gradient in ex.by_autograd(leaves).items():
        for place in [(0,) * gradient.dim(), tuple(n - 1 for n in gradient.shape)]:
            moved = ex.by_differences(leaves, rung, place)
            assert moved == pytest.approx(gradient[place].item(), abs=1e-7), rung


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
    for kind in ex.suspects(nb.Embedding, nb.BatchNorm1d, nb.Dropout).values():
        network = small(nb, dropout=0.2)
        replaced = [layer for layer in network.layers if type(layer) is kind.__base__]
        assert replaced
        for layer in replaced:
            layer.__class__ = kind
        losses = fit(nb, network, steps=200).loss
        assert sum(losses[-20:]) < 0.7 * sum(losses[:20]), kind


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"size": 100}, "Right: 100 parameters, 50 steps, dev loss 1.9000 against 2.0000"),
        ({"size": 101}, "101 parameters are too many"),
        ({"steps": 51}, "51 steps are too many"),
        ({"steps": 0}, "not been trained"),
        ({"loss": lambda names: 2.0}, "Not there yet"),
        ({"loss": lambda names: math.nan}, "Not there yet"),
    ],
)
def test_beating_model_2_has_its_rules(say, changed, part):
    network = SimpleNamespace(**{"size": 90, "steps": 50, "loss": lambda names: 1.9} | changed)
    assert part in say("check_beats", lambda: network)
