"""A decoder layer at one position in five launches, made for the bandwidth of small batches.

    1  qkv   = norm_1(x) W_qkv + b                        vector_kernel or matrix_kernel
    2  norm of q, k; rotary; append to the cache; attend  attend_kernel
    3  x    += a W_out + b                                as 1
    4  inner = act(norm_2(x) W_up + b) ...                as 1
    5  x    += inner W_down + b                           as 1

What bounds a step is how fast the weights stream. Up to FEW rows are multiplied without tensor cores, which would want
sixteen: a program asks for its whole tile of weights at once, and on Hopper and newer it does so while kernels before
still run (programmatic dependent launch). All but the first projection let their successor begin before they wait
themselves, so that the weights of two or three launches are on their way at a time. More rows go through tensor cores,
a pipelined loop over the input's length, and so do rows so long that multiplying takes longer than reading.

The residual stream x stays in fp32. Whoever adds to it also leaves its product with the next norm's weight in the
model's dtype, and its tile's sums of x and x^2: a norm is then a scale (and, for LayerNorm, a shift) of what the next
projection gives, and nobody reads the stream twice. q, k and v are read where the model keeps them.

Measured on an H100 and an H200 before it was settled (paper/LOG.md): parts of the cache put together by the projection
that reads them, all heads of a K and V in one program, whole weight tiles in registers for tensor cores, dependent
launch of the matrix kernels, narrower tiles of them, and cutting the cache where there are many rows were all slower.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decode_step.attention import attend_kernel
from kernels.decode_step.projection import follow, matrix_kernel, vector_kernel
from kernels.decoder import Affine, Decoder
from kernels.dispatch import capability, interpreted
from kernels.layer_tiles import ACTS, NORMS
from kernels.tiles import narrow

FEW = 4  # rows up to which products go without tensor cores,
SHORT = 16 * 1024  # where that many rows times the longest of their lengths are no more than this
WARPS = 4  # of a vector kernel's program, twice as many for inner lengths beyond LONG
LONG = 1024
CHUNK = 256  # of a product's inner length: 8 numbers for each thread of a warp
IN_FLIGHT = 32 * 1024  # bytes of weights that a program asks for at once, about
PARTS = 16  # of the cache at most, attended by different programs where there are few rows
POSITIONS = 64  # of a part, at least
BUSY = 512  # attending programs beyond which one warp each is enough
SPLITS = 4  # of the inner length of what many rows add to the stream


@triton.jit(do_not_specialize=["N"])
def enter_kernel(
    x, add, weight, stream, scaled, sums, N,
    C: tl.constexpr, TILES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The stream of one row begins: its input, and what the position adds."""
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK_C)
    ok = cols < C
    y = tl.load(x + row * C + cols, mask=ok, other=0.0).to(tl.float32)
    if add is not None:
        y += tl.load(add + row * C + cols, mask=ok, other=0.0)
    y = narrow(y, x.dtype.element_ty, UPCAST).to(tl.float32)  # the input of a layer is in the model's dtype
    tl.store(stream + row * C + cols, y, mask=ok)
    weight = tl.load(weight + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(scaled + row * C + cols, narrow(y * weight, scaled.dtype.element_ty, UPCAST), mask=ok)
    t = tl.arange(0, BLOCK_T)
    place = sums + (t * N + row) * 2
    tl.store(place, tl.where(t == 0, tl.sum(y, 0), 0.0), mask=t < TILES)
    tl.store(place + 1, tl.where(t == 0, tl.sum(y * y, 0), 0.0), mask=t < TILES)


@triton.jit(do_not_specialize=["N"])
def leave_kernel(
    stream, weight, bias, out, N, eps,
    C: tl.constexpr, NORM: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The final norm of one row of the stream."""
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK_C)
    ok = cols < C
    gain = tl.load(weight + cols, mask=ok, other=0.0).to(tl.float32)
    shift = tl.zeros((BLOCK_C,), tl.float32)
    if NORM == 2:
        shift += tl.load(bias + cols, mask=ok, other=0.0).to(tl.float32)
    follow(PDL)
    y = tl.load(stream + row * C + cols, mask=ok, other=0.0)
    if NORM == 2:
        y = tl.where(ok, y - tl.sum(y, 0) / C, 0.0)
    y *= tl.rsqrt(tl.sum(y * y, 0) / C + eps)
    y = y * gain + shift
    tl.store(out + row * C + cols, narrow(y, out.dtype.element_ty, UPCAST), mask=ok)


class Step:
    """A decoder made ready for one-position steps of a batch: the buffers between the launches, and their tiles."""

    def __init__(self, decoder: Decoder, batch: int):
        self.decoder, self.n, self.few = decoder, batch, few_rows(decoder, batch)
        first = decoder.layers[0]
        like, self.width = first.out[0], decoder.norm[0].shape[0]
        heads, inner = decoder.heads * decoder.d, first.down[0].shape[0]
        self.dependent = self.few and capability(like.device) >= 90
        self.narrow_c = self.columns(first.out[0], first.down[0]) if self.few else 16
        self.tiles = triton.cdiv(self.width, self.narrow_c)
        full = {"dtype": torch.float32, "device": like.device}
        self.stream = torch.empty(batch, self.width, **full)
        self.scaled = like.new_empty(batch, self.width)
        self.sums = torch.empty(self.tiles, batch, 2, **full)
        self.qkv = like.new_empty(batch, (decoder.heads + 2 * decoder.kv_heads) * decoder.d)
        self.a, self.inner = like.new_empty(batch, heads), like.new_empty(batch, inner)
        parts = PARTS if self.few else 1
        self.parts, self.stats = (
            torch.empty(parts, batch, heads, **full),
            torch.empty(parts, batch, decoder.heads, 2, **full),
        )
        self.arrived = torch.zeros(batch, decoder.heads, dtype=torch.int32, device=like.device)
        self.shares = torch.empty(0 if self.few else SPLITS, batch, self.width, **full)
        self.done = torch.zeros(triton.cdiv(batch, 16), self.tiles, dtype=torch.int32, device=like.device)

    def columns(self, *weights: Tensor) -> int:
        """Columns of a tile that makes a good number of bytes of each weight."""
        longest, each = max(w.shape[0] for w in weights), weights[0].element_size()
        size = min(16, IN_FLIGHT // (longest * each))
        if weights[0].stride(0) != 1:  # (in, out) in memory: 32 bytes of a row at least
            size = max(size, 32 // each)
        return 1 << max(0, size.bit_length() - 1)

    def __call__(
        self, x_BD: Tensor, add_BD: Tensor | None, kv: list[tuple[Tensor, Tensor]], sizes_K: Tensor, step: int,
        rope: tuple | None, hidden_BS: Tensor, out_BD: Tensor,
    ) -> None:  # fmt: skip
        """Final hidden state of x + add into `out_BD`; k and v into each layer's cache (B, H_kv, room, d).

        They come at position `sizes_K[step]`, which the device knows and the host need not. `add_BD` and the cosines
        and sines of `rope` (B, d) in fp32. `hidden_BS`: uint8 (B, room), 1 = not to be attended.
        """
        dec, n = self.decoder, self.n
        # the first launch waits for all that came before it, weights included: those after may fetch theirs early
        plain = {"UPCAST": interpreted(), "num_warps": 4}
        late = plain | ({"PDL": 1, "launch_pdl": True} if self.dependent else {"PDL": 0})
        early = late | ({"PDL": 2} if self.dependent else {})
        wide_d = triton.next_power_of_2(dec.d)
        row = {"C": self.width, "BLOCK_C": triton.next_power_of_2(self.width)}
        tile = {"TILES": self.tiles, "BLOCK_T": triton.next_power_of_2(self.tiles)}
        room = kv[0][0].shape[2]
        parts = min(len(self.parts), triton.cdiv(room, POSITIONS))
        halves = 2 if kv[0][0].dtype == torch.float32 else 1  # as many bytes a tile, whatever the dtype
        attention = {"BLOCK_S": POSITIONS // halves, "AHEAD": False}
        if not self.few:  # programs enough: small ones, which read the next positions while they attend these
            warps = 1 if n * dec.heads > BUSY else 2
            attention = {"BLOCK_S": 16 * warps // halves, "AHEAD": True, "num_warps": warps}
        enter_kernel[(n,)](
            x_BD, add_BD, dec.layers[0].norm_1[0], self.stream, self.scaled, self.sums, n, **row, **tile, **plain
        )
        norms = [layer.norm_1[0] for layer in dec.layers[1:]] + [dec.norm[0]]
        for layer, (k, v), after in zip(dec.layers, kv, norms):
            self.project(self.scaled, layer.qkv, self.qkv, late | tile, norm=layer.norm_1)
            q_weight, k_weight = (pair[0] for pair in layer.qk_norm) if layer.qk_norm else (None, None)
            attend_kernel[(n, dec.heads, parts)](
                self.qkv, q_weight, k_weight, *(rope or (self.qkv, self.qkv)), k, v, hidden_BS,
                self.a, self.parts, self.stats, self.arrived, sizes_K, step, n, room, dec.eps, dec.d**-0.5,
                H=dec.heads, H_KV=dec.kv_heads, D=dec.d, NORM=bool(layer.qk_norm), ROPE=rope is not None, PARTS=parts,
                BLOCK_P=triton.next_power_of_2(parts), BLOCK_D=wide_d, **early | attention,
            )  # fmt: skip
            self.project(self.a, (layer.out,), None, early | tile, then=layer.norm_2[0])
            self.project(self.scaled, layer.up, self.inner, early | tile, norm=layer.norm_2, act=dec.act)
            self.project(self.inner, (layer.down,), None, early | tile, then=after)
        leave_kernel[(n,)](self.stream, *dec.norm, out_BD, n, dec.eps, NORM=NORMS[dec.kind], **row, **late)

    def project(
        self, x: Tensor, affines: tuple[Affine, ...], out: Tensor | None, options: dict, norm: Affine | None = None,
        act: str = "none", then: Tensor | None = None,
    ) -> None:  # fmt: skip
        """One launch of a projection. `out` None: to the stream, whose next norm has the weight `then`."""
        n, gated = self.n, len(affines) == 2
        weights, biases = zip(*affines)
        w, widths = weights[0], [w.shape[1] for w in weights[: 1 if gated else 3]]
        if out is None:
            block_c = self.narrow_c
        else:
            block_c = max(1, self.columns(*weights) // (2 if gated else 1)) if self.few else 32
        full = w.dtype == torch.float32  # multiplied without tensor cores: small tiles, or they spill
        if full and not self.few:
            block_c = 16
        pad = lambda xs: (*xs, *[None] * (3 - len(xs)))  # noqa: E731
        tensors = (
            x, self.sums, *(norm or (None, None)), *pad(weights), *pad(biases), *w.stride(),
            *((self.scaled, self.stream) if out is None else (out, None)), then,
        )  # fmt: skip
        shape = {
            "K": w.shape[0], "C": sum(widths), "C_1": widths[0], "C_2": widths[1] if len(widths) > 1 else 0,
            "NORM": NORMS[self.decoder.kind] if norm else 0, "ACT": ACTS[act], "GATED": gated, "BLOCK_C": block_c,
        }  # fmt: skip
        tiles = sum(triton.cdiv(wide, block_c) for wide in widths)
        if self.few:
            vector_kernel[(tiles,)](
                *tensors, self.decoder.eps, N=n, BLOCK_N=triton.next_power_of_2(n), **shape,
                **options | vector_options(w, block_c, n),
            )  # fmt: skip
            return
        block_n = 16 if n <= 16 or full else 32 if n <= 32 else 64
        chunk, stages = (64, 3) if full else (256, 4) if n <= 16 else (128, 6)
        if n > 16 and not full and capability(w.device) < 90:  # less room, and long chunks of (in, out) weights spill
            chunk, stages = (128 if w.stride(0) == 1 else 64), 4
        options = {k: v for k, v in options.items() if k != "PDL"}
        splits = SPLITS if out is None else 1
        matrix_kernel[(tiles, triton.cdiv(n, block_n), splits)](
            *tensors, self.shares, self.done, n, self.decoder.eps,
            SPLITS=splits, BLOCK_N=block_n, CHUNK=chunk, num_stages=stages, **shape, **options,
        )  # fmt: skip


def few_rows(decoder: Decoder, n: int) -> bool:
    """Whether products of so many rows are made without tensor cores."""
    down = decoder.layers[0].down[0]
    return n <= FEW and (n * down.shape[0] <= SHORT or down.dtype == torch.float32)


def vector_options(w: Tensor, block_c: int, n: int) -> dict:
    """Warps of a program, and how it takes the rows of x, for a tile of `block_c` columns of a weight (in, out)."""
    if w.stride(0) == 1:  # (out, in) in memory: a warp reads along a column
        warps = WARPS if w.shape[0] <= LONG else 2 * WARPS
        return {"num_warps": warps, "CHUNK": CHUNK * max(1, warps // block_c), "COPIES": min(warps, block_c)}
    held = (
        block_c * w.shape[0] * w.element_size() // 4 // 32
    )  # registers of one warp's threads that the tile would take
    wide = n > 2 and held > 128 * WARPS  # then half of a chunk, or it spills
    return {"num_warps": WARPS * (1 + wide), "CHUNK": CHUNK // (1 + wide), "COPIES": block_c}
