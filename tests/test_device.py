"""Another device, played on the CPU: no float64 on it (Apple's GPU has none), nothing mixed."""

import pytest
import torch
from notebook_code import definitions
from small import NAMES, OTHERS
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

MPS = torch.device("mps")
BOTH = {"__setitem__", "__getitem__", "copy_", "equal", "__deepcopy__"}  # may take tensors of both


def there(value):
    return isinstance(value, torch.Tensor) and getattr(value, "is_there", False)


class OnDevice(TorchFunctionMode):
    """Marks what is made on 'mps' and all that comes of it; fails on float64 and on mixtures."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", str(function)), dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        inputs = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
        marked = any(map(there, inputs))
        if name == "__get__" and function == torch.Tensor.device.__get__:
            return MPS if marked else function(*args, **kwargs)
        wanted = [v for v in (*args, kwargs.get("device")) if isinstance(v, str | torch.device)]
        wanted = [torch.device(v).type for v in wanted if v in ("cpu", "mps", MPS) or v == MPS]
        if name == "cpu":
            wanted = ["cpu"]
        if name == "to" and len(args) > 1 and isinstance(args[1], torch.Tensor):
            wanted = ["mps" if there(args[1]) else "cpu"]
        elif marked and name not in BOTH:
            lonely = [v for v in inputs if not there(v) and v.dim() > 0]
            assert not lonely, f"{name} mixes a tensor of the CPU with one of the device"
        swap = lambda v: torch.device("cpu") if v in ("mps", MPS) else v  # noqa: E731
        args = tree_map(lambda v: swap(v) if isinstance(v, str | torch.device) else v, args)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        result = function(*args, **kwargs)
        on_device = wanted[-1] == "mps" if wanted else marked
        for value in tree_flatten(result)[0]:
            if isinstance(value, torch.Tensor):
                if on_device:
                    assert value.dtype != torch.float64, f"{name} makes float64 on the device"
                value.is_there = on_device
        return result


class Generator(torch.Generator):
    """A generator that says it is on the device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.where = torch.device(device)
        return made

    device = property(lambda self: self.where)


@pytest.fixture
def nb(monkeypatch):
    monkeypatch.setattr(torch, "Generator", Generator)
    with OnDevice():
        yield definitions(DEVICE="mps", PROCESSES=1, DRAWS=20, STUDY_LEVEL=2.5)


def everything(nb):
    """What the notebook computes on DEVICE, once each."""
    sizes = {"hidden_sizes": (8,), "context_size": 3, "embedding_dim": 4}
    run = {"steps": 6, "batch_size": 16, "learning_rate": 0.1, "show": False}
    for activation in ("ReLU", "tanh"):
        network = nb.DeepConfig(dropout=0.1, activation=activation, **sizes).make()
        assert there(network.parameters) and there(network.find("linear")[0].dW)
        history = nb.train(network, NAMES, dev=OTHERS, watch=nb.update_ratios(2), **run)
        assert len(history.loss) == 6 and network.loss(OTHERS) > 0
    X, _ = nb.windows(OTHERS, 3)
    for y in nb.activation_outputs(network, X):
        nb.saturation(y)
    nb.layer_signals(network, *nb.windows(OTHERS, 3))
    nb.training_mode_loss(network, OTHERS, 8)
    nb.fold(network).loss(OTHERS)
    tables = nb.AddAlpha(NAMES, 2, 0.1), nb.KneserNey(NAMES, 3)
    transformer = nb.TransformerConfig(8, 2, blocks=2, context_size=16).make()
    nb.train(transformer, NAMES, optimizer=nb.AdamW, **run)
    nb.attention_weights(transformer, "emma")
    tree = nb.TreeConfig(hidden_sizes=(8, 8), context_size=4, embedding_dim=4).make()
    nb.train(tree, NAMES, **run)
    ensemble = nb.Ensemble(network, transformer)
    for model in (nb.Model(), *tables, network, transformer, ensemble, tree):
        assert model.loss(OTHERS) > 0 and model.name_surprisals(OTHERS).device.type == "cpu"
        assert len(model.sample(5, prefix="e", max_length=9)) == 5
        nb.bootstrap(model, OTHERS, tables[0], draws=5)
        nb.loss_by_place(model)
    nb.vowels_explain(nb.through_weights(network))
    runs = nb.study([{}], nb.bn_measures, seeds=[1, 2], watch=nb.update_ratios(3), **sizes,
                    **{k: v for k, v in run.items() if k != "show"}, dev=OTHERS)  # fmt: skip
    assert runs[0]["network"].loss(OTHERS) == runs[0]["dev"]
    assert nb.check_network_gradient(network, NAMES[:3]) < 1e-10, "the judge works on the CPU"


def test_the_notebook_computes_on_a_device_without_float64(nb):
    everything(nb)


def on_the_cpu(names, size):
    return tuple(part.cpu() for part in RIGHT["windows"](names, size))


RIGHT = {}
FAULTS = {
    "loss in float64": ("Model", "loss", lambda self, n: self.surprisals(n).double().mean().item()),
    "windows left on the CPU": (None, "windows", on_the_cpu),
    "saturation in float64": (None, "saturation", lambda y: (y.double().mean().item(), 0.0)),
    "a mask on the CPU": ("ReLU", "backward", lambda self, dy: dy * (self.y.cpu() > 0)),
    "averages on the CPU": ("BatchNorm1d", "forward", lambda self, x: x - torch.zeros(len(x[0]))),
    "random numbers not moved": ("Dropout", "forward", lambda self, x: x * torch.rand(x.shape)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(nb, fault, monkeypatch):
    where, name, faulty = FAULTS[fault]
    RIGHT["windows"] = nb.windows
    if where is None:
        nb.globals[name] = faulty
    else:
        monkeypatch.setattr(nb.globals[where], name, faulty)
    space = type(nb)(**nb.globals, globals=nb.globals)
    with pytest.raises(AssertionError, match="float64 on the device|mixes a tensor"):
        everything(space)
