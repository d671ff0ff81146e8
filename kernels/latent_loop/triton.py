"""The whole chain in one launch: the phases of `decode_step`, k steps x L layers, a barrier of all programs between.

As many programs as there are multiprocessors, all resident; each takes every n-th tile of a phase. A table of addresses
names the weights and caches of the layers. The residual stream rotates through three buffers, as in `decode_step`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decode_step.triton import ACTS, NORMS, Step, attend_head, finish_row, project_tile
from kernels.decoder import Decoder
from kernels.dispatch import interpreted

COLUMNS = tl.constexpr(18)  # addresses of one layer in the table


@triton.jit
def barrier(counter, target):
    """Wait until every program has arrived as often as this one, and see what all of them wrote."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()


@triton.jit
def address(table, layer, column: tl.constexpr, like):
    """A pointer out of the table, of the type of `like`; torch's allocations are aligned to more than 16 bytes."""
    return tl.multiple_of(tl.load(table + layer * COLUMNS + column).to(like.dtype), 16)


@triton.jit(do_not_specialize=["N", "steps", "layers", "size", "room", "programs"])
def loop_kernel(
    table, start, add, cos, sin, hidden, norm_weight, norm_bias, states, residual, parts_1, parts_2, qkv, a, inner,
    counter, N, steps, layers, size, room, programs, eps, scale,
    WIDTH: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr,
    KIND: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, QK_NORM: tl.constexpr,
    ROPE: tl.constexpr, OUT_MAJOR: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    QKV: tl.constexpr = (H + 2 * H_KV) * D
    HEADS: tl.constexpr = H * D
    row_tiles = tl.cdiv(N, BLOCK_N)
    target = 0
    for step in range(steps):
        t = pid  # the step's input: the state before, and what its position adds; no partial sums yet
        while t < N:
            for first in range(0, WIDTH, BLOCK_W):
                d = first + tl.arange(0, BLOCK_W)
                ok = d < WIDTH
                if step == 0:
                    x = tl.load(start + t * WIDTH + d, mask=ok, other=0.0)
                else:
                    x = tl.load(states + ((step - 1) * N + t) * WIDTH + d, mask=ok, other=0.0)
                x += tl.load(add + (step * N + t) * WIDTH + d, mask=ok, other=0.0)
                tl.store(residual + t * WIDTH + d, x.to(tl.float32), mask=ok)
                for s in tl.static_range(SPLITS):
                    tl.store(parts_2 + (s * N + t) * WIDTH + d, tl.zeros((BLOCK_W,), tl.float32), mask=ok)
            t += programs
        target += programs
        barrier(counter, target)
        for layer in range(layers):
            x_in = residual + ((2 * layer) % 3) * N * WIDTH
            x_mid = residual + ((2 * layer + 1) % 3) * N * WIDTH
            x_out = residual + ((2 * layer + 2) % 3) * N * WIDTH
            t = pid
            while t < row_tiles * tl.cdiv(QKV, BLOCK_C):
                project_tile(
                    x_in, parts_2, address(table, layer, 0, qkv), address(table, layer, 1, qkv),
                    address(table, layer, 2, qkv), None, (), (), address(table, layer, 3, qkv), None, x_mid, qkv,
                    t % row_tiles, t // row_tiles, 0, N, WIDTH, QKV, eps, WIDTH,
                    1 if OUT_MAJOR else QKV, WIDTH if OUT_MAJOR else 1,
                    SPLITS, KIND, 0, False, BIAS, 1, 0, BLOCK_N, BLOCK_C, BLOCK_K, UPCAST,
                )  # fmt: skip
                t += programs
            target += programs
            barrier(counter, target)
            t = pid
            while t < N * H_KV:
                attend_head(
                    qkv, address(table, layer, 4, qkv), address(table, layer, 5, qkv),
                    cos + step * N * D, sin + step * N * D,
                    address(table, layer, 6, qkv), address(table, layer, 7, qkv),
                    hidden, a, t // H_KV, t % H_KV, size + step, room, eps, scale,
                    H, H_KV, D, QK_NORM, ROPE, True, BLOCK_G, BLOCK_D, BLOCK_S, UPCAST,
                )  # fmt: skip
                t += programs
            target += programs
            barrier(counter, target)
            t = pid
            while t < row_tiles * tl.cdiv(WIDTH, BLOCK_C) * SPLITS:
                rest = t // SPLITS
                project_tile(
                    a, a, a, a, address(table, layer, 8, qkv), None, (), (), address(table, layer, 9, qkv), None, x_mid,
                    parts_1,
                    rest % row_tiles, rest // row_tiles, t % SPLITS, N, HEADS, WIDTH, eps, HEADS,
                    1 if OUT_MAJOR else WIDTH, HEADS if OUT_MAJOR else 1,
                    0, 0, 0, False, BIAS, SPLITS, 0, BLOCK_N, BLOCK_C, BLOCK_K, UPCAST,
                )  # fmt: skip
                t += programs
            target += programs
            barrier(counter, target)
            t = pid
            while t < row_tiles * tl.cdiv(INNER, BLOCK_C):
                project_tile(
                    x_mid, parts_1, address(table, layer, 10, qkv), address(table, layer, 11, qkv),
                    address(table, layer, 12, qkv), address(table, layer, 13, qkv), (), (),
                    address(table, layer, 14, qkv), address(table, layer, 15, qkv), x_out, inner,
                    t % row_tiles, t // row_tiles, 0, N, WIDTH, INNER, eps, WIDTH,
                    1 if OUT_MAJOR else INNER, WIDTH if OUT_MAJOR else 1,
                    SPLITS, KIND, ACT, GATED, BIAS, 1, 0, BLOCK_N, BLOCK_C, BLOCK_K, UPCAST,
                )  # fmt: skip
                t += programs
            target += programs
            barrier(counter, target)
            t = pid
            while t < row_tiles * tl.cdiv(WIDTH, BLOCK_C) * SPLITS:
                rest = t // SPLITS
                project_tile(
                    inner, a, a, a, address(table, layer, 16, qkv), None, (), (), address(table, layer, 17, qkv), None,
                    x_out, parts_2, rest % row_tiles, rest // row_tiles, t % SPLITS, N, INNER, WIDTH, eps, INNER,
                    1 if OUT_MAJOR else WIDTH, INNER if OUT_MAJOR else 1,
                    0, 0, 0, False, BIAS, SPLITS, 0, BLOCK_N, BLOCK_C, BLOCK_K, UPCAST,
                )  # fmt: skip
                t += programs
            target += programs
            barrier(counter, target)
        last = residual + ((2 * layers) % 3) * N * WIDTH
        t = pid
        while t < N:
            finish_row(
                last, parts_2, norm_weight, norm_bias, states + step * N * WIDTH, t, N, WIDTH, eps,
                SPLITS, KIND, BLOCK_W, UPCAST,
            )  # fmt: skip
            t += programs
        target += programs
        barrier(counter, target)


class Loop(Step):
    """A decoder made ready for chains of a batch in one launch.

    Raises ValueError for more than 16 rows, where the barriers have nothing left to save, and for layers that do not
    all have one form (`Decoder.mixed`).
    """

    def __init__(self, decoder: Decoder, batch: int):
        if batch > 16:
            raise ValueError(f"latent_loop: takes up to 16 rows at a time, got {batch}")
        super().__init__(decoder, batch)
        if reason := decoder.mixed():
            raise ValueError(f"latent_loop: {reason}")
        self.out_major = self.layers[0].layer.down[0].stride(0) == 1
        self.tables: dict[tuple, Tensor] = {}
        self.counter = torch.zeros(1, dtype=torch.int32, device=self.qkv.device)

    def table(self, kv: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Addresses of each layer's weights and caches, (L, COLUMNS); 0 where there is none.

        Kept for each set of caches: a graph cannot be captured while one is copied to the GPU.
        """
        key = tuple(x.data_ptr() for pair in kv for x in pair)
        if key in self.tables:
            return self.tables[key]
        rows = []
        for packed, (k, v) in zip(self.layers, kv):
            layer = packed.layer
            (gate, *more), (q_norm, k_norm) = layer.up, layer.qk_norm or ((None, None), (None, None))
            up = more[0] if more else (None, None)
            tensors = (*layer.norm_1, *packed.qkv, q_norm[0], k_norm[0], k, v, *layer.out, *layer.norm_2,
                       gate[0], up[0], gate[1], up[1], *layer.down)  # fmt: skip
            rows.append([0 if t is None else t.data_ptr() for t in tensors])
        self.tables[key] = torch.tensor(rows, dtype=torch.int64, device=self.qkv.device)
        return self.tables[key]

    def __call__(
        self, start_BD: Tensor, add_KBD: Tensor, kv: list, size: int, ropes, hidden_BS: Tensor, states_KBD: Tensor
    ) -> None:
        """All steps from `start_BD` on: states out, K and V into the caches (B, H_kv, room, d) from `size` on."""
        dec, n = self.decoder, self.n
        width, like = start_BD.shape[1], self.qkv
        programs = 1 if interpreted() or like.device.type != "cuda" else _multiprocessors(like.device)
        self.counter.zero_()
        weight, bias = dec.norm
        groups = dec.heads // dec.kv_heads
        loop_kernel[(programs,)](
            self.table(kv), start_BD, add_KBD, *(ropes or (self.parts[0], self.parts[0])), hidden_BS, weight, bias,
            states_KBD, self.residual, *self.parts, self.qkv, self.a, self.inner, self.counter,
            n, len(states_KBD), len(self.layers), size, kv[0][0].shape[2], programs, dec.eps, dec.d**-0.5,
            WIDTH=width, INNER=self.inner.shape[1], H=dec.heads, H_KV=dec.kv_heads, D=dec.d,
            KIND=NORMS[dec.kind], ACT=ACTS[dec.act], GATED=len(dec.layers[0].up) == 2,
            BIAS=dec.layers[0].out[1] is not None, QK_NORM=bool(dec.layers[0].qk_norm), ROPE=ropes is not None,
            OUT_MAJOR=self.out_major, SPLITS=self.splits, BLOCK_N=16, BLOCK_C=16, BLOCK_K=64,
            BLOCK_W=min(1024, triton.next_power_of_2(width)), BLOCK_G=max(16, triton.next_power_of_2(groups)),
            BLOCK_D=max(16, triton.next_power_of_2(dec.d)), BLOCK_S=64, UPCAST=interpreted(),
            num_warps=8, launch_cooperative_grid=True,
        )  # fmt: skip


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
