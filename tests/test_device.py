"""Another device, played on the CPU: no float64 on it (Apple's GPU has none), nothing mixed."""

import pytest
import torch
from notebook_code import definitions
from small import NAMES, OTHERS
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, MPS = torch.device("cpu"), torch.device("mps")
BOTH = "__setitem__ __getitem__ copy_ equal __deepcopy__ to".split()  # may take tensors of both


def there(value):
    return getattr(value, "is_there", False)


def tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class OnDevice(TorchFunctionMode):
    """Marks what is made on 'mps' and all that comes of it; fails on float64 and on mixtures."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", str(function)), kwargs or {}
        if function is torch.device:
            return function(*args, **kwargs)
        inputs = tensors((args, kwargs))
        on_device = any(map(there, inputs)) and name != "cpu"
        if function == torch.Tensor.device.__get__:
            return MPS if on_device else CPU
        if on_device and name not in BOTH:
            lonely = [value for value in inputs if not there(value) and value.dim() > 0]
            assert not lonely, f"{name} mixes a tensor of the CPU with one of the device"
        if name == "to":
            on_device = there(inputs[-1])  # of .to(other): other
        for place in (*args, kwargs.get("device")):
            if isinstance(place, str | torch.device) and str(place) in ("cpu", "mps"):
                on_device = str(place) == "mps"
        swap = lambda place: CPU if str(place) == "mps" else place  # noqa: E731
        args, kwargs = tree_map_only((str, torch.device), swap, (args, kwargs))
        result = function(*args, **kwargs)
        for value in tensors(result):
            value.is_there = on_device
            assert not on_device or value.dtype != torch.float64, f"{name}: float64 on the device"
        return result


class Generator(torch.Generator):
    """A generator that says it is on the device."""

    device = CPU

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.device = torch.device(device)
        return made


@pytest.fixture
def nb(monkeypatch):
    monkeypatch.setattr(torch, "Generator", Generator)
    with OnDevice():
        yield definitions(DEVICE="mps", PROCESSES=1, DRAWS=20, STUDY_LEVEL=2.5)


def test_the_notebook_computes_on_a_device_without_float64(nb):
    """What it computes on DEVICE, once each."""
    sizes = {"hidden_sizes": (8,), "context_size": 3, "embedding_dim": 4}
    run = {"steps": 6, "batch_size": 16, "learning_rate": 0.1, "show": False, "dev": OTHERS}
    run["watch"] = nb.update_ratios(2)
    kinds = [nb.DeepConfig(dropout=0.1, activation=name, **sizes) for name in ("ReLU", "tanh")]
    kinds.append(nb.TreeConfig(hidden_sizes=(8, 8), context_size=4, embedding_dim=4))
    networks = [kind.make() for kind in (*kinds, nb.TransformerConfig(8, 2, context_size=16))]
    for network in networks:
        assert there(network.parameters) and there(network.find("linear")[0].dW)
        nb.train(network, NAMES, optimizer=nb.AdamW, loss=nb.SoftCrossEntropy, **run)
    nb.attention_weights(networks[3], "emma")
    network, data = networks[1], nb.windows(OTHERS, 3)
    nb.saturation(nb.activation_outputs(network, data[0])[0])
    nb.layer_signals(network, *data)
    nb.training_mode_loss(network, OTHERS, 8)
    nb.fold(network).loss(OTHERS)
    tables = nb.AddAlpha(NAMES, 2, 0.1), nb.KneserNey(NAMES, 3)
    for model in (nb.Model(), nb.Ensemble(*networks[2:]), *tables, *networks):
        assert model.loss(OTHERS) > 0 and len(model.sample(5, prefix="e", max_length=9)) == 5
        nb.bootstrap(model, OTHERS, tables[0], draws=5)
        nb.loss_by_place(model)
    nb.vowels_explain(nb.through_weights(network))
    runs = nb.study([{}], nb.bn_measures, seeds=[1, 2], **sizes, **run)
    assert runs[0]["network"].loss(OTHERS) == runs[0]["dev"]
    assert nb.check_network_gradient(network, NAMES[:3]) < 1e-10, "the check works on the CPU"


FAULTS = [
    ("Model", "loss", lambda self, names: self.surprisals(names).double().mean().item()),
    ("Network", "examples", lambda self, names: torch.zeros(2, 99, 3, dtype=torch.long)),
    ("Tanh", "forward", lambda self, x: x.double().tanh().float()),
    ("ReLU", "backward", lambda self, dy: dy * (self.y.cpu() > 0)),
    ("BatchNorm1d", "forward", lambda self, x: x - torch.zeros(len(x[0]))),
    ("Dropout", "forward", lambda self, x: x * torch.rand(x.shape)),
]


@pytest.mark.parametrize("kind, method, faulty", FAULTS)
def test_a_planted_fault_is_seen(nb, kind, method, faulty):
    setattr(nb.globals[kind], method, faulty)
    with pytest.raises(AssertionError, match="float64 on the device|mixes a tensor"):
        test_the_notebook_computes_on_a_device_without_float64(nb)
