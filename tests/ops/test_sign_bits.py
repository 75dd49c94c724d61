"""Layout of sign bits, in plain torch and in Triton."""

import torch
import triton
import triton.language as tl

from cdrl_fast.ops.sign_bits import pack, sign_bits_shape, unpack
from cdrl_fast.ops.triton_common import pack_signs, unpack_signs


@triton.jit
def pack_and_unpack(sign_bits, back, positive, P: tl.constexpr, C: tl.constexpr):
    pixel = tl.arange(0, P)[:, None]
    offset = pixel * C + tl.arange(0, C)[None, :]
    packed = pack_signs(tl.load(positive + offset) != 0)
    tl.store(sign_bits + tl.arange(0, C // 32)[None, :] * P + pixel, packed)
    tl.store(back + offset, unpack_signs(packed).to(tl.int8))


def signs(shape=(3, 1, 2, 96)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) > 0


def test_every_bit_is_where_it_should_be():
    positive = signs()
    sign_bits = pack(positive)
    assert sign_bits.dtype == torch.int32
    assert sign_bits.shape == sign_bits_shape(positive) == (3, 6)
    assert sign_bits.is_contiguous()
    for channel in range(96):
        for pixel in range(6):
            bit = int(sign_bits[channel // 32, pixel]) >> channel % 32 & 1
            assert bit == positive.reshape(6, 96)[pixel, channel]
    assert torch.equal(unpack(sign_bits), positive.reshape(6, 96))
    only_the_last = torch.arange(32)[None] == 31
    assert pack(only_the_last).item() == -(2**31)
    assert pack(torch.ones(1, 32, dtype=torch.bool)).item() == -1


def test_triton_agrees_with_the_reference(triton_device):
    positive = signs((8, 1, 2, 64)).to(triton_device)
    positive[0, 0, 0] = True
    sign_bits = torch.full((2, 16), 77, dtype=torch.int32, device=triton_device)
    back = torch.full((16, 64), 7, dtype=torch.int8, device=triton_device)
    pack_and_unpack[(1,)](sign_bits, back, positive.to(torch.int8), 16, 64)
    assert torch.equal(sign_bits, pack(positive))
    assert torch.equal(back != 0, positive.reshape(16, 64))
    assert sign_bits[:, 0].tolist() == [-1, -1]
