"""Parts of a user's own in `Sampler.run`: transitions, hooks and chains."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from cdrl_fast import Hook, Sampler, SampleRequest
from cdrl_fast.sampling.chain import Chain
from cdrl_fast.sampling.transitions import Adjusted


class Calls(Hook):
    """A hook that records each call."""

    def __init__(self, per_step):
        self.per_step, self.calls = per_step, []

    def started(self, state):
        self.calls.append(("started", state.level.t, state.step, state.rescaled))

    def proposed(self, state):
        self.calls.append(("proposed", state.level.t, state.step, state.rescaled))

    def stepped(self, state):
        self.calls.append(("stepped", state.level.t, state.step, state.rescaled))

    def finished(self, state):
        self.calls.append(("finished", state.level.t, state.step, state.rescaled))


@pytest.fixture(params=["image_model", "point_model"])
def sampler(request):
    return Sampler(request.getfixturevalue(request.param), precision="fp32")


@pytest.mark.parametrize("per_step", [True, False])
def test_a_hook_is_called_at_each_moment(sampler, per_step):
    hook = Calls(per_step)
    request = SampleRequest(3, steps=[2, 1, 1, 1, 1, 3], correctors=1, batch_size=2)
    samples = sampler.run(request, hooks=[hook])
    torch.testing.assert_close(samples, sampler.run(request), rtol=0, atol=1e-5)
    first = hook.calls[: hook.calls.index(("finished", 6, 0, True)) + 1]
    steps = [call for call in first if call[0] == "stepped"]
    assert first[:2] == [("started", 6, 0, True), ("proposed", 6, 0, False)]
    if per_step:
        assert steps == [("stepped", 6, k, False) for k in (1, 2, 3)] + [("stepped", 6, 1, True)]
    assert steps[-2:] == [("stepped", 6, 3, False), ("stepped", 6, 1, True)]
    assert sum(call[0] == "started" for call in hook.calls) == 2
    assert [c[1] for c in hook.calls if c[0] == "finished"] == 2 * [6, 5, 4, 3, 2, 1]


def test_a_hook_may_change_the_states(sampler):
    class Zero(Hook):
        per_step = True

        def stepped(self, state):
            state.y.zero_()

    class States(Hook):
        def finished(self, state):
            assert not state.x().any()
            assert state.log_density().isfinite().all()

    sampler.run(SampleRequest(2, steps=1), hooks=[Zero(), States()])


def test_a_transition_takes_the_steps(sampler):
    def cooler(energy, y, anchor, phase, context):
        phase = replace(phase, noise_std=factor * phase.noise_std)
        energy.langevin_(y, anchor, phase, context)

    request = SampleRequest(5, seed=3, steps=2)
    factor = 1.0
    assert torch.equal(sampler.run(request, transition=cooler), sampler.run(request))
    factor = 0.5
    assert not torch.equal(sampler.run(request, transition=cooler), sampler.run(request))


def test_the_requests_transition_can_be_given_by_hand(sampler):
    request = SampleRequest(4, steps=1)
    expected = sampler.run(replace(request, metropolis=True))
    assert torch.equal(sampler.run(request, transition=Adjusted()), expected)


def test_a_chain_replaces_the_loop(sampler):
    class Reversed(Chain):
        levels: ClassVar[list[int]] = []

        def level(self, x, level, terms, pass_index=0):
            self.levels.append(level.t)
            return super().level(-x, level, terms, pass_index)

    request = SampleRequest(2, steps=1)
    assert not torch.equal(sampler.run(request, chain=Reversed), sampler.run(request))
    assert Reversed.levels == [6, 5, 4, 3, 2, 1]
