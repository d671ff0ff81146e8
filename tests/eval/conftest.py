"""Checkpoints that several files of tests open."""

import pytest
import torch

from latent import hub
from latent.methods import CoT, NoCoT, Recurrent, Sim
from tests.helpers import small_reasoner


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Untrained checkpoints by method."""
    torch.manual_seed(0)
    made = {}
    methods = {"no-cot": NoCoT(), "cot": CoT(), "sim": Sim(n_latent=3, stride=4), "recurrent": Recurrent()}
    for name, method in methods.items():
        made[name] = tmp_path_factory.mktemp(name)
        hub.save(small_reasoner(method), made[name])
    return made
