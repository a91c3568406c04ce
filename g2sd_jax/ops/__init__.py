# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Array functions on the device that belong to no model and to no loss.

Signatures here, in losses/ and in models/ carry the shapes of arrays, in these letters:
`B` batch, `H W` pixels of a picture, `h w` cells of a feature map, `c` channels of
either, `N` patches, `K` patches that masking keeps, `P` numbers in a patch, `T` tokens,
`D` width of the encoder, `E` of the decoder, `C` classes, `h` heads, `d` width of a
head. The tests check them whenever a function is called or traced.
"""
