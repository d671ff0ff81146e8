"""From `input_ids` with `<latent>` placeholders to final hidden states, one for each column.

A row is a prompt, k placeholders, and text. Rows with the same k are computed together: each distinct prompt is thought
about once, and the texts after it are read in parallel. The states of the latent steps stand at the columns of the
placeholders, shifted by one: the state at the last placeholder gives the first token of the text.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.errors import UserError
from latent.cache import Context
from latent.hf_cache import LatentCache
from latent.hf_config import LatentConfig
from latent.methods.base import Method
from latent.thought import Greedy, Prompt


@dataclass
class Row:
    """The columns of one row: of its prompt, its placeholders and the text after them.

    `steps`: how many latent steps it thinks. None: it holds neither placeholders nor a think token, and is read as
    plain text.
    """

    prompt: list[int]
    latents: list[int]
    text: list[int]
    steps: int | None


@dataclass
class Scattered:
    """Final hidden states, each with the row and the column of the batch that it belongs to."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def put(self, places: list[tuple[int, int]], h_ND: Tensor) -> None:
        """One state for each (row, column)."""
        self.rows.extend(b for b, _ in places)
        self.columns.extend(c for _, c in places)
        self.states.append(h_ND)

    def into(self, h_BTD: Tensor) -> Tensor:
        """A copy of `h_BTD` with these states in their places."""
        index = tuple(torch.tensor(each, device=h_BTD.device) for each in (self.rows, self.columns))
        return h_BTD.index_put(index, torch.cat(self.states).to(h_BTD.dtype))


def read_on(method: Method, config: LatentConfig, ids_BT: Tensor, cache: LatentCache) -> Tensor:
    """Final hidden states of text that follows what the cache holds."""
    if config.latent_id is not None and bool((ids_BT == config.latent_id).any()):
        raise UserError("a thought cannot begin after a cached one: give the whole text at once")
    t = ids_BT.shape[1]
    cache.columns += t
    if cache.answer_BTD is not None:
        cache.answer_BTD = cache.answer_BTD[:, t:]
        if cache.answer_BTD.shape[1] == 0:
            raise UserError(f"this model reads off {method.parallel_answer} tokens, more were asked for")
        return cache.answer_BTD[:, :1]
    assert cache.context is not None  # a method without a parallel answer always leaves one
    backbone = method.backbone
    h_BTD, cache.context = backbone.step(backbone.embed(ids_BT), cache.context)
    return h_BTD


def read_whole(
    method: Method,
    config: LatentConfig,
    ids_BT: Tensor,
    mask_BT: Tensor | None,
    cache: LatentCache | None,
    prompt_states: bool,
) -> tuple[Tensor, Tensor]:
    """Final hidden states (B, T, D) of whole rows, and which columns have none (B, T).

    A column has none after the last token of an answer that is read in parallel. Without `prompt_states` the columns of
    a prompt before its last are zero as well, which saves computing them. `cache`, where there is one, is
    filled. Raises UserError for ids outside the vocabulary, misplaced placeholders, and rows that cannot share a cache.
    """
    backbone = method.backbone
    outside_BT = ((ids_BT < 0) | (ids_BT >= backbone.vocab)) & (ids_BT != config.latent_id)
    if bool(outside_BT.any()):
        raise UserError(f"token {int(ids_BT[outside_BT][0])} is not in the model's vocabulary of {backbone.vocab}")
    mask_BT = None if mask_BT is None or bool(mask_BT.all()) else mask_BT.bool()
    rows = rows_of(method, config, ids_BT.tolist(), None if mask_BT is None else mask_BT.tolist())
    h_BTD = torch.zeros(*ids_BT.shape, backbone.width, device=ids_BT.device, dtype=backbone.dtype)
    missing_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    by_steps: dict[int | None, list[int]] = {}
    for b, row in enumerate(rows):
        by_steps.setdefault(row.steps, []).append(b)
    if cache is not None:
        cache.columns = ids_BT.shape[1]
        if len(by_steps) > 1:
            raise UserError("rows that share a cache must think equally often")
    for steps, members in by_steps.items():
        if steps is None:
            index = torch.tensor(members, device=ids_BT.device)
            h, context = backbone.hidden(ids_BT[index], None if mask_BT is None else mask_BT[index])
            h_BTD = h_BTD.index_copy(0, index, h)
            if cache is not None:
                cache.context = context
            continue
        h_BTD = _think_and_read(method, h_BTD, ids_BT, [(b, rows[b]) for b in members], steps, cache, prompt_states)
        for b in members:
            if method.parallel_answer:
                missing_BT[b, rows[b].text[method.parallel_answer - 1 :]] = True
    return h_BTD, missing_BT


def rows_of(method: Method, config: LatentConfig, ids: list[list[int]], mask: list[list[bool]] | None) -> list[Row]:
    """Where each row's prompt ends, how often it thinks, and where its text is."""
    latent, think = config.latent_id, config.think_id
    # the text then keeps its trained positions, and follows the closing embedding, even when nothing is thought
    thinks = method.trained_steps > 0 or method.reserved(0) > 0
    rows = []
    for b, row in enumerate(ids):
        real = [c for c in range(len(row)) if mask is None or mask[b][c]]
        latents = [c for c in real if row[c] == latent] if latent is not None else []
        if latents:
            first, last = real.index(latents[0]), real.index(latents[-1])
            if last - first + 1 != len(latents) or first == 0:
                raise UserError(f"row {b}: <latent> placeholders must follow a prompt, and each other")
            rows.append(Row(real[:first], latents, real[last + 1 :], len(latents)))
            continue
        ends = [i for i, c in enumerate(real) if row[c] == think] if thinks and think is not None else []
        if ends:
            rows.append(Row(real[: ends[-1] + 1], [], real[ends[-1] + 1 :], 0))
        elif method.parallel_answer is not None:
            raise UserError("a model that loops along the depth reads nothing without <latent> placeholders")
        else:
            rows.append(Row(real, [], [], None))
    return rows


def _think_and_read(
    method: Method,
    h_BTD: Tensor,
    ids_BT: Tensor,
    rows: list[tuple[int, Row]],
    steps: int,
    cache: LatentCache | None,
    prompt_states: bool,
) -> Tensor:
    """`h_BTD` with the states of rows that think `steps` times, each given with its number in the batch."""
    ids = ids_BT.tolist()
    prompt, prompt_of_row = _distinct_prompts([[ids[b][c] for c in row.prompt] for b, row in rows], ids_BT.device)
    prompt.keep = prompt_states
    thought = method.think(prompt, Greedy(), steps=steps)
    prompt_N = torch.tensor(prompt_of_row, device=ids_BT.device)
    if cache is not None:
        cache.used_B = thought.used_B[prompt_N]
    h_NTD, out = thought.h_UTD[prompt_N], Scattered()
    out.put([(b, (row.latents or row.prompt)[-1]) for b, row in rows], h_NTD[:, 0])
    for i in range(1, min(steps, thought.states_UKD.shape[1])):
        out.put([(b, row.latents[i - 1]) for b, row in rows], thought.states_UKD[prompt_N, i])
    if prompt_states:
        read_UTD = thought.prompt_PTD
        if read_UTD is None:  # a loop along the depth reads them in another way
            read_UTD, _ = method.backbone.hidden(prompt.ids_BT, prompt.mask_BT)
        _put_prompts(read_UTD, rows, prompt_of_row, steps, out)
    if method.parallel_answer is not None:
        _put_parallel_answers(h_NTD, rows, cache, out)
    else:
        assert thought.context is not None  # the text is written token by token, and goes on from it
        shared = len(prompt.ids_BT) < len(rows)
        context = thought.context.rows(prompt_N) if shared else thought.context
        _put_texts(method, ids_BT, rows, context, cache, out)
    return out.into(h_BTD)


def _distinct_prompts(prompts: list[list[int]], device: torch.device) -> tuple[Prompt, list[int]]:
    """The distinct ones as a left-padded batch, and for each prompt which of them it is."""
    number: dict[tuple[int, ...], int] = {}
    which = [number.setdefault(tuple(each), len(number)) for each in prompts]
    longest = max(map(len, number))
    ids_UT = torch.zeros(len(number), longest, dtype=torch.long)
    mask_UT = torch.zeros(len(number), longest, dtype=torch.bool)
    for u, each in enumerate(number):
        ids_UT[u, longest - len(each) :], mask_UT[u, longest - len(each) :] = torch.tensor(each), True
    return Prompt(ids_UT.to(device), None if bool(mask_UT.all()) else mask_UT.to(device)), which


def _put_prompts(
    h_UTD: Tensor, rows: list[tuple[int, Row]], prompt_of_row: list[int], steps: int, out: Scattered
) -> None:
    """The states at the columns of the prompts. Without latents the last one gives the text, and is there already."""
    longest = h_UTD.shape[1]
    places = [
        (b, c, u, longest - len(row.prompt) + i)
        for (b, row), u in zip(rows, prompt_of_row)
        for i, c in enumerate(row.prompt if steps else row.prompt[:-1])
    ]
    if places:
        _, _, us, ts = zip(*places)
        out.put([(b, c) for b, c, _, _ in places], h_UTD[list(us), list(ts)])


def _put_parallel_answers(
    h_NTD: Tensor, rows: list[tuple[int, Row]], cache: LatentCache | None, out: Scattered
) -> None:
    """The states of answers that were read off in parallel, at the columns of the tokens before the ones they give."""
    longest = max(len(row.text) for _, row in rows)
    for i in range(1, min(longest + 1, h_NTD.shape[1])):
        members = [n for n, (_, row) in enumerate(rows) if len(row.text) >= i]
        out.put([(rows[n][0], rows[n][1].text[i - 1]) for n in members], h_NTD[members, i])
    if cache is not None:
        cache.answer_BTD = h_NTD[:, longest:]


def _put_texts(
    method: Method,
    ids_BT: Tensor,
    rows: list[tuple[int, Row]],
    context: Context,
    cache: LatentCache | None,
    out: Scattered,
) -> None:
    """The states of texts, read in parallel after the thoughts."""
    longest = max(len(row.text) for _, row in rows)
    if longest:
        ids, backbone = ids_BT.tolist(), method.backbone
        text_NT = torch.zeros(len(rows), longest, dtype=torch.long)
        for n, (b, row) in enumerate(rows):
            text_NT[n, : len(row.text)] = torch.tensor([ids[b][c] for c in row.text])
        lengths_N = torch.tensor([len(row.text) for _, row in rows], device=ids_BT.device)
        h_NTD, context = backbone.step(backbone.embed(text_NT.to(ids_BT.device)), context, real_B=lengths_N)
        places = [(n, i) for n, (_, row) in enumerate(rows) for i in range(len(row.text))]
        ns, ts = zip(*places)
        out.put([(rows[n][0], rows[n][1].text[i]) for n, i in places], h_NTD[list(ns), list(ts)])
    if cache is not None:
        if any(len(row.text) != longest for _, row in rows):
            raise UserError("rows that share a cache must be padded on the left")
        cache.context = context
