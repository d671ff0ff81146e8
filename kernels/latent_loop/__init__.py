"""The persistent version of `decode_step`: k latent steps through all layers in one launch.

`LatentDecoder(..., persistent=True)` runs it. It saves the gaps between launches and pays with barriers; which is less
only a benchmark on the GPU at hand can say (`kernels/README.md`), so `auto` does not choose it yet. Its steps feed the
state itself (Coconut's feedback); the definition is `decode_step`'s.
"""
