import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import bench, report

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "kernels.bench"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: there is no GPU to measure on\n")


def test_the_readme_is_what_the_tables_say():
    assert report.README.read_text() == report.text(), "run python -m kernels.bench --readme"


def test_the_rivals_layer_is_the_definition():
    """The static cache of the graph and compile arms against the growing one of the definition."""
    from kernels.latent_chain.reference import norm, step
    from tests.kernels.decoders import FAMILIES, make_decoder, make_past, make_rope

    for family in FAMILIES:
        decoder = make_decoder(family)
        past, x, rope = make_past(decoder, 2, 5), torch.randn(2, 24).double(), make_rope(decoder, 2, 1)
        with torch.no_grad():
            want, _ = step(x, past, decoder, rope, None)
            kv = [tuple(torch.cat([t, torch.zeros(2, t.shape[1], 3, t.shape[3])], 2) for t in pair) for pair in past]
            for layer, (k, v) in zip(decoder.layers, kv):
                x = bench.static_layer(x, layer, decoder, k, v, torch.tensor([5]), rope, torch.arange(8) <= 5)
        torch.testing.assert_close(norm(x, decoder.norm, decoder), want, rtol=0, atol=1e-12)
