"""Fixtures that several test files share."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from notebook_code import definitions
from small import NAMES

from charlm_utils import build_dataset

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nb():
    """The definitions in the notebook's own cells, executed; nothing is trained."""
    return definitions(known={"emma", "ava"}, real={"mia"}, dev_data=None, train_data=None)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def data(nb):
    """(X, Y) of a few names, context 3."""
    return build_dataset(NAMES, nb.vocab, 3)
