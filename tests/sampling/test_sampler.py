"""`Sampler`: same seed, same samples; agreement with the reference; traces; bad input."""

import pytest
import torch

from cdrl_fast import (
    CDRL,
    BackendUnavailable,
    ChainDiverged,
    MLPEnergy,
    NoiseSchedule,
    Sampler,
    StepPlan,
    _extension,
    reference,
)

N = 64


def labels(model, n=N):
    return None if model.num_classes == 0 else torch.arange(n) % (model.num_classes + 1)


@pytest.fixture(params=["image_model", "point_model"])
def model(request):
    return request.getfixturevalue(request.param)


def close(a, b, precision):
    """Check that samples of one seed agree; in float32 the signs of activations may flip."""
    if precision == "fp64":
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
        return
    difference = (a - b).abs().flatten(1)
    assert difference.median() <= 1e-5
    assert (difference.amax(dim=1) <= 1e-3).float().mean() >= 0.9


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_batching_and_position_in_the_stream(model, precision):
    sampler = Sampler(model, precision=precision)
    samples = sampler.sample(N, label=labels(model))
    close(sampler.sample(N, label=labels(model), batch_size=7), samples, precision)
    tail_labels = None if labels(model) is None else labels(model)[32:]
    tail = sampler.sample(32, label=tail_labels, first_sample=32)
    close(tail, samples[32:], precision)
    assert not torch.allclose(sampler.sample(N, seed=1, label=labels(model)), samples)


def test_samples_of_the_shipped_model_agree_with_the_reference():
    sampler = Sampler(CDRL.from_pretrained("digits"), precision="fp32")
    label = torch.arange(N) % 10 + 1
    samples = sampler.sample(N, label=label)
    close(reference.sample(sampler.model, N, label=label), samples, "fp32")


def test_the_default_dtype_of_torch_does_not_matter(model, request):
    expected = Sampler(model, precision="fp32").sample(5)
    request.getfixturevalue("double_by_default")
    close(Sampler(model, precision="fp32").sample(5), expected, "fp32")


@pytest.mark.skipif(_extension.load() is None, reason="library operations depend on the batch")
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_shipped_model_does_not_depend_on_batches_to_the_bit(precision, guidance):
    sampler = Sampler(CDRL.from_pretrained("digits"), precision=precision)
    label, options = torch.arange(40) % 10 + 1, {"guidance": guidance, "steps": 3}
    samples = sampler.sample(40, label=label, **options)
    for first, size in ((35, 1), (0, 7), (0, 32)):
        tail = {"label": label[first:], "first_sample": first, "batch_size": size}
        assert torch.equal(sampler.sample(40 - first, **tail, **options), samples[first:])


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_reference(image_model, precision, guidance):
    options = {"seed": 3, "label": "two", "guidance": guidance, "steps": [1, 2, 3, 4, 2, 1]}
    dtype = torch.float64 if precision == "fp64" else torch.float32
    expected = reference.sample(image_model, N, dtype=dtype, denoise_scale=2.0, **options)
    samples = Sampler(image_model, precision=precision).sample(N, denoise_scale=2.0, **options)
    assert samples.dtype == dtype
    close(samples, expected, precision)


def test_reference_of_points_and_of_drl(point_model):
    for initializer in (None, point_model.initializer):
        point_model.initializer = initializer
        expected = reference.sample(point_model, N, dtype=torch.float64, first_sample=5)
        close(Sampler(point_model, precision="fp64").sample(N, first_sample=5), expected, "fp64")


def test_noise_is_identical_to_the_bit(model):
    """With f = 0 and y_0 = x_t the samples are noise alone, so batches agree exactly."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "head" in name:
                parameter.zero_()
    model.initializer = None
    sampler = Sampler(model)
    samples = sampler.sample(N)
    assert torch.equal(sampler.sample(N, batch_size=7), samples)
    assert torch.equal(sampler.sample(32, first_sample=32), samples[32:])
    # The reference divides where the sampler multiplies by the reciprocal.
    torch.testing.assert_close(reference.sample(model, 3, first_sample=9), samples[9:12])


def test_images_are_clamped_and_points_are_not(image_model, point_model):
    images = Sampler(image_model).sample(8, label=1)
    assert images.shape == (8, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    points = Sampler(point_model).sample(500)
    assert points.shape == (500, 2)
    assert points.abs().max() > 1


def test_trace(image_model):
    sampler = Sampler(image_model, precision="fp32")
    trace = sampler.sample_trace(5, label="one", batch_size=2)
    samples = trace.samples
    assert trace.states.shape == (7, 5, 1, 8, 8)
    assert trace.levels.tolist() == [6, 6, 5, 4, 3, 2, 1]
    assert torch.equal(samples, sampler.sample(5, label="one", batch_size=2))
    noise = reference.stream.normal((5, 1, 8, 8), seed=0, draw=0)
    torch.testing.assert_close(trace.states[0], noise, rtol=0, atol=2e-6)
    one = torch.full((5,), 2)
    for state, energy, t in zip(trace.states, trace.energies, trace.levels, strict=True):
        expected = image_model.log_density(state, int(t), one)
        torch.testing.assert_close(energy, expected.detach(), rtol=1e-3, atol=1e-3)


def test_trace_of_steps(point_model):
    trace = Sampler(point_model).sample_trace(4, steps=2, trace="steps")
    samples = trace.samples
    assert trace.states.shape == (6 * 3, 4, 2)
    assert trace.levels.tolist() == [t for t in range(6, 0, -1) for _ in range(3)]
    torch.testing.assert_close(trace.states[-1], samples)


def test_steps_are_counted():
    calls = []

    class Counting(MLPEnergy):
        def forward(self, y, logsnr, label=None):
            calls.append(round(float(logsnr[0]), 3))
            return super().forward(y, logsnr, label)

    model = CDRL(Counting(2, 8, (1,)), None, NoiseSchedule(levels=3, steps=4))
    schedule = model.schedule
    Sampler(model).sample(2)
    assert calls == [round(float(schedule.logsnr[t - 1]), 3) for t in (3, 2, 1) for _ in range(4)]
    calls.clear()
    Sampler(model).sample(2, steps=StepPlan((1, 2, 3), (1.0, 1.0, 1.0)))
    assert calls == [round(float(schedule.logsnr[t - 1]), 3) for t in (3, 2, 1) for _ in range(t)]


def test_changed_weights_are_used(image_model):
    sampler = Sampler(image_model)
    before = sampler.sample(2, label=1)
    with torch.no_grad():
        image_model.energy.head.weight.mul_(-1)
    assert not torch.allclose(sampler.sample(2, label=1), before)
    assert torch.equal(sampler.sample(2, label=1), Sampler(image_model).sample(2, label=1))


def test_the_model_is_not_modified(image_model):
    image_model.train()
    state = {k: v.clone() for k, v in image_model.state_dict().items()}
    Sampler(image_model, precision="fp64").sample(2, label=1)
    assert image_model.training
    assert all(torch.equal(v, state[k]) for k, v in image_model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in image_model.parameters())


def test_guidance_zero_is_conditional_and_label_zero_unconditional(image_model):
    sampler = Sampler(image_model)
    assert torch.equal(sampler.sample(4, label=0), sampler.sample(4))
    guided = sampler.sample(4, label="one", guidance=1e-9)
    torch.testing.assert_close(guided, sampler.sample(4, label="one"), rtol=0, atol=1e-3)


def test_one_label_for_all_or_one_per_sample(image_model):
    sampler = Sampler(image_model, precision="fp64")
    samples = sampler.sample(3, label=["zero", "two", "one"])
    close(sampler.sample(1, label=3, first_sample=1), samples[1:2], "fp64")
    close(sampler.sample(3, label=torch.tensor([1, 3, 2])), samples, "fp64")


def test_empty_and_single(model):
    assert Sampler(model).sample(0).shape == (0, *model.sample_shape)
    assert Sampler(model).sample(1).shape == (1, *model.sample_shape)


def test_divergence_names_level_and_step(point_model):
    plan = StepPlan((3,) * 6, (1.0, 1.0, 1.0, 1e30, 1.0, 1.0))
    message = r"sample 8 became non-finite \(NaN or Inf\) at level 4, step 1"
    with pytest.raises(ChainDiverged, match=message):
        Sampler(point_model).sample(2, first_sample=8, steps=plan)
    with torch.no_grad():
        point_model.energy.head.weight.fill_(float("nan"))
    with pytest.raises(ChainDiverged) as caught:
        Sampler(point_model).sample(2)
    assert (caught.value.level, caught.value.step, caught.value.sample) == (6, 1, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": -1}, ValueError, r"n must be in \[0"),
        ({"n": 2.0}, TypeError, "n must be an integer"),
        ({"seed": "x"}, TypeError, "seed must be an integer"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"first_sample": -1}, ValueError, "first_sample must be in"),
        ({"batch_size": 0}, ValueError, "batch_size must be in"),
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"steps": "fast"}, TypeError, "steps: expected an int"),
        ({"label": 4}, ValueError, r"label: expected 1 to 3 \(0 is 'no label'\), got 4"),
        ({"label": -1}, ValueError, "expected 1 to 3"),
        ({"label": "four"}, ValueError, r"unknown class 'four'; classes: \('zero', 'one', 'two'\)"),
        ({"label": [1, 2, 3]}, ValueError, "expected one label or 2, got 3"),
        ({"label": 1.5}, TypeError, "a class number or name, got 1.5"),
        ({"label": torch.ones(2)}, TypeError, "expected integers"),
        ({"label": 1, "guidance": float("nan")}, ValueError, "guidance: expected a finite number"),
        ({"guidance": 1.0}, ValueError, "pass the label to guide towards"),
        ({"denoise_scale": float("inf")}, ValueError, "denoise_scale: expected a finite"),
        ({"trace": "levels"}, TypeError, "unknown argument 'trace'; it takes seed, steps, label"),
    ],
)
def test_bad_input(image_model, options, error, message):
    with pytest.raises(error, match=message):
        Sampler(image_model).sample(**{"n": 2, **options})


def test_unknown_traces(image_model):
    with pytest.raises(ValueError, match='trace: expected "levels" or "steps", got \'all\''):
        Sampler(image_model).sample_trace(2, trace="all")


def test_unconditional_models_take_neither_label_nor_guidance(point_model):
    with pytest.raises(ValueError, match="this model is unconditional; drop the label"):
        Sampler(point_model).sample(2, label=1)
    with pytest.raises(ValueError, match="unconditional, so there is nothing to guide by"):
        Sampler(point_model).sample(2, guidance=1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp8"}, ValueError, "precision: expected one of"),
        (
            {"precision": "fp16"},
            BackendUnavailable,
            "precision='fp16' needs a GPU and the library's own",
        ),
        ({"backend": "cuda"}, BackendUnavailable, 'backend="cuda" is not available'),
        (
            {"graph": "chain"},
            BackendUnavailable,
            "graph='chain' is not available: CUDA",
        ),
        ({"backend": "numpy"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_choices(image_model, options, error, message):
    with pytest.raises(error, match=message):
        Sampler(image_model, **options)
    with pytest.raises(TypeError, match="expected a CDRL or a combination of them, got str"):
        Sampler("digits")
