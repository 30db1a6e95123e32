"""Small networks and small lists of names, quick to train."""

NAMES = ["emma", "olivia", "ava", "isabella", "sophia", "mia", "amelia", "harper", "ella"] * 4
OTHERS = ["zoe", "max", "lily", "noah", "ruby"]  # names that training does not see


def small(nb, seed=1, **options):
    """A network of 16 hidden units, with BatchNorm unless told otherwise."""
    sizes = {"hidden_sizes": (16,), "context_size": 3, "embedding_dim": 10}
    return nb.DeepConfig(**{"init": "gain 5/3", **sizes, "seed": seed, **options}).make()


def fit(nb, network, names=NAMES, **options):
    """The history of 60 steps of the notebook's own loop, unless told otherwise."""
    usual = {"steps": 60, "batch_size": 32, "learning_rate": 0.1, "show": False}
    return nb.train(network, names, **usual | options)
