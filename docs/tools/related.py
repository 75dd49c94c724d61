"""What this library and its neighbours have, feature by feature, as a table.

    pip install torchebm==0.8.9 ebmkit==0.16.0
    python scripts/peers.py            # the table; status 1 where a named thing is not there

Every "yes" names where it is, and is looked up in the packages that are installed. Speeds are
measured by ``pytest benchmarks/test_langevin.py --benchmark-only`` and not repeated here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

LIBRARIES = {"cdrl_fast": "cdrl_fast", "torchebm 0.8.9": "torchebm", "ebmkit 0.16.0": "ebm"}
"""Title → what is imported."""

FEATURES: dict[str, tuple[str | None, str | None, str | None]] = {
    "CDRL: energy and initializer train each other": ("Trainer", None, None),
    "diffusion recovery likelihood": ("Trainer", None, "DiffusionRecoveryLikelihood"),
    "contrastive divergence": (None, "losses.ContrastiveDivergence", "ContrastiveDivergence"),
    "score matching": (None, "losses.ScoreMatching", "DenoisingScoreMatching"),
    "noise-contrastive estimation": (None, None, "NoiseContrastiveEstimation"),
    "flow and energy matching": (None, "losses.EnergyMatchingLoss", None),
    "joint classifier and energy (JEM)": (None, None, "JEMLoss"),
    "Langevin dynamics of any density": (
        "langevin",
        "samplers.LangevinDynamics",
        "LangevinDynamics",
    ),
    "Metropolis-adjusted Langevin": ("langevin", None, "MALA"),
    "Hamiltonian Monte Carlo": (None, "samplers.HamiltonianMonteCarlo", "HMC"),
    "NUTS": (None, None, "NUTS"),
    "parallel tempering": (None, None, "ParallelTempering"),
    "discrete densities (Gibbs)": (None, None, "GibbsSampler"),
    "sums, mixtures and tempering of energies": ("product", None, "SumEnergy"),
    "guidance by a label": ("guided", "models.ClassifierFreeGuidance", "GuidedEnergy"),
    "inpainting": ("Sampler.inpaint", None, None),
    "log-density scores, AUROC": ("Sampler.log_density", None, "eval.ood_auroc"),
    "estimate of the normaliser (AIS)": (None, None, "ais_log_z"),
    "effective sample size, R-hat": (None, None, "eval.effective_sample_size"),
    "fused Langevin kernel": (
        "ops.langevin_step",
        "cuda.fused_langevin.fused_langevin_step",
        None,
    ),
    "… that its samplers use": ("Sampler", None, None),
    "energy gradients without autograd": ("ops.mlp_chain_", None, None),
    "chains as CUDA graphs": ("Sampler", None, None),
    "noise a function of seed and sample": ("normal", None, None),
    "trains on several processes": ("Trainer", "utils.distributed.all_gather_cat", None),
    "resumes bit for bit (CPU)": ("Trainer.resume", None, None),
    "pretrained models": ("CDRL.from_pretrained", None, None),
    "synthetic 2-D data sets": (
        "data.checkerboard",
        "datasets.EightGaussiansDataset",
        "datasets",
    ),
}
"""Feature → the name that provides it in each library, or None."""


def found(package: str, name: str) -> bool:
    """Whether ``package`` has the dotted ``name``, a module, an attribute or one of it."""
    place = importlib.import_module(package)
    for part in name.split("."):
        if not hasattr(place, part):
            module = f"{place.__name__}.{part}" if hasattr(place, "__path__") else ""
            if not module or importlib.util.find_spec(module) is None:
                return False
            importlib.import_module(module)
        place = getattr(place, part)
    return True


def missing() -> list[str]:
    """What the table claims of installed libraries and they do not have."""
    installed = {t: p for t, p in LIBRARIES.items() if importlib.util.find_spec(p) is not None}
    return [
        f"{title}: {name}"
        for names in FEATURES.values()
        for (title, package), name in zip(LIBRARIES.items(), names, strict=True)
        if name is not None and title in installed and not found(package, name)
    ]


def table() -> str:
    """The features as Markdown."""
    rows = [["", *LIBRARIES], ["---"] * 4]
    rows += [
        [feature, *("no" if name is None else f"`{name}`" for name in names)]
        for feature, names in FEATURES.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def main() -> int:
    print(table())
    for line in missing():
        print(f"not there: {line}", file=sys.stderr)
    return int(bool(missing()))


if __name__ == "__main__":
    sys.exit(main())
