"""The playground: studio, training your own, keeping a model; the notebook's own functions."""

import re
import threading

import pytest
import torch
from notebook_code import definitions
from small import NAMES, OTHERS

from charlm_utils import build_dataset


@pytest.fixture
def play():
    """The notebook's definitions with two small untrained models to play with."""
    nb = definitions(
        known=set(NAMES),
        real=set(OTHERS),
        dev_data=None,
        train_data=None,
        models={},
        references={},
        tries=[],
        own_data={},
        baseline={},
        train_names=NAMES * 8,
        dev_names=NAMES,  # names that a short run can learn: else it counts as diverged
        stop_training=threading.Event(),
        REFERENCE_DRAWS=50,
        SEED=1,
    )
    space = nb.train_own.__globals__
    space["train_data"] = build_dataset(NAMES * 8, nb.vocab, nb.CONTEXT_SIZE)
    space["dev_data"] = build_dataset(NAMES, nb.vocab, nb.CONTEXT_SIZE)
    nb.models["small"] = nb.make_mlp("gain 1/2", batch_norm=True, hidden_sizes=(8,))
    nb.models["Transformer"] = nb.WindowView(nb.make_transformer(16, 4))
    for name, network in nb.models.items():
        nb.references[name] = nb.total_surprise(network, nb.sample(network, 50))
    return nb


DIALS = {
    "context": 4,
    "embedding": 6,
    "hidden": 16,
    "layers": 2,
    "batch_norm": True,
    "dropout": 0.1,
    "learning_rate": 0.1,
    "batch": 32,
    "steps": 60,
}


def shown_names(page):
    return [re.sub(r"[ *✓]", "", name) for name in re.findall(r"nowrap\">(.*?)</span>", page)]


@pytest.mark.parametrize("model", ["small", "Transformer"])
def test_the_studio_shows_as_many_names_as_asked_each_with_its_prefix(play, model):
    page = play.studio_names(model, count=7, prefix=" Em ")
    names = shown_names(page)
    assert len(names) == 7 and all(name.startswith("Em") for name in names)


def test_the_studio_marks_known_real_and_new_names_differently(play):
    assert [play.kind_of_name(n) for n in ("emma", "zoe", "qqq")] == ["known", "real", "new"]
    assert len(set(play.MARKS.values())) == 3, "colour and sign differ"
    assert len({mark for _, mark in play.MARKS.values()}) == 3, "not by colour alone"


@pytest.mark.parametrize(("prefix", "sentence"), [("a1", "'1' occurs in no name"), (".", "'.'")])
def test_a_prefix_that_cannot_begin_a_name_gets_one_sentence(play, prefix, sentence):
    page = play.studio_names("small", prefix=prefix)
    assert sentence.replace("'", "&#x27;") in page and not shown_names(page)


def test_a_name_typed_into_the_studio_cannot_bring_markup_along(play):
    for page in (play.studio_names("small", prefix="<b>"), play.studio_surprise("small", "<b>")):
        assert "<b>" not in page


@pytest.mark.parametrize("model", ["small", "Transformer"])
def test_the_surprise_of_a_name_sums_to_its_probability_and_rank(play, model):
    page = play.studio_surprise(model, "Emma")
    total = play.total_surprise(play.models[model], ["emma"]).item()
    assert f"one draw in {torch.tensor(total).exp().item():,.0f}"[:14] in page
    rank = int(re.search(r"rank ([\d,]+) among 50", page).group(1))
    assert rank == (play.references[model] < total).sum().item() + 1
    assert len(re.findall("<small>", page)) == len("emma.") + 1
    assert "Type a name." in play.studio_surprise(model, "  ")


def test_total_surprises_are_those_of_the_characters_of_each_name(play):
    network, names = play.models["small"], ["emma", "bo"]
    losses = play.surprises(network, play.dataset(names, network.context_size))
    expected = torch.stack([losses[:5].sum(), losses[5:].sum()]).double()
    assert torch.allclose(play.total_surprise(network, names), expected, atol=1e-5)


def test_a_network_trained_with_the_dials_joins_the_models_and_the_tries(play):
    seen = []
    network, history, text = play.train_own(lambda h: seen.append(len(h.loss)), **DIALS)
    assert play.models["your model 1"] is network and "your model 1" in play.references
    assert network.context_size == 4 and len(history.loss) == 60
    assert seen and seen == sorted(seen), "the live curve looks on while it trains"
    assert "dev loss" in text and play.tries[0]["dev"] == play.evaluate(
        network, play.data_for(4)[1]
    )
    play.train_own(**DIALS | {"steps": 30})
    assert [row["model"].split()[-1] for row in play.tries] == ["1", "2"]


def test_stop_keeps_what_was_trained(play):
    def stop(history):
        if history.loss:
            play.stop_training.set()

    network, history, text = play.train_own(stop, **DIALS | {"steps": 3_000})
    assert 0 < len(history.loss) < 3_000 and "interrupted after" in text
    assert "your model 1" in play.models and len(play.tries) == 1


def test_a_try_that_diverges_says_so_and_is_not_kept(play):
    wild = DIALS | {"batch_norm": False, "learning_rate": 1e6, "layers": 3}
    _, history, text = play.train_own(**wild)
    assert "diverged" in text and "try a learning rate of 1e+05" in text and "not kept" in text
    assert not play.tries and "your model 1" not in play.models


def test_stop_during_the_run_of_the_baseline_keeps_nothing_and_says_so(play):
    def stop(step, change):
        raise KeyboardInterrupt

    with pytest.raises(ValueError, match="Stopped before your network's turn"):
        play.baseline_for(50, stop)
    assert not play.baseline, "half a run is no baseline"
    assert play.baseline_for(50).dev, "and it can be asked again"


def test_a_batch_larger_than_the_data_gets_one_sentence(play):
    with pytest.raises(ValueError, match="lower it"):
        play.train_own(**DIALS | {"batch": 10**7})


def test_the_curve_is_drawn_for_no_step_for_one_and_for_many(play):
    for losses in ([], [3.0], [3.0] * 5_000):
        assert play.draw_training(play.History(loss=losses), None, "title").axes


def test_moving_one_example_moves_all_outputs_of_the_batch(play):
    def outputs(value):
        axis = play.draw_coupling(value).axes[1]
        return torch.tensor([y for line in axis.lines for y in line.get_ydata()])[1:]

    assert (outputs(0.5) != outputs(3.0)).all()


# Keep and bring back


def kinds(play):
    mlp = play.make_mlp(
        "gain 1/2", batch_norm=True, hidden_sizes=(8, 8), activation=play.ReLU, dropout=0.2
    )
    X, Y = play.train_own.__globals__["train_data"]
    play.train(mlp, (X, Y), steps=20, batch_size=32, show=False)
    folded = play.fold(mlp)
    folded.context_size = mlp.context_size
    transformer = play.make_transformer(16, 4)
    transformer.parameters.add_(0.1)
    return {"MLP": mlp, "folded": folded, "Transformer": play.WindowView(transformer)}


@pytest.mark.parametrize("kind", ["MLP", "folded", "Transformer"])
def test_a_model_comes_back_with_the_same_logits_bit_for_bit(play, tmp_path, kind):
    network = kinds(play)[kind]
    path = tmp_path / "model.pt"
    play.keep(network, path, name="mine", seed=3)
    loaded, settings = play.bring_back(path)
    contexts = build_dataset(NAMES, play.vocab, network.context_size)[0]
    assert torch.equal(play.next_logits(network)(contexts), play.next_logits(loaded)(contexts))
    assert settings == {"name": "mine", "seed": 3}
    assert loaded.context_size == network.context_size


def test_a_model_that_came_back_can_be_trained_on(play, tmp_path):
    play.keep(kinds(play)["MLP"], tmp_path / "model.pt")
    loaded, _ = play.bring_back(tmp_path / "model.pt")
    data = play.train_own.__globals__["train_data"]
    before = play.evaluate(loaded, data)
    play.train(loaded, data, steps=60, batch_size=32, show=False)
    assert play.evaluate(loaded, data) < before


def test_a_broken_or_foreign_file_is_refused_with_one_sentence(play, tmp_path):
    path = tmp_path / "model.pt"
    play.keep(play.models["small"], path)
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    foreign = {
        "cut off": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"emma\nolivia\n",
    }
    for case, data in foreign.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a model that `keep` has saved"):
            play.bring_back(path)
        assert case
    for change in (
        {"format": "another 7"},
        {"vocabulary": [".", "x"]},
        {"layers": [["Linear", 3, 4, True]]},
        {"layers": [["os.system", "true"]]},
        {"tensors": content["tensors"][:-1]},
        {"tensors": [t[:1] for t in content["tensors"]]},
    ):
        torch.save(content | change, path)
        with pytest.raises(ValueError, match="not a model that `keep` has saved"):
            play.bring_back(path)
    torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match="not a model"):
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
    torch.save({"format": play.KEEP_FORMAT, "layers": Evil(trace)}, path)
    with pytest.raises(ValueError, match="not a model"):
        play.bring_back(path)
    assert not trace.exists()


def test_a_layer_that_cannot_be_described_is_refused(play, tmp_path):
    network = play.models["small"]
    network.layers.append(play.GELU())
    with pytest.raises(ValueError, match="Cannot save a layer of type GELU"):
        play.keep(network, tmp_path / "model.pt")
