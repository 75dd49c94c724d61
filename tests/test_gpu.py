"""Tests on a CUDA device: the CPU's results, no synchronisation in chains, capture in graphs."""

import subprocess
import sys

import pytest
import torch

from cdrl_fast import Sampler, langevin
from cdrl_fast.ops import langevin_step_, rng_state

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
STEP = {"drift": 0.1, "pull": 0.05, "noise_std": 0.3}


def state(batch=257):
    x = torch.randn(batch, 3, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return x, rng_state(seed=3, draw=5, device=DEVICE)


def run_steps(x, rng, backend, steps):
    anchor = x.clone()
    for _ in range(steps):
        langevin_step_(x, -x, anchor, rng=rng, backend=backend, **STEP)
    return x


def test_sampler_gives_the_cpu_samples(point_model):
    expected = Sampler(point_model).sample(200, seed=1)
    actual = Sampler(point_model.to(DEVICE)).sample(200, seed=1)
    assert actual.is_cuda
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_langevin_gives_the_cpu_chain():
    def log_density(x):
        return -0.5 * (x * x).sum(1)

    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    options = {"steps": 20, "step_size": 0.05, "seed": 1}
    expected = langevin(log_density, x, **options)
    actual = langevin(log_density, x.to(DEVICE), **options)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_steps_do_not_synchronise(backend):
    x, rng = state()
    run_steps(x, rng, backend, 1)  # builds and loads the kernel
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_steps(x, rng, backend, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_captured_chain_draws_new_noise_each_time(backend):
    """Replays of a graph advance the draws like the same steps without a graph."""
    expected, rng = state()
    run_steps(expected, rng, backend, 3)
    first, draw_after_first = expected.clone(), rng.tolist()[1]
    run_steps(expected, rng, backend, 3)
    x, rng = state()
    start = x.clone()
    run_steps(x, rng, backend, 3)  # warms up
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_steps(x, rng, backend, 3)
    x.copy_(start)
    rng.copy_(rng_state(seed=3, draw=5, device=DEVICE))
    graph.replay()
    assert torch.equal(x, first)
    assert rng.tolist()[1] == draw_after_first
    graph.replay()
    assert torch.equal(x, expected)


def test_import_makes_no_context():
    code = "import torch, cdrl_fast; cdrl_fast.Sampler; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)
