"""Argument checks that several operations share."""

import pytest
import torch

from cdrl_fast.ops.layout import check_apart, overlap


def test_overlap_of_bytes():
    memory = torch.zeros(4, 6)
    flat = memory.view(-1)
    assert overlap(flat[:5], flat[4:])
    assert not overlap(flat[:5], flat[5:])
    assert overlap(flat, flat[3:4])
    assert overlap(flat[3:4], flat.view(torch.uint8)[12:13])
    assert not overlap(flat[3:4], flat.view(torch.uint8)[:12])
    assert not overlap(flat, torch.zeros(24))
    # A view reaches as far as its last element.
    assert overlap(memory[:, 1], flat[19:20])
    assert not overlap(memory[:, 1], flat[20:])
    assert overlap(memory.mT, flat[23:])
    # Empty tensors overlap nothing.
    assert not overlap(flat, flat[5:5])
    assert not overlap(memory[:0, 1], flat)


def test_check_apart_names_both():
    x = torch.zeros(8)
    check_apart("spam", "out", x[:4], {"x": x[4:], "anchor": None})
    with pytest.raises(ValueError, match="spam: out must not share memory with anchor"):
        check_apart("spam", "out", x[:4], {"x": x[4:], "anchor": x[3:]})
