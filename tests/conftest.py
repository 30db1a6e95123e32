"""Fixtures that several test files share."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from notebook_code import definitions

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nb():
    """The definitions in the notebook's own cells, executed; nothing is trained."""
    return definitions()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
