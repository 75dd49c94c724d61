"""`known_mask`: masks by name and from pictures."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_fast.sampling.masks import known_mask


def test_lower_half():
    known = known_mask("lower-half", 2, (5, 4))
    assert known.shape == (2, 1, 5, 4)
    assert known[:, :, :2].all()
    assert not known[:, :, 2:].any()


def test_random_masks_have_their_share_and_differ_between_images():
    known = known_mask("random:0.75", 200, (8, 8), seed=3)
    share, pixels = known.float().mean(), known.numel()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / pixels)
    assert len({tuple(mask.flatten().tolist()) for mask in known}) == 200
    assert torch.equal(known_mask("random:0.75", 7, (8, 8), seed=3), known[:7])
    assert not torch.equal(known_mask("random:0.75", 7, (8, 8)), known[:7])
    assert known_mask("random:0", 3, (8, 8)).all()
    assert not known_mask("random:1", 3, (8, 8)).any()


def test_a_picture_of_another_size_keeps_sharp_edges(tmp_path):
    large = np.zeros((16, 24), dtype=np.uint8)
    large[:8, 4:12] = 255
    Image.fromarray(large).save(tmp_path / "mask.png")
    known = known_mask(str(tmp_path / "mask.png"), 2, (4, 4))
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[:2, :2] = False
    assert torch.equal(known, expected.expand(2, 1, 4, 4))


@pytest.mark.parametrize("spec", ["random:", "random:-0.1", "random:nan", "nothing.png"])
def test_bad_masks(spec):
    with pytest.raises(ValueError, match="mask: "):
        known_mask(spec, 1, (8, 8))
