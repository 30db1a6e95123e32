"""The playground: studios, training your own, keeping a model; the notebook's functions."""

import re
import threading

import pytest
import torch
from notebook_code import definitions
from small import NAMES, fit, small

DIALS = {"context": 4, "embedding": 6, "hidden size": 16, "layers": 2, "BatchNorm": True}
DIALS |= {"dropout": 0.1, "learning rate": 0.1, "batch": 32, "steps": 60}


@pytest.fixture
def play():
    """The notebook's definitions with two small untrained models to play with."""
    own = {"models": {}, "references": {}, "tries": [], "baselines": {}, "SEED": 1}
    own |= {"stop_training": threading.Event(), "train_names": NAMES * 8, "dev_names": NAMES}
    nb = definitions(**own)
    nb.models["small"] = small(nb)
    nb.models["Transformer"] = nb.TransformerRecipe(16, 4, context_size=9).make()
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
    counts = re.search(r"(\d+) new \*, (\d+) real ✓, (\d+) from training", page).groups()
    assert sum(map(int, counts)) == 7 and page.count("*</span>") == int(counts[0])


def test_kinds_of_names_are_marked_by_colour_and_by_sign(play):
    assert len(set(play.MARKS.values())) == 3 == len({sign for _, sign in play.MARKS.values()})


@pytest.mark.parametrize(("prefix", "wrong"), [("a1", "'1'"), (".", "'.'"), ("<b>", "'<'")])
def test_a_text_that_cannot_be_a_name_is_refused_with_its_character(play, prefix, wrong):
    for ask in (
        lambda: play.studio_names(0, "small", prefix=prefix),
        lambda: play.studio_surprise("small", prefix),
    ):
        with pytest.raises(ValueError, match=f"{re.escape(wrong)} occurs in no name"):
            ask()


@pytest.mark.parametrize("model", ["small", "Transformer"])
def test_the_surprise_of_a_name_gives_its_probability_and_rank(play, model):
    page, network = play.studio_surprise(model, "Emma"), play.models[model]
    total = network.totals(["emma"]).item()
    assert f"one draw in {torch.tensor(total).exp().item():,.0f}"[:14] in page
    samples = network.totals(network.sample(1_000))
    rank = int(re.search(r"rank ([\d,]+) among 1,000", page).group(1).replace(",", ""))
    assert rank == (samples < total).sum().item() + 1
    losses = network.surprises(["emma"]).tolist()
    assert re.findall(r"([A-Za-z.])<br><small>", page) == [*"Emma."]
    assert re.findall(r"<small>([\d.]+)</small>", page) == [f"{loss:.1f}" for loss in losses]
    assert "in the training list" in page and play.studio_surprise(model, " ") == "Type a name."


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
    recipe = network.recipe
    assert (recipe.context_size, recipe.embedding_dim, recipe.hidden_sizes) == (4, 6, (16, 16))
    assert recipe.dropout == 0.1 and recipe.batch_norm and recipe.init == "gain 1/2"
    assert network.history.learning_rate[0] == 0.1
    assert f"your model 1: dev loss {network.loss(NAMES):.4f} (60 steps in" in text
    assert f"Model 2's network {play.baselines[60].loss(NAMES):.4f}" in text
    (row,) = play.tries
    assert row["dev"] == f"{network.loss(NAMES):.4f}" and row["steps"] == 60
    other, text = play.train_own(DIALS | {"BatchNorm": False, "steps": 30})
    assert other.recipe.init == "gain 5/3" and text.startswith("your model 2")
    assert len(play.tries) == 2 and set(play.models) > {"your model 1", "your model 2"}


def test_stop_keeps_what_was_trained(play):
    play.baselines[3_000] = small(play)
    network, text = play.train_own(
        DIALS | {"steps": 3_000}, lambda n, step, c: step == 9 and play.stop_training.set()
    )
    assert len(network.history.loss) == 9 and "stopped after 9 of 3,000" in text
    assert "your model 1" in play.models and play.tries[0]["steps"] == 9


def test_a_try_that_diverges_says_so_and_is_not_kept(play):
    wild = DIALS | {"BatchNorm": False, "learning rate": 1e6, "layers": 3}
    _, text = play.train_own(wild)
    for part in ("your model 1 diverged", "rate of 1e+05, or BatchNorm", "It is not kept."):
        assert part in text
    assert not play.tries and "your model 1" not in play.models


def test_stop_during_the_run_of_the_baseline_keeps_nothing_and_says_so(play):
    play.stop_training.set()
    with pytest.raises(ValueError, match="Stopped before your network's turn"):
        play.baseline_for(50)
    assert not play.baselines, "half a run is no baseline"
    play.stop_training.clear()
    assert play.baseline_for(50) is play.baseline_for(50) and play.baselines[50].steps == 50


def test_a_batch_larger_than_the_data_gets_one_sentence(play):
    with pytest.raises(ValueError, match="lower it"):
        play.train_own(DIALS | {"batch": 10**7})


def test_the_curve_is_drawn_for_no_step_for_one_and_for_many(play):
    many = play.History(loss=[3.0, 2.0] * 2_500)
    for losses in ([], [3.0], [3.0, 9e9], [3.0] * 5_000):
        (ax,) = play.draw_training(many, play.History(loss=losses)).axes
        assert len(ax.lines) == 2 and len(ax.lines[0].get_xdata()) <= 1_000
        assert max([0, *ax.lines[1].get_ydata()]) < 7, "a spike does not flatten the rest"


def test_the_panel_has_a_control_for_each_dial(play):
    assert set(play.panel_controls()) == set(DIALS)
    assert play.panel_controls()["dropout"].value == 0.0


def test_moving_one_example_moves_all_outputs_of_the_batch(play):
    def outputs(value):
        axis = play.draw_coupling(value).axes[1]
        return torch.tensor([y for line in axis.lines for y in line.get_ydata()])[2:]

    assert (outputs(0.5) != outputs(3.0)).all()


# Keep and bring back


def kinds(play):
    mlp = small(play, hidden_sizes=(8, 8), activation="ReLU", dropout=0.2)
    fit(play, mlp, steps=20)
    transformer = play.TransformerRecipe(16, 4, context_size=9).make()
    transformer.parameters.add_(0.1)
    return {"MLP": mlp, "folded": play.fold(mlp), "Transformer": transformer}


@pytest.mark.parametrize("kind", ["MLP", "folded", "Transformer"])
def test_a_model_comes_back_the_same_bit_for_bit_and_can_be_trained_on(play, tmp_path, kind):
    network, path = kinds(play)[kind], tmp_path / "model.pt"
    play.keep(network, path, name="mine", seed=3)
    loaded, settings = play.bring_back(path)
    assert torch.equal(network.surprises(NAMES), loaded.surprises(NAMES))
    assert settings == {"name": "mine", "seed": 3} and loaded.recipe == network.recipe
    before = loaded.loss(NAMES)
    fit(play, loaded, batch_size=8)
    assert loaded.loss(NAMES) < before


def test_a_broken_or_foreign_file_is_refused_with_one_sentence(play, tmp_path):
    path, refused = tmp_path / "model.pt", "is not a model that `keep` has saved"
    play.keep(play.models["small"], path)
    whole, content = path.read_bytes(), torch.load(path, weights_only=True)
    for data in (whole[: len(whole) // 2], b"", b"emma\nolivia\n"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=refused) as error:
            play.bring_back(path)
        assert "\n" not in str(error.value)
    for change in (
        {"format": "another 7"},
        {"vocabulary": [".", "x"]},
        {"recipe": "os.system"},
        {"values": content["values"] | {"hidden_sizes": (5,)}},
        {"values": {"unknown": 1}},
        {"tensors": content["tensors"][:-1]},
        {"tensors": [t[:1] for t in content["tensors"]]},
    ):
        torch.save(content | change, path)
        with pytest.raises(ValueError, match=refused):
            play.bring_back(path)
    torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match=refused):
        play.bring_back(path)
    with pytest.raises(FileNotFoundError, match="save a model there first"):
        play.bring_back(tmp_path / "nowhere.pt")


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_file_with_code_in_it_is_refused_and_its_code_not_run(play, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    torch.save({"format": play.KEEP_FORMAT, "vocabulary": Evil(trace)}, path)
    with pytest.raises(ValueError, match="not a model"):
        play.bring_back(path)
    assert not trace.exists()


def test_a_network_that_no_recipe_makes_is_not_saved(play, tmp_path):
    network = small(play)
    with pytest.raises(ValueError, match="that a recipe has made"):
        play.keep(play.Network(network.layers, 3), tmp_path / "model.pt")
    other = play.Network(small(play, hidden_sizes=(5,)).layers, 3, network.recipe)
    with pytest.raises(ValueError, match="another network's"):
        play.keep(other, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()
