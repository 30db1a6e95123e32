"""The checks of section 18: right answers, typical wrong ones, placeholders, junk; the answers."""

import math
import re

import pytest
import torch
from notebook_code import code_cells, definitions, read_notebook
from small import NAMES

from charlm_utils import Vocabulary, build_dataset

UNANSWERED = "Not answered yet"
V = 27  # what `definitions` gives the notebook's cells


def cell_source(name):
    return next(cell.source for cell in read_notebook().cells if cell["id"] == name)


@pytest.fixture(scope="module")
def ex():
    """The notebook's definitions as a namespace, with a small Model 2 that is easy to beat."""
    vocab = Vocabulary.from_names(["abcdefghijklmnopqrstuvwxyz"])
    given = {"train_names": NAMES, "dev_names": NAMES, "BEAT_STEPS": 40}
    given |= {"dataset": lambda names, size=3: build_dataset(names, vocab, size)}
    unused = {"known": set(), "real": set(), "dev_data": None, "train_data": None}
    namespace = definitions(**given, **unused).check_beats.__globals__
    namespace["model_2"] = namespace["make_mlp"]("gain 1/2", batch_norm=True)
    namespace["loss_2"] = 3.2
    return namespace


@pytest.fixture
def say(ex, capsys):
    """A function: the one line that a check prints for an answer."""

    def line(check, *answer):
        assert ex[check](*answer) is None
        printed = capsys.readouterr().out
        assert printed.endswith("\n") and printed.count("\n") == 1, "one line, always"
        assert printed.strip()
        return printed.strip()

    return line


def softly(x):
    return x.sigmoid()


def silu(forward, backward):
    """A layer class from two functions of (self, tensor)."""
    return type("SiLU", (), {"forward": forward, "backward": backward})


def keep(self, x):
    self.x = x
    return x * softly(x)


def right_dx(self, dy):
    return dy * (softly(self.x) + self.x * softly(self.x) * (1 - softly(self.x)))


def keep_and_spoil(self, dy):
    dx = right_dx(self, dy)
    self.x.mul_(2)
    return dx


def change_input(self, x):
    keep(self, x.clone())
    return x.mul_(softly(x))


def norm_dx(dy, xhat, s, gamma, dim=1, mean=1.0, along=1.0):
    g = dy * gamma
    straight = g - mean * g.mean(dim, keepdim=True)
    return s * (straight - along * xhat * (g * xhat).mean(dim, keepdim=True))


def top_p(p, share, *, crossing=True, extra=0, rescale=True, back=True):
    likeliest, column = p.sort(1, descending=True)
    total = likeliest.cumsum(1)
    keep = (total - likeliest < share) if crossing else (total < share)
    if extra:
        keep[:, 1:] = keep[:, :-1].clone()
    kept = likeliest * keep
    kept = kept / kept.sum(1, keepdim=True) if rescale else kept
    return torch.zeros_like(p).scatter(1, column, kept) if back else kept


def steady(p, share):
    """As top_p, but what is kept becomes uniform."""
    q = (top_p(p, share) > 0).double()
    return q / q.sum(1, keepdim=True)


def boom(*_):
    raise KeyError("no such\nthing")


EQUAL = [[1 / (i + 1) if j <= i else 0 for j in range(4)] for i in range(4)]
AVA = [("...", "a"), ("..a", "v"), (".av", "a"), ("ava", ".")]
PARAMETERS = 8 * V + 32 * 50 + 100 + 50 * 30 + 60 + 31 * V
S = 0.01 / 5**0.5

RIGHT = [
    ("check_first_loss", math.log(V)),
    ("check_first_loss", 3.296),
    ("check_first_loss", torch.tensor([math.log(V)])),
    ("check_windows", AVA),
    ("check_windows", tuple(list(pair) for pair in AVA)),
    ("check_parameters", PARAMETERS),
    ("check_surprise", (math.exp(-7), math.exp(7 / 4))),
    ("check_surprise", [0.000912, 5.755]),
    ("check_interval", (-0.02, 2.776 * S)),
    ("check_equal_attention", EQUAL),
    ("check_equal_attention", torch.tensor(EQUAL)),
    ("check_equal_attention", [[round(a, 3) for a in row] for row in EQUAL]),
    ("check_nucleus", top_p),
    ("check_silu", silu(keep, right_dx)),
    ("check_layer_norm_backward", norm_dx),
]

# (check, wrong answer, what its line must say)
WRONG = [
    ("check_first_loss", math.log2(V), "base 2"),
    ("check_first_loss", math.log10(V), "base 10"),
    ("check_first_loss", math.log(V - 1), "token is missing"),
    ("check_first_loss", -math.log(V), "sign"),
    ("check_first_loss", 1 / V, "probability"),
    ("check_first_loss", V, "number of tokens"),
    ("check_first_loss", 0, "prophet"),
    ("check_first_loss", 25.0, "Too large"),
    ("check_first_loss", 2.0, "Too small"),
    ("check_windows", AVA[:-1], "when to stop"),
    ("check_windows", AVA[1:], "how a name begins"),
    ("check_windows", [(b, a) for a, b in AVA], "Turned round"),
    ("check_windows", [(a[::-1], b) for a, b in AVA], "backwards"),
    ("check_windows", [(a.strip("."), b) for a, b in AVA], "exactly 3"),
    ("check_windows", [(a, a[1:] + b) for a, b in AVA], "one character"),
    ("check_windows", AVA[::-1], "order"),
    ("check_windows", AVA[:2], "You have 2"),
    ("check_windows", [*AVA[:2], (".av", "v"), AVA[3]], "Pair 3"),
    ("check_windows", [("...", 1)] * 4, "strings"),
    ("check_parameters", PARAMETERS + 80, "need a bias"),
    ("check_parameters", PARAMETERS + 160, "running averages"),
    ("check_parameters", PARAMETERS - 160, "of its own"),
    ("check_parameters", PARAMETERS - 80, "for each unit"),
    ("check_parameters", PARAMETERS - V, "last layer"),
    ("check_parameters", PARAMETERS - 8 * V, "embedding is trained"),
    ("check_parameters", PARAMETERS + 24 * V, "one embedding table"),
    ("check_parameters", PARAMETERS - 1200, "side by side"),
    ("check_parameters", PARAMETERS + 1, "Too large"),
    ("check_surprise", (2**-7, 5.755), "not 2"),
    ("check_surprise", (math.exp(-7 / 4), 5.755), "average character"),
    ("check_surprise", (math.exp(-6), 5.755), "end of the name"),
    ("check_surprise", (sum(map(math.exp, (-2, -3.5, -0.5, -1))), 5.755), "do not add"),
    ("check_surprise", (7.0, 5.755), "total surprise"),
    ("check_surprise", (0.5, 5.755), "Too large"),
    ("check_surprise", (math.exp(-7), 2**1.75), "not 2"),
    ("check_surprise", (math.exp(-7), math.exp(7)), "not a total"),
    ("check_surprise", (math.exp(-7), math.exp(7 / 3)), "counts as a character"),
    ("check_surprise", (math.exp(-7), 1.75), "number of choices"),
    ("check_surprise", (math.exp(-7), math.exp(-1.75)), "inverse"),
    ("check_surprise", (math.exp(-7), sum(map(math.exp, (2, 3.5, 0.5, 1))) / 4), "not the choices"),
    ("check_interval", (0.02, 2.776 * S), "sign"),
    ("check_interval", (-0.1, 2.776 * S), "Too small"),
    ("check_interval", (-0.02, 1.96 * S), "Student"),
    ("check_interval", (-0.02, 2.776 * 0.01), "surer than one"),
    ("check_interval", (-0.02, 0.01), "standard deviation"),
    ("check_interval", (-0.02, S), "t is missing"),
    ("check_interval", (-0.02, 2.776 * S * 0.8**0.5), "n - 1 in"),
    ("check_interval", (-0.02, 2.571 * S), "degrees"),
    ("check_interval", (-0.02, 2.306 * (0.00075 / 5) ** 0.5), "strangers"),
    ("check_interval", (-0.02, 2.776 * (0.00075 / 5) ** 0.5), "strangers"),
    ("check_equal_attention", [[1 / 4] * 4] * 4, "mask"),
    ("check_equal_attention", [[float(j <= i) for j in range(4)] for i in range(4)], "sum to 1"),
    ("check_equal_attention", [[(j <= i) / 4 for j in range(4)] for i in range(4)], "not after"),
    ("check_equal_attention", torch.tensor(EQUAL).T, "exchanged"),
    ("check_equal_attention", [[(j <= i) / (4 - j) for j in range(4)] for i in range(4)], "Column"),
    (
        "check_equal_attention",
        [[0] * 4, *[[1 / i if j < i else 0 for j in range(4)] for i in (1, 2, 3)]],
        "itself",
    ),
    ("check_equal_attention", torch.eye(4), "equal scores"),
    ("check_equal_attention", torch.eye(4).flip(0), "look ahead"),
    ("check_nucleus", lambda p, share: top_p(p, share, crossing=False), "nothing was left"),
    ("check_nucleus", lambda p, share: p.masked_fill(p < p.amax(1, True), 0), "too little"),
    ("check_nucleus", lambda p, share: p * (p > share), "nothing is left"),
    ("check_nucleus", lambda p, share: top_p(p, share * 0.9), "too little"),
    ("check_nucleus", lambda p, share: top_p(p, share, extra=1), "too much"),
    ("check_nucleus", lambda p, share: top_p(p, share, rescale=False), "do not sum to 1"),
    ("check_nucleus", lambda p, share: top_p(p, share, back=False), "own column"),
    ("check_nucleus", lambda p, share: p, "too much"),
    ("check_nucleus", lambda p, share: -p, "below 0"),
    ("check_nucleus", lambda p, share: p.mul_(top_p(p, share) > 0), "changes a tensor"),
    ("check_nucleus", steady, "proportions"),
    ("check_silu", silu(lambda self, x: softly(x), right_dx), "x is missing"),
    ("check_silu", silu(lambda self, x: x.tanh(), right_dx), "tanh"),
    ("check_silu", silu(lambda self, x: x.relu(), right_dx), "ReLU"),
    ("check_silu", silu(lambda self, x: x, right_dx), "forward"),
    ("check_silu", silu(change_input, right_dx), "changes a tensor"),
    ("check_silu", silu(keep, lambda self, dy: dy * softly(self.x)), "one way only"),
    (
        "check_silu",
        silu(keep, lambda self, dy: dy * self.x * softly(self.x) * (1 - softly(self.x))),
        "past the sigmoid",
    ),
    (
        "check_silu",
        silu(keep, lambda self, dy: dy * softly(self.x) * (1 - softly(self.x))),
        "product",
    ),
    ("check_silu", silu(keep, lambda self, dy: right_dx(self, torch.ones_like(dy))), "dy gone"),
    ("check_silu", silu(keep, lambda self, dy: -right_dx(self, dy)), "is not"),
    ("check_silu", silu(keep, keep_and_spoil), "second call"),
    ("check_layer_norm_backward", lambda *a: norm_dx(*a, mean=0), "through the mean"),
    ("check_layer_norm_backward", lambda *a: norm_dx(*a, along=0), "through the variance"),
    ("check_layer_norm_backward", lambda *a: norm_dx(*a, mean=0, along=0), "Two terms"),
    ("check_layer_norm_backward", lambda *a: norm_dx(*a, dim=0), "BatchNorm"),
    ("check_layer_norm_backward", lambda *a: norm_dx(*a, mean=12, along=12), "Sums"),
    (
        "check_layer_norm_backward",
        lambda dy, xhat, s, gamma: norm_dx(dy, xhat, s, torch.ones(12)),
        "gamma is missing",
    ),
    (
        "check_layer_norm_backward",
        lambda dy, xhat, s, gamma: gamma * norm_dx(dy, xhat, s, torch.ones(12)),
        "outside",
    ),
    (
        "check_layer_norm_backward",
        lambda dy, xhat, s, gamma: norm_dx(dy, xhat, 1, gamma),
        "factor s",
    ),
    ("check_layer_norm_backward", lambda *a: -norm_dx(*a), "three"),
    ("check_layer_norm_backward", lambda *a: norm_dx(*a).T, "shape (12, 7)"),
]

# What would give an answer away; formulas and numbers, as they could be printed.
SECRETS = {
    "check_first_loss": ["3.29", "3.30", "ln 27", "ln V", "log(V)"],
    "check_windows": ["..a", ".av", "ava", "4 examples", "four"],
    "check_parameters": [str(PARAMETERS), f"{PARAMETERS:,}"],
    "check_surprise": ["0.0009", "5.75", "exp(", "e^"],
    "check_interval": ["-0.02", "0.0124", "2.776"],
    "check_equal_attention": ["1/", "1 /", "0.33", "0.25", "mean"],
    "check_nucleus": ["cumsum", "sort", "scatter"],
    "check_silu": ["1 -", "sigma *", "y *"],
    "check_layer_norm_backward": ["dxhat", "dy * gamma", "s *"],
}
CHECKS = [*SECRETS, "check_beats"]
FUNCTION_CHECKS = CHECKS[6:]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_a_right_answer_is_right_and_told_something_more(say, check, answer):
    line = say(check, answer)
    assert line.startswith("Right: ") and len(line) > 30, line


@pytest.mark.parametrize(("check", "answer", "reason"), WRONG)
def test_a_typical_slip_is_recognised_and_the_answer_not_given_away(say, check, answer, reason):
    line = say(check, answer)
    assert not line.startswith(("Right", UNANSWERED)) and reason in line, line
    for secret in SECRETS[check]:
        assert secret not in line, f"{line!r} gives {secret!r} away"


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_and_a_function_that_returns_nothing_are_not_answered_yet(say, check):
    assert say(check, None).startswith(UNANSWERED)
    assert say(check).startswith(UNANSWERED)
    if check in FUNCTION_CHECKS and check != "check_silu":
        assert say(check, lambda *_: None).startswith(UNANSWERED)


def test_a_half_filled_answer_is_not_answered_yet(say):
    assert say("check_surprise", (None, None)).startswith(UNANSWERED)
    assert say("check_windows", []).startswith(UNANSWERED)
    nothing = silu(lambda self, x: None, lambda self, dy: None)
    assert say("check_silu", nothing).startswith(UNANSWERED)
    half = silu(keep, lambda self, dy: None)
    assert say("check_silu", half).startswith(UNANSWERED + ": forward is right")


JUNK = ["ava", b"x", "", {}, [], object(), (1, None), [[1, 2], [3]], 1j, math.nan, math.inf, True]
JUNK += [torch.zeros(0), torch.zeros(3, 2), [torch.zeros(2)] * 5, boom, len, int, {1, 2}, 10**400]
JUNK += [[("...",)], [1, 2, 3], [None] * 4, silu(boom, boom), silu(keep, boom), type("E", (), {})]
JUNK += [lambda: 1, lambda *_: "text", lambda *_: torch.zeros(1), lambda *_: (None, None)]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_junk_gets_one_sentence_and_no_exception(say, check, junk):
    line = say(check, junk)
    assert not line.startswith("Right"), line


@pytest.mark.parametrize("check", FUNCTION_CHECKS)
def test_an_error_in_the_readers_code_is_named(say, check):
    line = say(check, boom)
    assert line == "Your code raised KeyError: 'no such\\nthing'", line


def trained(ex, **change):
    """A function for check_beats: a small network, trained briefly."""
    shape = {"hidden_sizes": (16,), "context_size": 4, "embedding_dim": 4} | change
    steps = shape.pop("steps", 40)

    def build():
        network = ex["make_mlp"]("gain 1/2", batch_norm=True, **shape)
        data = ex["dataset"](NAMES, shape["context_size"])
        settings = {"batch_size": min(32, len(data[1])), "show": False}
        return network, ex["train"](network, data, steps=steps, **settings)

    return build


def test_a_small_network_that_beats_model_2_is_right(ex, say):
    assert say("check_beats", trained(ex)).startswith("Right: ")


def test_the_limits_of_the_last_exercise_hold(ex, say, monkeypatch):
    assert say("check_beats", trained(ex, steps=41)).startswith("Too many steps: 41")
    assert say("check_beats", trained(ex, hidden_sizes=(500,))).startswith("Too many parameters")
    network, history = trained(ex)()
    assert "in this order" in say("check_beats", lambda: (history, network))
    assert "two things" in say("check_beats", lambda: network)
    monkeypatch.setitem(ex, "loss_2", 0.1)
    assert say("check_beats", trained(ex)).startswith("Not there yet")
    del network.context_size
    assert "context_size" in say("check_beats", lambda: (network, history))
    network.context_size = 7
    assert say("check_beats", lambda: (network, history)).startswith("Your code raised")
    network.context_size = 4
    network.parameters.fill_(math.nan)
    assert say("check_beats", lambda: (network, history)).startswith("The training failed")


def test_the_last_exercise_takes_a_transformer_as_well(ex, say):
    def build():
        network, rows = ex["make_transformer"](8, 2), ex["name_rows"](NAMES)
        settings = {"batch_size": 4, "optimizer": ex["AdamW"](), "learning_rate": 0.01}
        return network, ex["train"](network, rows, steps=40, show=False, **settings)

    assert say("check_beats", build).startswith("Right: ")


# The cells as the reader finds them, and the folded answers


def exercise_cells():
    return [cell for cell in code_cells() if re.fullmatch(r"exercise-\d+", cell["id"])]


def answers():
    """Number of the exercise -> the code in its folded answer."""
    source = cell_source("exercises-answers")
    blocks = re.findall(r"<summary>Answer (\d+)</summary>(.*?)</details>", source, re.DOTALL)
    return {
        int(number): re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
        for number, text in blocks
    }


def test_there_are_ten_exercises_each_with_a_question_a_check_and_an_answer():
    ids = [cell["id"] for cell in exercise_cells()]
    assert ids == [f"exercise-{i}" for i in range(1, 11)]
    assert list(answers()) == list(range(1, 11))
    for i in range(1, 11):
        assert cell_source(f"exercise-{i}-question").startswith(f"### Exercise {i}: ")


@pytest.mark.parametrize("number", range(1, 11))
def test_an_exercise_cell_as_it_stands_is_not_answered_yet(ex, capsys, number):
    exec(cell_source(f"exercise-{number}"), dict(ex))
    assert capsys.readouterr().out.startswith(UNANSWERED)


@pytest.mark.parametrize("number", range(1, 11))
def test_the_folded_answer_in_place_of_the_placeholder_is_right(ex, capsys, number):
    check = cell_source(f"exercise-{number}").splitlines()[-1]
    exec(answers()[number] + "\n" + check, {**ex, "BATCH_SIZE": 16, "train": small_batches(ex)})
    assert capsys.readouterr().out.startswith("Right: ")


def small_batches(ex):
    """The notebook's loop, with a batch that the few names here can fill."""
    return lambda *args, **settings: ex["train"](*args, batch_size=16, show=False, **settings)


def test_the_exercises_names_are_used_nowhere_else_in_the_notebook():
    own = {"SiLU", "nucleus", "layer_norm_backward", "beat_model_2", "verdict", "exercise"}
    own |= {f"answer_{i}" for i in range(1, 11)} | {"call", "as_numbers", "Verdict"}
    for cell in code_cells():
        if not cell["id"].startswith("exercise"):
            defined = re.findall(r"^(?:def |class )?(\w+)(?: =|\(|:)", cell.source, re.MULTILINE)
            assert not own & set(defined), cell["id"]
