"""Sign words: their layout, bit by bit, in plain torch and in Triton."""

import torch
import triton
import triton.language as tl

from cdrl_fast.ops.sign_bits import pack, sign_bits_shape, unpack
from cdrl_fast.ops.triton_common import pack_signs, unpack_signs


@triton.jit
def there_and_back(words, back, positive, P: tl.constexpr, C: tl.constexpr):
    pixel = tl.arange(0, P)[:, None]
    at = pixel * C + tl.arange(0, C)[None, :]
    made = pack_signs(tl.load(positive + at) != 0)
    tl.store(words + tl.arange(0, C // 32)[None, :] * P + pixel, made)
    tl.store(back + at, unpack_signs(made).to(tl.int8))


def signs(shape=(3, 1, 2, 96)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) > 0


def test_every_bit_is_where_it_should_be():
    positive = signs()
    words = pack(positive)
    assert words.dtype == torch.int32
    assert words.shape == sign_bits_shape(positive) == (3, 6)
    assert words.is_contiguous()
    for channel in range(96):
        for pixel in range(6):
            bit = int(words[channel // 32, pixel]) >> channel % 32 & 1
            assert bit == positive.reshape(6, 96)[pixel, channel]
    assert torch.equal(unpack(words), positive.reshape(6, 96))
    only_the_last = torch.arange(32)[None] == 31
    assert pack(only_the_last).item() == -(2**31)
    assert pack(torch.ones(1, 32, dtype=torch.bool)).item() == -1


def test_the_device_functions_are_the_same(triton_device):
    positive = signs((8, 1, 2, 64)).to(triton_device)
    positive[0, 0, 0] = True
    words = torch.full((2, 16), 77, dtype=torch.int32, device=triton_device)
    back = torch.full((16, 64), 7, dtype=torch.int8, device=triton_device)
    there_and_back[(1,)](words, back, positive.to(torch.int8), 16, 64)
    assert torch.equal(words, pack(positive))
    assert torch.equal(back != 0, positive.reshape(16, 64))
    assert words[:, 0].tolist() == [-1, -1]
