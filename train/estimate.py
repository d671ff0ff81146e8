"""An estimate of what a preset costs, without running it: FLOPs, memory and time.

FLOPs are those that a method counts for a forward pass, times three for a training step. Time is FLOPs over the rate of
a large matrix product, measured on this machine or assumed for a GPU: small models and many latents take longer.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from eval import environments
from kernels.errors import UserError, first_line
from latent import methods
from latent.codec import Codec
from latent.make import from_config
from latent.methods.base import Method
from train.config import RLVR, Run

# shapes of models whose config may not be available: family, layers, D, MLP, heads, K/V heads, vocabulary, positions
SHAPES = {
    "openai-community/gpt2": ("gpt2", 12, 768, 3072, 12, 12, 50257, 1024),
    "gpt2": ("gpt2", 12, 768, 3072, 12, 12, 50257, 1024),
    "meta-llama/Llama-3.2-1B": ("llama", 16, 2048, 8192, 32, 8, 128256, 131072),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 16, 2048, 8192, 32, 8, 128256, 131072),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 30, 576, 1536, 9, 3, 49152, 8192),
    "Qwen/Qwen3-0.6B": ("qwen3", 28, 1024, 3072, 16, 8, 151936, 40960),
}
# tokens of prompt, chain and answer where the data is not available: means over 500 problems of GSM8K (SmolLM2's
# tokenizer) and over 300 of ProsQA (one token a word)
LENGTHS = {"GSM8K": (62, 36, 6), "ProsQA": (190, 28, 7)}
H100 = 0.4 * 990e12, 0.4 * 67e12  # FLOP/s assumed of one H100, bf16 and fp32: two fifths of the data sheet


def report(runs: dict[str, Run]) -> list[str]:
    """The lines to print: one for each arm, and the assumptions."""
    rate = matmul_rate()
    rows = [["arm", "parameters", "updates", "FLOP", "memory", "here, one core", "one H100"]]
    sources = set()
    for arm, run in runs.items():
        method, total, trained = on_meta(run)
        prompt, chain, answer, source = lengths(run)
        sources.add(source)
        flops = run.train.steps * run.train.batch * problem_flops(run, method, prompt, chain, answer)
        memory = 12 * trained + 4 * total + activations(run, method, prompt, chain, answer)
        seconds = flops / rate, flops / H100[0 if run.model.bf16 else 1]
        rows.append(
            [arm, f"{total / 1e6:.4g} M", str(run.train.steps), f"{flops:.2g}", f"{memory / 2**30:.1f} GiB"]
            + [duration(s) for s in seconds]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths)) for row in rows]
    notes = [
        f"Estimates. Tokens a problem: {'; '.join(sorted(sources))}. Time is at least FLOPs / rate: "
        f"{rate / 1e9:.0f} GFLOP/s measured on one core here, {H100[0] / 1e12:.0f} (bf16) or {H100[1] / 1e12:.0f} "
        "(fp32) TFLOP/s assumed of an H100. Evaluation is not included."
    ]
    return [*lines, *notes]


def on_meta(run: Run) -> tuple[Method, int, int]:
    """The run's method on the meta device, the number of its parameters, and how many of them are trained."""
    with torch.device("meta"):
        body = from_config(config_of(run))
        method = methods.build(run.method, body)
    total = sum(p.numel() for p in method.parameters())
    rank = run.model.lora_rank
    inner = sum(p.numel() for p in body.lm.parameters())
    adapters = rank * sum(sum(p.shape) for p in body.blocks.parameters() if p.ndim == 2)
    return method, total, total - inner + adapters if rank else total


def config_of(run: Run):
    """The backbone's config: of a model from scratch, from `SHAPES`, from a directory, or from the hub."""
    from transformers import AutoConfig

    from latent.make import config_from_scratch

    name = run.model.pretrained
    if name is None:
        codec = environments.build(run.env).codec(run.model)
        return config_from_scratch(run.model, codec.size, codec.pad, codec.end)
    if name in SHAPES:
        return config_of_shape(name)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise UserError(f"no config of {name!r} to estimate from: {first_line(e)}") from None


def config_of_shape(name: str):
    """The config of a model in `SHAPES`, without its weights."""
    from transformers import AutoConfig

    kind, layers, d, inner, heads, kv, vocab, positions = SHAPES[name]
    if kind == "gpt2":
        return AutoConfig.for_model(
            kind, n_layer=layers, n_embd=d, n_inner=inner, n_head=heads, vocab_size=vocab, n_positions=positions
        )
    return AutoConfig.for_model(
        kind, num_hidden_layers=layers, hidden_size=d, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=128 if kind == "qwen3" else d // heads, vocab_size=vocab,
        max_position_embeddings=positions, tie_word_embeddings=True,
    )  # fmt: skip


def lengths(run: Run) -> tuple[float, float, float, str]:
    """Mean tokens of prompt, chain and answer, and where the numbers come from."""
    try:
        env = environments.build(run.env)
    except UserError:
        name = type(run.env).__name__
        if name not in LENGTHS:
            raise
        return *LENGTHS[name], f"{name}'s usual ones, for its data is not at hand"
    if run.model.pretrained is None:
        codec, which = env.codec(run.model), "the model's tokens"
    elif Path(run.model.pretrained).is_dir():
        from transformers import AutoTokenizer

        codec = Codec(AutoTokenizer.from_pretrained(run.model.pretrained, trust_remote_code=False))
        which = "the model's tokens"
    else:
        codec, which = env.codec(run.model), "tokens of a small vocabulary of our own"
    problems = [env.told(p, run.method.told, "estimated") for p in env.train_batch(run.seed, 0, 64)]
    mean = lambda sizes: sum(sizes) / len(problems)  # noqa: E731
    prompt = mean([len(codec.question(p.question)) for p in problems])
    chain = mean([sum(len(codec.step(s)) for s in p.steps) for p in problems])
    return prompt, chain, mean([len(codec.answer(p.answer)) for p in problems]), f"the means of 64 problems, in {which}"


def problem_flops(run: Run, method: Method, prompt: float, chain: float, answer: float) -> float:
    """FLOPs to train on one problem; in RL on a prompt with its group, sampled once and learned from `epochs` times."""
    read = method.sequences(chain, answer)
    backward = (1 if run.model.lora_rank else 2) + run.model.recompute
    if isinstance(run.train, RLVR):
        used, text = read[0]
        thought = method.flops(prompt, used, 1)
        once = thought + run.train.group * (method.flops(prompt, used, text) - thought)
        return once * (1 + run.train.epochs * (1 + backward))
    return sum(method.flops(prompt, used, text) for used, text in read) * (1 + backward)


def activations(run: Run, method: Method, prompt: float, chain: float, answer: float) -> float:
    """Bytes of activations kept for backward: about 24 values times the width a layer and position, and the logits."""
    read = method.sequences(chain, answer)
    read = read[:1] if isinstance(run.train, RLVR) else read
    body, size = method.backbone, 2 if run.model.bf16 else 4
    rows = run.train.batch * getattr(run.train, "group", 1)
    rows = min(rows, run.train.micro_batch or rows)
    kept = 1 if run.model.recompute else 24
    each = (method.kept(prompt, used, text) * kept * body.width * size + text * body.vocab * 8 for used, text in read)
    return rows * sum(each)


def matmul_rate(n: int = 1024) -> float:
    """FLOP/s of one core on a product of two n x n matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.randn(n, n), torch.randn(n, n)
    a @ b
    start = time.process_time()
    for _ in range(5):
        a @ b
    seconds = time.process_time() - start
    torch.set_num_threads(threads)
    return 5 * 2 * n**3 / seconds


def duration(seconds: float) -> str:
    """A time in its largest fitting unit."""
    for size, name in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"
