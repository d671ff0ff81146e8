"""Tiny models and data that tests share, and processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from eval.environments import Cups, build
from latent import make, methods
from latent.codec import Codec
from latent.config import ModelConfig
from latent.generate import Reasoner
from latent.text import Batch
from latent.thought import Prompt

ROOT = Path(__file__).parent.parent
SMALL = ModelConfig(n_layer=2, n_embd=32, n_head=2, n_positions=64)


def small_reasoner(method, model=SMALL, env=None, dtype=torch.float32) -> Reasoner:
    """An untrained reasoner for cups, or for another environment."""
    env = env or build(Cups())
    codec = env.codec(model)
    body = make.from_scratch(model, codec.size, codec.pad, codec.end)
    made = methods.build(method, body).to(dtype)
    return Reasoner(made, codec, env.answer_tokens, env.chain_tokens, env.chain_steps)


def cups_batch(codec: Codec, size: int = 6, index: int = 0) -> Batch:
    return Batch.of(build(Cups()).train_batch(0, index, size), codec)


def ragged_prompt(lengths=(3, 7, 5), vocab: int = 13) -> Prompt:
    """Left-padded random prompts of different lengths."""
    longest = max(lengths)
    ids = torch.randint(1, vocab, (len(lengths), longest))
    mask = torch.tensor([[i >= longest - n for i in range(longest)] for n in lengths])
    return Prompt(ids * mask, mask)


def row_of(prompt: Prompt, b: int) -> Prompt:
    """One row, without its padding."""
    return Prompt(prompt.ids_BT[b : b + 1, prompt.mask_BT[b]])


def python(*args, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    """A Python process that has run to its end, well or not; what it said is text."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)
