"""Tiny checkpoints in published layouts, by the key names that their authors' code saves, and what they answer.

What they answer is worked out in fp64 from a plain model of transformers, the whole sequence anew for every position.
"""

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

QUESTIONS = ["Tom has 3 apples and buys 4 more.", "A train goes 60 miles in 2 hours. How fast?\n"]
D = 16


def tokenizer_of(family: str):
    """Byte-level BPE with the family's special tokens; Llama's puts BOS before a text. ### is a word of it."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>"] if family == "gpt2" else ["<|begin_of_text|>", "<|eot_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    trainer.show_progress = False
    raw.train_from_iterator(["x###"] * 9 + QUESTIONS, trainer)
    if family == "gpt2":
        return PreTrainedTokenizerFast(tokenizer_object=raw, **dict.fromkeys(_GPT2, special[0]))
    raw.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=special[0], eos_token=special[1])


_GPT2 = ("bos_token", "eos_token", "unk_token")


def base_of(family: str, folder, spare: int = 0):
    """A backbone's folder, and its model in fp64 and tokenizer. `spare`: rows of embeddings beyond the tokenizer."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(family)
    rows = len(tokenizer) + spare
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "gpt2":
        config = GPT2Config(vocab_size=rows, n_positions=128, n_embd=D, n_layer=2, n_head=2, **ids)
        lm = GPT2LMHeadModel(config)
    else:
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        config = LlamaConfig(vocab_size=rows, hidden_size=D, intermediate_size=24, num_hidden_layers=2,
                             max_position_embeddings=128, tie_word_embeddings=True, **heads, **ids)  # fmt: skip
        lm = LlamaForCausalLM(config)
    for p in lm.parameters():
        nn.init.normal_(p, std=0.4)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return lm.double().eval(), AutoTokenizer.from_pretrained(folder)


def grown(lm, rows: int):
    """The model with embeddings of so many rows more."""
    lm.resize_token_embeddings(lm.config.vocab_size + rows)
    nn.init.normal_(lm.get_input_embeddings().weight.data[-rows:], std=0.4)
    return lm


def state_of(lm, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict in fp32 under a prefix, the tied head included, as `torch.save` has it."""
    return {prefix + name: x.float().clone() for name, x in lm.state_dict().items()}


def projection(seed: int = 1) -> nn.Sequential:
    """CODI's, with dropout first."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Dropout(0.0), nn.Linear(D, D), nn.GELU(), nn.Linear(D, D), nn.LayerNorm(D))
    nn.init.normal_(made[4].weight)
    return made


def adapted(lm, state: dict[str, torch.Tensor], rank: int, alpha: float) -> dict[str, torch.Tensor]:
    """The state dict of peft's LoRA model of `lm`, whose adapters are merged into `lm` itself."""
    out, names = {}, ("c_attn", "c_proj", "c_fc", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj")
    linear = [n for n, _ in lm.named_modules() if n.endswith((*names, "down_proj"))]
    for name, x in state.items():
        module = name.rsplit(".", 1)[0]
        out[name.replace(module, module + ".base_layer") if module in linear else name] = x
    for module in linear:
        weight = lm.get_submodule(module).weight
        fan_out, fan_in = reversed(weight.shape) if type(lm) is GPT2LMHeadModel else weight.shape
        a, b = torch.randn(rank, fan_in) / 4, torch.randn(fan_out, rank) / 4
        out[f"{module}.lora_A.default.weight"], out[f"{module}.lora_B.default.weight"] = a, b
        change = alpha / rank * b.double() @ a.double()
        weight.data += change.T if type(lm) is GPT2LMHeadModel else change
    return out


def codi_state(lm, mlp, sim: bool = False) -> dict[str, torch.Tensor]:
    """CODI's state dict of a model, whose adapters of rank 4 at alpha 32 are merged into it; with `sim` SIM-CoT's."""
    state = adapted(lm, state_of(lm), rank=4, alpha=32.0)
    state = {"codi.base_model.model." + name: x for name, x in state.items()}
    names = {"1": mlp[1], "3": mlp[3], "ln": mlp[4]}
    state |= {f"prj.{n}.{kind}": x.clone() for n, m in names.items() for kind, x in m.state_dict().items()}
    if sim:
        state |= {"decoder.lm_head.weight": torch.zeros(3, D), "pj_in.weight": torch.zeros(D, D)}
    return state


def answered(lm, ids: list[int], k: int, closing: int, feed, n: int = 6) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens after k latents and a closing token, and the logits (n, V) that give them.

    `feed`: the last hidden state (1, D), or the logits (1, V) as its second argument -> the next input embedding.
    """
    embed, tokens, rows = lm.get_input_embeddings(), [], []
    with torch.no_grad():
        x = embed(torch.tensor([ids]))
        for _ in range(k):
            out = lm(inputs_embeds=x, output_hidden_states=True)
            x = torch.cat([x, feed(out.hidden_states[-1][:, -1], out.logits[:, -1])[:, None]], 1)
        x = torch.cat([x, embed(torch.tensor([[closing]]))], 1)
        for _ in range(n):
            rows.append(lm(inputs_embeds=x).logits[0, -1])
            tokens.append(int(rows[-1].argmax()))
            x = torch.cat([x, embed(torch.tensor([tokens[-1:]]))], 1)
    return tokens, torch.stack(rows)


def saved(state: dict, folder, name: str = "pytorch_model.bin"):
    """A folder with a state dict in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({n: x.contiguous().clone() for n, x in state.items()}, folder / name)
    else:
        torch.save(state, folder / name)
    return folder
