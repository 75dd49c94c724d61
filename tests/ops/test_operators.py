"""Registration of the operations with torch: schema, fake tensors, compilation."""

import pytest
import torch

from cdrl_fast import normal
from cdrl_fast.ops import langevin_step, langevin_step_, rng_state
from cdrl_fast.ops.langevin_step import NEVER

OPS = torch.ops.cdrl_fast
CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def step_arguments(shape, *, table, rng, backend="auto", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    grad, anchor = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    rows = torch.randn(4, shape[0], generator=generator, dtype=dtype) if table else None
    state = rng_state(seed=1, draw=2) if rng else None
    first_bad = torch.full((), NEVER) if rng else None
    return (grad, anchor, rows, 0.5, 0.1, 0.2, 1.0, 3, 4, 5, state, first_bad, backend)


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (5, 7)])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("rng", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_langevin_step(shape, table, rng, backend):
    x, out = torch.randn(2, *shape)
    arguments = step_arguments(shape, table=table, rng=rng, backend=backend)
    torch.library.opcheck(OPS.langevin_step_into.default, (x, *arguments, out), test_utils=CHECKS)
    torch.library.opcheck(OPS.langevin_step_onto.default, (x, *arguments), test_utils=CHECKS)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_normal(backend):
    arguments = (torch.empty(3, 5), -7, 2, 1, backend)
    torch.library.opcheck(OPS.normal_.default, arguments, test_utils=CHECKS)


@pytest.mark.slow
def test_a_chain_compiles_as_one_graph():
    """Compile five steps, with numbers, per-sample coefficients and an rng_state."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    pull = torch.linspace(0, 0.3, 6)

    def chain(x, rng, first_bad):
        y = x + 0.1 * normal(x.shape, seed=9, draw=3)
        for draw in range(2):
            y = langevin_step(
                y, -y, x, drift=0.1, pull=pull, noise_std=0.2, rng=(1, draw, 4), first_bad=first_bad
            )
        y = y * 1.5
        for _ in range(3):
            langevin_step_(y, -y, None, drift=0.1, pull=0.0, noise_std=0.2, rng=rng)
        return y

    def run(call):
        rng, first_bad = rng_state(seed=5, draw=6), torch.full((), NEVER)
        return call(x, rng, first_bad), rng, first_bad

    expected = run(chain)
    actual = run(torch.compile(chain, fullgraph=True, backend="inductor"))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert expected[1].tolist() == [5, 9, 0, 0]


def test_a_new_draw_does_not_compile_again():
    compiled = torch.compile(
        lambda x, draw: langevin_step(
            x, -x, None, drift=0.1, pull=0.0, noise_std=0.2, rng=(1, draw, 4)
        ),
        fullgraph=True,
        backend="aot_eager",
    )
    x = torch.ones(4, 3)
    torch._dynamo.reset()
    # The first change of an integer makes the compiler treat it as a variable.
    compiled(x, 2), compiled(x, 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for draw in (4, 5, 2**31 + 3):
            expected = langevin_step(
                x, -x, None, drift=0.1, pull=0.0, noise_std=0.2, rng=(1, draw, 4)
            )
            assert torch.equal(compiled(x, draw), expected)
