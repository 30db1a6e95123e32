"""The page in which a model can be tried without Python: .tools/studio.html, filled by a cell."""

import hashlib
import json
import re

import pytest
import torch
from browser import launched
from notebook_code import ROOT, code_cells
from small import fit, small

STORED = ROOT / ".github" / "studio.html"
TEXTS = ["", "e", "em", "emm", "zzzyx", "transformer"]


@pytest.fixture(scope="module")
def networks(nb):
    """MLPs of several shapes, with weights and running averages of some training."""
    made = {
        "tanh": small(nb),
        "ReLU": small(nb, activation="ReLU", batch_norm=False, hidden_sizes=(24, 8), dropout=0.1),
        "long context": small(nb, context_size=9, embedding_dim=3),
    }
    for network in made.values():
        fit(nb, network, steps=200, learning_rate=0.3)
    return made


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def open_page(browser, nb, monkeypatch, tmp_path):
    """A function that opens a page, with the network off; no address, no error but in a test."""
    contexts = []

    def open_page(source, name="small", width=1100, **options):
        monkeypatch.chdir(ROOT)
        text = source if isinstance(source, str) else nb.studio_page(source, name)
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        context.set_offline(True)
        page, asked = context.new_page(), []
        contexts.append((context, asked))
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield open_page
    for context, asked in contexts:
        context.close()
        assert len(asked) == 1 and asked[0].startswith("file:"), f"not only the page: {asked}"


@pytest.fixture(autouse=True)
def example(nb):
    nb.globals["example"] = "emma"


def contexts_of(nb, texts, size):
    ids = [[0] * size + nb.vocab.encode(text) for text in texts]
    return torch.tensor([row[len(row) - size :] for row in ids])


def shaped(logits, temperature, k, share):
    """Probabilities after temperature, top-k and top-p, as the papers have them."""
    likeliest = logits.topk(k if temperature else 1).indices
    kept = torch.full_like(logits, -torch.inf).index_copy(0, likeliest, logits[likeliest])
    p, order = (kept / (temperature or 1)).softmax(0).sort(descending=True)
    p = p * (p.cumsum(0) - p < share)
    return torch.zeros_like(p).index_copy(0, order, p / p.sum())


@pytest.mark.parametrize("kind", ["tanh", "ReLU", "long context"])
@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_predicts_what_the_notebook_predicts(nb, networks, open_page, kind, width):
    network = networks[kind]
    page = open_page(network, kind, width)
    theirs = torch.tensor(page.evaluate("texts => texts.map(t => probabilities(t))", TEXTS))
    ours = network.logits(contexts_of(nb, TEXTS, network.context_size)).softmax(1)
    assert theirs.shape == ours.shape and (theirs - ours).abs().max() < 1e-5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "too wide"


SETTINGS = [(0, 27, 1), (0.5, 27, 1), (2, 5, 1), (1, 27, 0.6), (1.5, 9, 0.8), (1, 3, 0.05)]


@pytest.mark.parametrize("settings", SETTINGS)
def test_temperature_top_k_and_top_p_are_those_of_the_papers(nb, networks, open_page, settings):
    page = open_page(networks["tanh"])
    for text in TEXTS:
        theirs = page.evaluate("args => probabilities(...args)", [text, *settings])
        theirs = torch.tensor(theirs, dtype=torch.float32)
        logits = networks["tanh"].logits(contexts_of(nb, [text], 3))[0]
        assert torch.allclose(theirs, shaped(logits, *settings), atol=1e-5)


def test_everything_can_be_done_with_the_keyboard_alone(networks, open_page):
    page = open_page(networks["tanh"], width=390)
    active = lambda: page.evaluate("document.activeElement.id")  # noqa: E731
    rows = lambda: page.locator("#next tr").all_inner_texts()[1:]  # noqa: E731
    page.keyboard.press("Tab")
    assert active() == "beginning"
    page.keyboard.type("Em")
    assert "em" in page.locator("#next caption").inner_text() and len(rows()) == 27
    before = rows()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert active() == "temperature"
    assert page.locator("label span").all_inner_texts() == ["0.95", "27", "1"]
    assert rows() != before
    for name in ("top-k", "top-p", "draw"):
        page.keyboard.press("Tab")
        assert active() == name
        if name == "top-k":
            page.keyboard.press("Home")  # one character is left
    page.keyboard.press("Enter")
    typed = page.locator("#beginning").input_value()
    drawn = page.locator("#drawn").inner_text()
    assert re.fullmatch(r"Drew “.” \(100\.0 %\)(: Em is whole)?\.", drawn)
    assert typed == ("em" + drawn[6] if drawn[6] != "." else "em")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert active() == "again" and page.locator("#beginning").input_value().lower() == "em"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    names = page.locator("#names").inner_text().split(", ")
    assert len(names) == 20 and len(set(names)) == 1 and names[0].startswith("Em")
    page.keyboard.press("Tab")
    assert active() == "name"
    page.keyboard.type("Ava")
    assert [row[0] for row in page.locator("#surprisals tr").all_inner_texts()] == [*"ava."]


def test_a_name_that_ends_at_once_and_a_very_rare_one_are_shown(networks, open_page):
    page = open_page(networks["tanh"])
    page.evaluate("Math.random = () => 0")  # draws the first of the characters: the end
    page.click("#draw")
    assert page.locator("#drawn").inner_text().endswith(": (empty) is whole.")
    page.click("#twenty")
    assert page.locator("#names").inner_text() == ", ".join(["(empty)"] * 20)
    page.fill("#name", "q" * 30)
    assert re.fullmatch(
        r"Without the sliders, one draw in \d\.\d\de\+\d+\.", page.locator("#draws").inner_text()
    )


def test_the_surprisals_of_a_name_are_those_of_the_notebook(networks, open_page):
    page = open_page(networks["ReLU"])
    page.fill("#name", "Olivia")
    shown = [float(text) for text in page.locator("#surprisals td").all_inner_texts()]
    ours = networks["ReLU"].surprisals(["olivia"]).tolist()
    assert shown == pytest.approx(ours, abs=0.006)
    said = re.fullmatch(
        r"Without the sliders, one draw in ([\d,.]+)\.", page.locator("#draws").inner_text()
    )
    draws = float(said[1].replace(",", ""))
    assert draws == pytest.approx(torch.tensor(ours).sum().exp().item(), rel=0.01)


@pytest.mark.parametrize("text, strange", [("a.b", "."), ("<b>", "<"), ("x1", "1"), ("é", "é")])
def test_a_character_that_the_model_knows_not_is_named(networks, open_page, text, strange):
    page = open_page(networks["tanh"])
    for box, place in ("#beginning", "#drawn"), ("#name", "#draws"):
        page.fill(box, text)
        assert page.locator(place).inner_text() == f"The model knows no “{strange}”: leave it out."
    for button in ("#draw", "#twenty"):
        page.click(button)
    assert page.locator("#names").inner_text() == ""


def test_what_is_no_mlp_is_refused_with_one_sentence(nb):
    other = nb.TransformerConfig(16, 4).make()
    tree = nb.TreeConfig(hidden_sizes=(4, 4), context_size=4).make()
    for model in (other, tree, nb.Model(), nb.Network(small(nb).layers, 3)):
        with pytest.raises(ValueError, match="mine is not an MLP that a config has made"):
            nb.studio_page(model, "mine")


def test_the_studio_is_small_and_asks_for_no_address_outside(nb, networks, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = [c.source for c in code_cells() if c.id.startswith("give-away")]
    lines = (ROOT / ".tools" / "studio.html").read_text(encoding="utf-8").splitlines()
    assert len(lines) + sum(len(cell.splitlines()) for cell in cells) <= 150
    page = nb.studio_page(networks["tanh"], "small")
    for text in (page, STORED.read_text(encoding="utf-8")):
        text = re.sub(r'"weights": "[\w+/=]+"', "", text)
        assert not re.search(r"https?:|//\w|\bsrc=|\bhref=|@import|url\(", text)
        assert "default-src 'none'" in text
    assert STORED.stat().st_size <= 150_000
    model = json.loads(re.search(r'id="model">(.*?)</script>', page)[1])
    assert model["example"] == "emma" and model["characters"] == list(nb.vocab.itos)


def test_the_stored_page_is_that_of_the_stored_run_and_says_the_same(open_page):
    (cell,) = (c for c in code_cells() if "page:studio.html" in c.metadata.get("tags", []))
    page_line, numbers = cell.outputs[-1]["text"].strip().splitlines()[-2:]
    text = STORED.read_text(encoding="utf-8")
    assert hashlib.sha256(STORED.read_bytes()).hexdigest() in page_line
    name, *surprisals = numbers.split()
    page = open_page(text)
    ask = "name => [...name, '.'].map((c, i) => probabilities(name.slice(0, i))[chars.indexOf(c)])"
    theirs = torch.tensor(page.evaluate(ask, name))
    ours = (-torch.tensor([float(s) for s in surprisals])).exp()
    assert theirs.shape == ours.shape and (theirs - ours).abs().max() < 1e-5
    assert page.locator("#name").input_value() == name
