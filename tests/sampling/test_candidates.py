"""`Sampler.inpaint(candidates=)`: the selection of completions and its effect."""

import pytest
import torch
from gaussians import GaussianMixture, model_of

from cdrl_fast import Sampler, _extension, normal
from cdrl_fast.ops.philox import uniform
from tests.sampling.test_inpainting import (
    GAUSSIAN,
    KNOWN,
    MASKS,
    OBSERVED,
    conditional_moments,
    random_images,
)


def test_candidates_select_the_mode_that_the_known_entry_identifies():
    """A mode with a tenth of the points, which one coordinate in four identifies with certainty."""
    modes = GaussianMixture([[-1.0] * 4, [1.0] * 4], [0.3, 0.3], [0.9, 0.1])
    sampler = Sampler(model_of(modes))
    images, known = torch.ones(1, 4), torch.arange(4) == 0

    def share_in_mode(**options):
        samples = sampler.inpaint(images, known, samples=400, **options)
        assert torch.equal(samples[:, 0], torch.ones(400))
        return float((samples[:, 1:] > 0).all(dim=1).double().mean())

    assert share_in_mode() < 0.6
    assert share_in_mode(passes=2) < 0.9
    assert share_in_mode(candidates=4) > 0.8
    assert share_in_mode(candidates=16) > 0.97


def test_candidates_come_closer_to_the_conditional_distribution():
    mean, _ = conditional_moments()
    n = 4000

    def error(candidates):
        samples = (
            Sampler(GAUSSIAN)
            .inpaint(
                torch.tensor([[OBSERVED, 0.0, 0.0]]),
                torch.from_numpy(KNOWN),
                samples=n,
                candidates=candidates,
                batch_size=20_000,
            )[:, ~KNOWN]
            .double()
        )
        return abs(samples.mean(0).numpy() - mean).max()

    assert error(1) > 0.15
    assert error(4) < 0.7 * error(1)


def test_a_candidate_is_selected_by_its_weight(point_model):
    """Compare with weights computed by autograd in float64 from the same candidates."""
    schedule, count, seed, first = point_model.schedule, 5, 3, 7
    sampler = Sampler(point_model, precision="fp64")
    images = torch.tensor([[0.3, 0.0], [0.0, -0.8]])
    known = torch.tensor([[True, False], [False, True]])
    options = {"seed": seed, "samples": 2}
    candidates = sampler.inpaint(
        images, known, seed=seed, samples=2 * count, first_sample=first * count
    ).view(4, count, 2)
    actual = sampler.inpaint(images, known, candidates=count, first_sample=first, **options)
    mask = known.repeat_interleave(2, 0)[:, None]
    point_model.double()
    log_weights = torch.zeros(4, count, dtype=torch.float64)
    for t in range(1, schedule.levels):
        signal, variance = schedule.alpha_bar[t] ** 0.5, schedule.noise_variance[t]
        squares = torch.zeros_like(candidates)
        for index in range(8):
            position = {"seed": seed, "draw": 5 * 2**24 + ((7 - t) << 16) + index}
            noise = normal(
                (4, 2), **position, first_sample=first, dtype=torch.float64, backend="reference"
            )[:, None]
            for sign in (-1, 1):
                x = (signal * candidates + sign * variance**0.5 * noise).requires_grad_()
                density = point_model.log_density(x.view(-1, 2), t=t + 1).sum()
                (score,) = torch.autograd.grad(density, x)
                squares += (candidates - (x.detach() + variance * score) / signal).square() / 16
        mean_square = squares.mean(dim=(1, 2), keepdim=True)
        log_weights -= (squares * mask / mean_square / 2).sum(dim=2)
    u = uniform((4, count), seed=seed, draw=2 * 2**24 + 2, first_sample=first).double()
    selected = (log_weights - (-u.log()).log()).argmax(dim=1)
    torch.testing.assert_close(actual, candidates[range(4), selected], rtol=0, atol=1e-12)


@pytest.mark.skipif(_extension.load() is None, reason="library operations depend on the batch")
def test_candidates_of_each_class_in_any_batch(image_model):
    """Without a label candidates take the classes cyclically, the same in any batch."""
    sampler = Sampler(image_model, precision="fp32")
    images, known = random_images(), MASKS["one for each image"]
    options = {"samples": 2, "steps": 2, "candidates": 6}
    samples = sampler.inpaint(images, known, **options)
    assert torch.equal(sampler.inpaint(images, known, batch_size=7, **options), samples)
    rest = sampler.inpaint(images[2:], known[2:], first_sample=4, **options)
    assert torch.equal(rest, samples[4:])
    mask = known.repeat_interleave(2, 0)
    assert torch.equal(samples[mask], images.repeat_interleave(2, 0)[mask])
    candidates = torch.cat(
        [
            sampler.inpaint(images, known, samples=12, steps=2, label=label).view(4, 2, 6, 1, 8, 8)[
                :, :, label - 1 :: 3
            ]
            for label in (1, 2, 3)
        ],
        dim=2,
    )
    same = (candidates.flatten(0, 1) == samples[:, None]).flatten(2).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    fewer = sampler.inpaint(images, known, steps=2, candidates=2)
    plain = sampler.inpaint(images, known, steps=2, samples=2).view(4, 2, 1, 8, 8)
    assert ((plain == fewer[:, None]).flatten(2).all(dim=2).sum(dim=1) == 1).all()
