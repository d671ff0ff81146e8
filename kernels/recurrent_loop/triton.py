"""r recurrences of the looped layers in one launch, a barrier of all programs between phases, weights at rest.

    0  s = norm(x), stored as the state;   partial sums of s W_s                        but for the first recurrence
    1  x = constant + partial sums;        qkv = norm_1(x) W_qkv + b                    of each layer, from here on
    2  norm of q, k; rotary; attention over the sequence
    3  partial sums of a W_out + b
    4  x += partial sums;                  act(norm_2(x) W_up + b) ...
    5  partial sums of inner W_down + b,   which the next layer's phase 1, or phase 0, adds to x

As many programs as there are multiprocessors, all resident. A program works on the same tile of a weight in every
recurrence, and reads as much of its tiles as shared memory holds before the first one: Triton keeps a product's operand
that does not change within a loop in shared memory. What does not fit is read again each time, from the L2 cache where
the block is smaller than that. On AMD such operands would take registers; there nothing is kept.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decoder import Affine, Decoder, Layer
from kernels.dispatch import interpreted
from kernels.layer_tiles import ACTS, NORMS, finish_row, head_vectors, project_tile, weight_tile
from kernels.tiles import narrow, product, softmax_tile

ROWS = 64  # sequences times positions; more of them are better served by matrix products
LAYERS = 4  # each is unrolled
RESERVE = 72 * 1024  # bytes of shared memory for all but kept weights
COLUMNS = tl.constexpr(18)  # addresses of one layer in the table


@triton.jit
def barrier(counter, target):
    """Wait until the programs have arrived `target` times, all together, and see what they wrote. Returns `target`."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()
    return target


@triton.jit
def address(table, layer, column: tl.constexpr, like):
    """A pointer out of the table, of the type of `like`; torch's allocations are aligned to more than 16 bytes."""
    return tl.multiple_of(tl.load(table + layer * COLUMNS + column).to(like.dtype), 16)


@triton.jit
def kept_tile(
    w, pid, K, C, stride_k, stride_c,
    SPLITS: tl.constexpr, KEPT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The first KEPT chunks of a program's tile of w."""
    cols = pid // SPLITS * BLOCK_C + tl.arange(0, BLOCK_C)
    kept = ()
    for i in tl.static_range(KEPT):
        k = (pid % SPLITS + i * SPLITS) * BLOCK_K + tl.arange(0, BLOCK_K)
        kept = kept + (weight_tile(w, k, cols, K, C, stride_k, stride_c),)  # noqa: RUF005
    return kept


@triton.jit
def project(
    x, part, norm_weight, norm_bias, w, w_up, kept, kept_up, bias, bias_up, total, out, pid, programs,
    N, K, C, eps, stride_k, stride_c,
    SPLITS_IN: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
    SPLITS: tl.constexpr, KEPT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A program's tiles of a projection, all rows."""
    t = pid
    while t < tl.cdiv(C, BLOCK_C) * SPLITS:
        for row_tile in tl.range(tl.cdiv(N, 16), disable_licm=True):
            project_tile(
                x, part, norm_weight, norm_bias, w, w_up, kept, kept_up, bias, bias_up, total, out,
                row_tile, t // SPLITS, t % SPLITS, N, K, C, eps, K, stride_k, stride_c,
                SPLITS_IN, NORM, ACT, GATED, BIAS, SPLITS, KEPT, 16, BLOCK_C, BLOCK_K, UPCAST,
            )  # fmt: skip
        t += programs


@triton.jit
def attend_tile(
    qkv, q_weight, k_weight, cos, sin, hidden, out, row, head, tile, T, eps, scale,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, MASK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One head of some positions of a sequence: each attends itself and the visible ones before it."""
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    wide: tl.constexpr = H + 2 * H_KV
    kv_head = head // (H // H_KV)
    dtype = qkv.dtype.element_ty
    place = row * T + t
    there = (t[:, None] < T) & (d[None, :] < D)
    turn = place[:, None] * D + d[None, :]
    q = head_vectors(qkv, place * wide + head, t < T, q_weight, cos, sin, turn, there, d, D, eps, NORM, ROPE)
    q = narrow(q * scale, dtype, UPCAST)
    m = tl.full((BLOCK_T,), -1e38, tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for start in range(0, (tile + 1) * BLOCK_T, BLOCK_T):
        s = start + tl.arange(0, BLOCK_T)
        first = (row * T + s) * wide + H + kv_head
        known = (s[:, None] < T) & (d[None, :] < D)
        turn = (row * T + s)[:, None] * D + d[None, :]
        k = head_vectors(qkv, first, s < T, k_weight, cos, sin, turn, known, d, D, eps, NORM, ROPE)
        v = head_vectors(qkv, first + H_KV, s < T, k_weight, cos, sin, turn, known, d, D, eps, 0, 0)
        score = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
        score = product(q, tl.trans(narrow(k, dtype, UPCAST)), score, UPCAST)
        seen = s[None, :] <= t[:, None]
        if MASK:
            shown = tl.load(hidden + row * T + s, mask=s < T, other=1) == 0
            seen = seen & (shown[None, :] | (s[None, :] == t[:, None]))
        m, total, acc = softmax_tile(score, seen, narrow(v, dtype, UPCAST), m, total, acc, UPCAST)
    at = (place[:, None] * H + head) * D + d[None, :]
    tl.store(out + at, narrow(acc / total[:, None], dtype, UPCAST), mask=there)


@triton.jit(do_not_specialize=["N", "T", "steps", "programs"])
def recurrent_kernel(
    table, constant, carry, stride_k, stride_c, cos, sin, hidden, norm_weight, norm_bias, states, residual,
    parts_0, parts_1, parts_2, qkv, a, inner, counter, N, T, steps, programs, eps, norm_eps, scale,
    LAYERS: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr,
    H_KV: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr, OWN_KIND: tl.constexpr, ACT: tl.constexpr,
    GATED: tl.constexpr, BIAS: tl.constexpr, QK_NORM: tl.constexpr, ROPE: tl.constexpr, MASK: tl.constexpr,
    OUT_MAJOR: tl.constexpr, CARRY_C: tl.constexpr, CARRY_SPLITS: tl.constexpr, CARRY_KEPT: tl.constexpr,
    QKV_C: tl.constexpr, QKV_KEPT: tl.constexpr, OUT_C: tl.constexpr, OUT_SPLITS: tl.constexpr,
    OUT_KEPT: tl.constexpr, UP_C: tl.constexpr, UP_KEPT: tl.constexpr, DOWN_C: tl.constexpr,
    DOWN_SPLITS: tl.constexpr, DOWN_KEPT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    QKV: tl.constexpr = (H + 2 * H_KV) * D
    HEADS: tl.constexpr = H * D
    kept_carry = kept_tile(carry, pid, WIDTH, WIDTH, stride_k, stride_c, CARRY_SPLITS, CARRY_KEPT, CARRY_C, BLOCK_K)
    kept = ()
    for layer in tl.static_range(LAYERS):
        kept_qkv = kept_tile(
            address(table, layer, 2, qkv), pid, WIDTH, QKV, 1 if OUT_MAJOR else QKV, WIDTH if OUT_MAJOR else 1,
            1, QKV_KEPT, QKV_C, BLOCK_K,
        )  # fmt: skip
        kept_out = kept_tile(
            address(table, layer, 6, qkv), pid, HEADS, WIDTH, 1 if OUT_MAJOR else WIDTH, HEADS if OUT_MAJOR else 1,
            OUT_SPLITS, OUT_KEPT, OUT_C, BLOCK_K,
        )  # fmt: skip
        kept_gate = kept_tile(
            address(table, layer, 10, qkv), pid, WIDTH, INNER, 1 if OUT_MAJOR else INNER, WIDTH if OUT_MAJOR else 1,
            1, UP_KEPT, UP_C, BLOCK_K,
        )  # fmt: skip
        kept_up = kept_tile(
            address(table, layer, 11, qkv), pid, WIDTH, INNER, 1 if OUT_MAJOR else INNER, WIDTH if OUT_MAJOR else 1,
            1, UP_KEPT if GATED else 0, UP_C, BLOCK_K,
        )  # fmt: skip
        kept_down = kept_tile(
            address(table, layer, 14, qkv), pid, INNER, WIDTH, 1 if OUT_MAJOR else WIDTH, INNER if OUT_MAJOR else 1,
            DOWN_SPLITS, DOWN_KEPT, DOWN_C, BLOCK_K,
        )  # fmt: skip
        kept = kept + ((kept_qkv, kept_out, kept_gate, kept_up, kept_down),)  # noqa: RUF005
    x = residual
    x_mid = residual + N * WIDTH
    target = 0
    for i in tl.range(steps, disable_licm=True):  # or all addresses are kept in registers
        if i > 0:
            store_states(x, parts_2, norm_weight, norm_bias, states + (i - 1) * N * WIDTH, pid, programs, N,
                         WIDTH, norm_eps, DOWN_SPLITS, OWN_KIND, BLOCK_W, UPCAST)  # fmt: skip
            project(
                x, parts_2, norm_weight, norm_bias, carry, None, kept_carry, (), None, None, x_mid, parts_0,
                pid, programs, N, WIDTH, WIDTH, norm_eps, stride_k, stride_c,
                DOWN_SPLITS, OWN_KIND, 0, False, False, CARRY_SPLITS, CARRY_KEPT, CARRY_C, BLOCK_K, UPCAST,
            )  # fmt: skip
        target = barrier(counter, target + programs)
        for layer in tl.static_range(LAYERS):
            project(
                constant if layer == 0 else x, parts_0 if layer == 0 else parts_2,
                address(table, layer, 0, qkv), address(table, layer, 1, qkv), address(table, layer, 2, qkv), None,
                kept[layer][0], (), address(table, layer, 3, qkv), None, x_mid, qkv,
                pid, programs, N, WIDTH, QKV, eps, 1 if OUT_MAJOR else QKV, WIDTH if OUT_MAJOR else 1,
                CARRY_SPLITS if layer == 0 else DOWN_SPLITS, KIND, 0, False, BIAS, 1,
                QKV_KEPT, QKV_C, BLOCK_K, UPCAST,
            )  # fmt: skip
            target = barrier(counter, target + programs)
            t = pid
            while t < N // T * H * tl.cdiv(T, 16):
                attend_tile(
                    qkv, address(table, layer, 4, qkv), address(table, layer, 5, qkv), cos, sin, hidden, a,
                    t // tl.cdiv(T, 16) // H, t // tl.cdiv(T, 16) % H, t % tl.cdiv(T, 16), T, eps, scale,
                    H, H_KV, D, QK_NORM, ROPE, MASK, 16, BLOCK_D, UPCAST,
                )  # fmt: skip
                t += programs
            target = barrier(counter, target + programs)
            project(
                a, a, a, a, address(table, layer, 6, qkv), None, kept[layer][1], (),
                address(table, layer, 7, qkv), None, x, parts_1,
                pid, programs, N, HEADS, WIDTH, eps, 1 if OUT_MAJOR else WIDTH, HEADS if OUT_MAJOR else 1,
                0, 0, 0, False, BIAS, OUT_SPLITS, OUT_KEPT, OUT_C, BLOCK_K, UPCAST,
            )  # fmt: skip
            target = barrier(counter, target + programs)
            project(
                x_mid, parts_1, address(table, layer, 8, qkv), address(table, layer, 9, qkv),
                address(table, layer, 10, qkv), address(table, layer, 11, qkv), kept[layer][2], kept[layer][3],
                address(table, layer, 12, qkv), address(table, layer, 13, qkv), x, inner,
                pid, programs, N, WIDTH, INNER, eps, 1 if OUT_MAJOR else INNER, WIDTH if OUT_MAJOR else 1,
                OUT_SPLITS, KIND, ACT, GATED, BIAS, 1, UP_KEPT, UP_C, BLOCK_K, UPCAST,
            )  # fmt: skip
            target = barrier(counter, target + programs)
            project(
                inner, a, a, a, address(table, layer, 14, qkv), None, kept[layer][4], (),
                address(table, layer, 15, qkv), None, x_mid, parts_2,
                pid, programs, N, INNER, WIDTH, eps, 1 if OUT_MAJOR else WIDTH, INNER if OUT_MAJOR else 1,
                0, 0, 0, False, BIAS, DOWN_SPLITS, DOWN_KEPT, DOWN_C, BLOCK_K, UPCAST,
            )  # fmt: skip
            target = barrier(counter, target + programs)
    store_states(x, parts_2, norm_weight, norm_bias, states + (steps - 1) * N * WIDTH, pid, programs, N,
                 WIDTH, norm_eps, DOWN_SPLITS, OWN_KIND, BLOCK_W, UPCAST)  # fmt: skip


@triton.jit
def store_states(
    x, part, weight, bias, out, pid, programs, N, WIDTH, eps,
    SPLITS_IN: tl.constexpr, NORM: tl.constexpr, BLOCK_W: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    t = pid
    while t < N:
        finish_row(x, part, weight, bias, out, t, N, WIDTH, eps, SPLITS_IN, NORM, BLOCK_W, UPCAST)
        t += programs


@dataclass(frozen=True)
class Chip:
    """Programs that run at a time, one a multiprocessor, and a program's shared memory in bytes, 0 = keep nothing."""

    programs: int
    shared: int


def chip(device: torch.device) -> Chip:
    """What a GPU has. The interpreter runs one program after another."""
    if device.type != "cuda":
        return Chip(1, 2**17)
    found = torch.cuda.get_device_properties(device)
    return Chip(found.multi_processor_count, 0 if torch.version.hip else found.shared_memory_per_block_optin)


@dataclass(frozen=True)
class Tiling:
    """How a weight is dealt out to programs: `kept` of a tile's chunks of rows stay with one."""

    block_c: int
    splits: int
    chunks: int
    tiles: int
    kept: int = 0

    def one_each(self, programs: int) -> bool:
        """Whether no program has two of them."""
        return self.tiles <= programs


def tiling(k: int, c: int, programs: int, block_k: int, split: bool) -> Tiling:
    """The tiles of a (K, C) weight that leave the busiest program the least, one a program where that is possible."""
    best = None
    for splits in (1, 2, 4, 8) if split else (1,):
        for block_c in (16, 32, 64):
            tiles, chunks = triton.cdiv(c, block_c) * splits, triton.cdiv(k, splits * block_k)
            rounds = triton.cdiv(tiles, programs)
            rank = (rounds > 1, rounds * chunks * block_c, splits)
            if best is None or rank < best[0]:
                best = rank, Tiling(block_c, splits, chunks, tiles)
    return best[1]


class Packed:
    """A layer's projections as the kernels read them: q, k and v in one matrix, copied where the model has three."""

    def __init__(self, layer: Layer):
        self.layer = layer
        if len(layer.qkv) == 1:
            self.qkv = layer.qkv[0]
            return
        weights, biases = zip(*layer.qkv)
        # columns side by side, each contiguous along its input like the weights of a linear layer
        weight = torch.cat([w.detach().t() for w in weights], 0).t()
        self.qkv = (weight, None if biases[0] is None else torch.cat([b.detach() for b in biases]))

    def refresh(self) -> None:
        """Copy again: nothing says whether the model's weights changed, as fused optimizers leave versions alone."""
        if len(self.layer.qkv) == 1:
            return
        for i, mine in enumerate(self.qkv):
            if mine is not None:
                torch.cat([pair[i].detach() for pair in self.layer.qkv], -1, out=mine)


class Weights:
    """The looped layers' weights as the kernel reads them: q, k and v packed, and a table of all addresses."""

    def __init__(self, decoder: Decoder):
        self.layers, rows = [Packed(layer) for layer in decoder.layers], []
        for packed in self.layers:
            layer = packed.layer
            (gate, *more), (q_norm, k_norm) = layer.up, layer.qk_norm or ((None, None), (None, None))
            up = more[0] if more else (None, None)
            tensors = (*layer.norm_1, *packed.qkv, q_norm[0], k_norm[0], *layer.out, *layer.norm_2,
                       gate[0], up[0], gate[1], up[1], *layer.down, None, None)  # fmt: skip
            rows.append([0 if t is None else t.data_ptr() for t in tensors])
        self.table = torch.tensor(rows, dtype=torch.int64, device=decoder.layers[0].down[0].device)
        self.out_major = decoder.layers[0].down[0].stride(0) == 1

    def refresh(self) -> None:
        """Bring packed weights up to date with the model's."""
        for packed in self.layers:
            packed.refresh()


class Loop:
    """The looped layers made ready for so many sequences of so many positions: tiles and buffers."""

    def __init__(
        self, decoder: Decoder, weights: Weights, carry_DD: Tensor, norm: Affine, eps: float, batch: int, length: int,
        chip: Chip,
    ):  # fmt: skip
        self.decoder, self.weights, self.carry, self.norm, self.eps = decoder, weights, carry_DD, norm, eps
        n, width, inner = batch * length, carry_DD.shape[0], decoder.layers[0].down[0].shape[0]
        heads, self.length = decoder.heads * decoder.d, length
        self.chip = chip
        self.block_k = 64
        tile = lambda k, c, split: tiling(k, c, self.chip.programs, self.block_k, split)  # noqa: E731
        gated, layers = len(decoder.layers[0].up), len(decoder.layers)
        qkv = (decoder.heads + 2 * decoder.kv_heads) * decoder.d
        self.tiles = self.kept(
            {
                "DOWN": (tile(inner, width, True), layers),
                "UP": (tile(width, inner, False), gated * layers),
                "QKV": (tile(width, qkv, False), layers),
                "OUT": (tile(heads, width, True), layers),
                "CARRY": (tile(width, width, True), 1),
            }
        )
        full = {"dtype": torch.float32, "device": carry_DD.device}
        self.residual = torch.empty(2, n, width, **full)
        splits = [self.tiles[name].splits for name in ("CARRY", "OUT", "DOWN")]
        self.parts = [torch.empty(s, n, width, **full) for s in splits]
        self.qkv, self.a = carry_DD.new_empty(n, qkv), carry_DD.new_empty(n, heads)
        self.inner = carry_DD.new_empty(n, inner)
        self.counter = torch.zeros(1, dtype=torch.int32, device=carry_DD.device)

    def kept(self, wanted: dict[str, tuple[Tiling, int]]) -> dict[str, Tiling]:
        """Tilings with as many chunks kept as there is room for, the first ones first; each is that of some weights."""
        left, found = max(0, self.chip.shared - RESERVE), {}
        for name, (t, weights) in wanted.items():
            chunk = weights * t.block_c * self.block_k * self.carry.element_size()
            found[name] = replace(t, kept=min(t.chunks, left // chunk) if t.one_each(self.chip.programs) else 0)
            left -= found[name].kept * chunk
        return found

    def compile(self, *inputs) -> None:
        """Compile what a call with these inputs launches, or fetch it from Triton's cache on disk."""
        _, args, options = self._prepared(*inputs)
        recurrent_kernel.warmup(*args, grid=(self.chip.programs,), **options)

    def __call__(self, constant_BTD: Tensor, steps: int, ropes, visible_BT: Tensor | None) -> Tensor:
        """States (R, B * T, D)."""
        states, args, options = self._prepared(constant_BTD, steps, ropes, visible_BT)
        self.parts[0].zero_()  # the state before the first recurrence
        self.counter.zero_()
        recurrent_kernel[(self.chip.programs,)](*args, **options)
        return states

    def _prepared(self, constant_BTD: Tensor, steps: int, ropes, visible_BT: Tensor | None) -> tuple:
        """Where the states go, and the arguments and options of the launch."""
        dec, n = self.decoder, len(self.qkv)
        states = self.qkv.new_empty(steps, n, constant_BTD.shape[-1])
        hidden = None if visible_BT is None else (~visible_BT).to(torch.uint8).contiguous()
        args = (
            self.weights.table, constant_BTD, self.carry, *self.carry.stride(),
            *(ropes or (self.qkv, self.qkv)), hidden,
            *self.norm, states, self.residual, *self.parts, self.qkv, self.a, self.inner,
            self.counter, n, self.length, steps, self.chip.programs, dec.eps, self.eps, dec.d**-0.5,
        )  # fmt: skip
        return states, args, self.options(ropes is not None, hidden is not None)

    def options(self, rope: bool, mask: bool) -> dict[str, object]:
        """The kernel's constants, and how it is launched: it is compiled anew for others."""
        dec, width = self.decoder, self.carry.shape[0]
        first = dec.layers[0]
        tiles = {f"{name}_C": t.block_c for name, t in self.tiles.items()}
        tiles |= {f"{name}_KEPT": t.kept for name, t in self.tiles.items()}
        tiles |= {f"{name}_SPLITS": self.tiles[name].splits for name in ("CARRY", "OUT", "DOWN")}
        # with the 255 that there are, NVIDIA's assembler spills a few; AMD's has no such setting
        registers = {} if torch.version.hip or interpreted() else {"maxnreg": 248}
        return {
            "LAYERS": len(dec.layers), "WIDTH": width, "INNER": self.inner.shape[1], "H": dec.heads,
            "H_KV": dec.kv_heads, "D": dec.d, "KIND": NORMS[dec.kind],
            "OWN_KIND": NORMS["rms" if self.norm[1] is None else "layer"], "ACT": ACTS[dec.act],
            "GATED": len(first.up) == 2, "BIAS": first.out[1] is not None, "QK_NORM": bool(first.qk_norm),
            "ROPE": rope, "MASK": mask, "OUT_MAJOR": self.weights.out_major, "BLOCK_K": self.block_k,
            "BLOCK_W": min(256, triton.next_power_of_2(width)), "BLOCK_D": max(16, triton.next_power_of_2(dec.d)),
            "UPCAST": interpreted(), "num_warps": 8, "num_stages": 2, "launch_cooperative_grid": True,
            **tiles, **registers,
        }  # fmt: skip
