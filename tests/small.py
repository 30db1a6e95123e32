"""Small networks and a small data set, quick to train."""

NAMES = ["emma", "olivia", "ava", "isabella", "sophia", "mia", "amelia", "harper", "ella"] * 4
OTHERS = ["zoe", "max", "lily", "noah", "ruby"]  # names that training does not see


def small(nb, seed=1, **options):
    """A network of 16 hidden units, with BatchNorm unless told otherwise."""
    options = {"batch_norm": True, "hidden_sizes": (16,)} | options
    return nb.make_mlp("gain 5/3", seed=seed, **options)


def fit(nb, network, data, **options):
    """The history of 60 steps of the notebook's own loop, unless told otherwise."""
    options = {"steps": 60, "batch_size": 32, "learning_rate": 0.1, "show": False} | options
    return nb.train(network, data, **options)
