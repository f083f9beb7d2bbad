"""Models and sequences that are measured in every test here."""

import pytest
import torch
from lazy_models import VOCABULARY, collapse_layers, tiny_model


@pytest.fixture(scope="session")
def model():
    """A GPT-2 of six layers. Never changed."""
    return tiny_model()


@pytest.fixture(scope="session")
def collapsed():
    """The same with all heads of layers 2, 4 and 5 forced to the first column. Never changed."""
    return collapse_layers(tiny_model(), (2, 4, 5))


@pytest.fixture(scope="session")
def sequences():
    """Forty sequences of 24 tokens, of shape (sequences, tokens)."""
    return torch.randint(0, VOCABULARY, (40, 24), generator=torch.Generator().manual_seed(1))
