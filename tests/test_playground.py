"""The playground: studios, training your own, saving a model; the notebook's functions."""

import hashlib
import io
import os
import pickle
import random
import re
import threading
from pathlib import Path

import pytest
import torch
from notebook_code import definitions
from small import NAMES, fit, small

DIALS = {"context": 4, "embedding": 6, "hidden size": 16, "layers": 2, "BatchNorm": True}
DIALS |= {"dropout": 0.1, "learning rate": 0.1, "batch": 32, "steps": 60}


@pytest.fixture
def play():
    """The notebook's definitions with two small untrained models to play with."""
    own = {"models": {}, "tries": [], "SEED": 1}
    own |= {"train_names": NAMES * 8, "dev_names": NAMES}
    nb = definitions(**own)
    nb.models["small"] = nb.model_2 = nb.globals["model_2"] = small(nb)
    nb.models["Transformer"] = nb.TransformerConfig(16, 4, context_size=9).make()
    return nb


def shown_names(page):
    return [re.sub(r"[ *✓]", "", name) for name in re.findall(r"\">(.*?)</span>", page)]


@pytest.mark.parametrize("model", ["small", "Transformer"])
def test_the_studio_shows_as_many_names_as_asked_each_with_its_prefix(play, model):
    page = play.studio_names(0, model, count=7, prefix=" Em ")
    names = shown_names(page)
    assert len(names) == 7 and all(name.startswith("Em") for name in names)
    assert page == play.studio_names(0, model, count=7, prefix=" Em ")
    assert page != play.studio_names(1, model, count=7, prefix=" Em "), "again: other names"
    counts = re.search(r"(\d+) invented \*, (\d+) real ✓, (\d+) from training", page).groups()
    assert sum(map(int, counts)) == 7 and page.count("*</span>") == int(counts[0])


@pytest.mark.parametrize("prefix, wrong", [("a1", "1"), (".", "."), ("<b>", "<"), ("Zoë", "ë")])
def test_a_text_that_cannot_be_a_name_is_refused_with_its_character(play, prefix, wrong):
    for ask in (
        lambda: play.studio_names(0, "small", prefix=prefix),
        lambda: play.studio_surprisal("small", prefix),
    ):
        with pytest.raises(ValueError, match=f"'{re.escape(wrong)}' (is in no name|in .* cannot)"):
            ask()


@pytest.mark.parametrize("model", ["small", "Transformer"])
def test_the_surprisal_of_a_name_gives_its_probability(play, model):
    page, network = play.studio_surprisal(model, "Emma"), play.models[model]
    total = network.surprisals(["emma"]).sum().item()
    assert f"one draw in {torch.tensor(total).exp().item():,.0f}"[:14] in page
    losses = network.surprisals(["emma"]).tolist()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert cells == [*"Emma.", *(f"{loss:.1f}" for loss in losses)], "letters over numbers"
    assert "in the training list" in page and play.studio_surprisal(model, " ") == "Type a name."


def test_text_boxes_fold_a_text_as_the_file_was_folded(play):
    pages = {play.studio_surprisal("small", text) for text in (" EMMA ", "emma", "ＥＭＭＡ")}
    assert len(pages) == 1
    long = play.studio_names(0, "small", count=2, prefix="e" * 31)
    assert all(name.lower().startswith("e" * 31) for name in shown_names(long))
    with pytest.raises(ValueError, match="ZERO WIDTH SPACE"):
        play.clean_name("em\u200bma")
    own = definitions(vocab=play.Vocabulary.from_names(["éd'ıi"]))
    assert own.clean_name("De\u0301") == "dé" and own.clean_name("D’d") == "d'd"
    assert own.clean_name("IİI") == "ıiı", "a list with ı reads I as ı"
    assert play.capitalized("emma") == "Emma" and play.capitalized("") == ""


def test_an_empty_draw_is_shown_and_counted_as_no_name(play):
    play.models["ends"] = play.Model()
    play.models["ends"].sample = lambda count, **options: ["", "zz", ""]
    page = play.studio_names(0, "ends", count=3)
    assert shown_names(page) == ["(empty)", "Zz", "(empty)"]
    assert "1 invented *, 0 real ✓, 0 from training" in page
    assert play.as_written(["", "emma"]) == "(empty), Emma"


class Shown:
    """What `display` of a live cell shows, and how often it was updated."""

    def __init__(self, space):
        self.pages, self.controls = [], None
        space["display"] = self.display

    def display(self, thing, display_id=False):
        if not display_id:
            self.controls = thing.children
        self.pages += [thing] if display_id else []
        return self

    def update(self, thing):
        self.pages.append(thing)


def test_a_control_or_the_button_draws_anew_and_a_wrong_value_gives_a_sentence(play):
    shown = Shown(play.globals)

    def draw(presses, value):
        if value > 5:
            raise ValueError("<too large>")
        return f"{presses} {value}"

    slider = play.slide("value", 1, 0, 9)
    play.live(draw, play.widgets.Button(description="again"), value=slider)
    slider.value = 3
    shown.controls[-1].click()
    slider.value = 6
    texts = [re.sub("<div.*?>|</div>", "", page.data) for page in shown.pages]
    assert texts == ["0 1", "0 3", "1 3", "&lt;too large&gt;"]
    play.live(lambda value: f"{value:.1f}", value=play.slide("value", 0.5, 0.0, 1.0, 0.1))
    assert "0.5" in shown.pages[-1].data


def test_a_network_trained_with_the_dials_joins_the_models_and_the_tries(play):
    seen = []
    watch = lambda network, step, change: seen.append(step)  # noqa: E731
    network, text = play.train_own(DIALS, watch)
    assert play.models["your model 1"] is network and seen == list(range(1, 61))
    config = network.config
    assert (config.context_size, config.embedding_dim, config.hidden_sizes) == (4, 6, (16, 16))
    assert config.dropout == 0.1 and config.batch_norm and config.init == "gain 1/2"
    assert network.history.learning_rate[0] == 0.1
    assert f"your model 1: dev loss {network.loss(NAMES):.4f} (60 steps in" in text
    assert f"Model 2, 0 steps: {play.model_2.loss(NAMES):.4f}" in text
    (row,) = play.tries
    assert row["dev"] == f"{network.loss(NAMES):.4f}" and row["steps"] == 60
    other, text = play.train_own(DIALS | {"BatchNorm": False, "steps": 30})
    assert other.config.init == "gain 5/3" and text.startswith("your model 2")
    assert len(play.tries) == 2 and set(play.models) > {"your model 1", "your model 2"}


def test_stop_keeps_what_was_trained(play):
    stopped, values = threading.Event(), DIALS | {"steps": 3_000}
    watch = lambda network, step, change: step == 9 and stopped.set()  # noqa: E731
    network, text = play.train_own(values, watch, stopped.is_set)
    assert len(network.history.loss) == 9 and "stopped after 9 of 3,000" in text
    assert "your model 1" in play.models and play.tries[0]["steps"] == 9


def test_a_try_that_diverges_says_so_and_is_not_kept(play):
    wild = DIALS | {"BatchNorm": False, "learning rate": 1e6, "layers": 3}
    _, text = play.train_own(wild)
    for part in ("your model 1 diverged", "rate of 1e+05, or BatchNorm", "It is not kept."):
        assert part in text
    assert not play.tries and "your model 1" not in play.models


@pytest.mark.parametrize("losses", [[], [3.0], [3.0, 9e9], [3.0] * 5_000])
def test_the_curve_is_drawn_for_no_step_for_one_and_for_many(play, losses):
    (ax,) = play.draw_training(play.History(loss=losses)).axes
    curve, model_2 = ax.lines
    assert len(curve.get_xdata()) <= 1_000 and model_2.get_label() == "Model 2, dev"
    assert max([0, *curve.get_ydata()]) < 7, "a spike does not flatten the rest"


def kinds(play):
    mlp = small(play, hidden_sizes=(8, 8), activation="ReLU", dropout=0.2)
    fit(play, mlp, steps=20)
    transformer = play.TransformerConfig(16, 4, context_size=9).make()
    transformer.parameters.add_(0.1)
    return {"MLP": mlp, "folded": play.fold(mlp), "Transformer": transformer}


@pytest.mark.parametrize("kind", ["MLP", "folded", "Transformer"])
def test_a_model_comes_back_the_same_bit_for_bit_and_can_be_trained_on(play, tmp_path, kind):
    network, path = kinds(play)[kind], tmp_path / "model.pt"
    play.save_model(network, path, name="mine", seed=3)
    loaded, settings = play.load_model(path)
    assert torch.equal(network.surprisals(NAMES), loaded.surprisals(NAMES))
    assert settings == {"name": "mine", "seed": 3} and loaded.config == network.config
    before = loaded.loss(NAMES)
    fit(play, loaded, batch_size=8)
    assert loaded.loss(NAMES) < before


def write(play, path, content):
    """A file as save_model writes it, with any content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    path.write_bytes(hashlib.sha256(data).digest() + data)


def test_a_broken_or_foreign_file_is_refused_with_one_sentence(play, tmp_path):
    path = tmp_path / "model.pt"
    play.save_model(play.models["small"], path)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"emma\nolivia\n", whole[32:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="model.pt is no model file that save_model has writ"):
            play.load_model(path)
    content = torch.load(io.BytesIO(whole[32:]), weights_only=True)
    write(play, path, content | {"vocabulary": [".", "x"]})
    with pytest.raises(ValueError, match="another vocabulary"):
        play.load_model(path)
    write(play, path, content | {"tensors": content["tensors"][:-1]})
    with pytest.raises(ValueError, match="shorter"):
        play.load_model(path)


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_file_with_code_in_it_is_refused_and_its_code_not_run(play, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    write(play, path, {"vocabulary": Evil(trace)})
    with pytest.raises(pickle.UnpicklingError):
        play.load_model(path)
    assert not trace.exists()


def test_a_network_that_no_config_makes_is_not_saved(play, tmp_path):
    network = small(play)
    with pytest.raises(ValueError, match="that a config has made"):
        play.save_model(play.Network(network.layers, 3), tmp_path / "model.pt")
    other = play.Network(small(play, hidden_sizes=(5,)).layers, 3, network.config)
    with pytest.raises(ValueError, match="another network's"):
        play.save_model(other, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_one_changed_byte_anywhere_is_noticed(play, tmp_path):
    path = tmp_path / "model.pt"
    play.save_model(play.models["small"], path)
    whole, choose = path.read_bytes(), random.Random(0)
    for place in choose.sample(range(len(whole)), 150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="no model file that"):
            play.load_model(path)


def test_an_earlier_file_survives_an_error_in_saving(play, tmp_path, monkeypatch):
    path, network = tmp_path / "model.pt", play.models["small"]
    play.save_model(network, path)
    before = path.read_bytes()

    def fails(*paths):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError):
        play.save_model(network, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", ["", "nowhere/model.pt", "folder/"])
def test_a_path_that_is_no_file_in_a_folder_is_refused_with_what_to_do(play, path):
    with pytest.raises(ValueError, match="give a file name in a folder that exists"):
        play.save_model(play.models["small"], path)


@pytest.mark.parametrize("value", [Path("x"), [Path("x")], {"a": Path("x")}])
def test_settings_that_could_not_be_read_again_are_refused_when_saving(play, tmp_path, value):
    with pytest.raises(ValueError, match="These settings cannot be read again"):
        play.save_model(play.models["small"], tmp_path / "model.pt", odd=value)
    good = {"a": [1, 2.5, None, True, "x"], "b": {"c": (1,)}}
    play.save_model(play.models["small"], tmp_path / "model.pt", **good)
    assert play.load_model(tmp_path / "model.pt")[1] == good
