"""Print a table that compares the features of this library and related ones.

    pip install torchebm==0.8.9 ebmkit==0.16.0
    python docs/tools/related.py    # prints the table, and exits with 1 if a name is missing

Each cell names the function or class that provides a feature; the names are looked up in the
installed packages.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util

LIBRARIES = {"cdrl_fast": "cdrl_fast", "torchebm 0.8.9": "torchebm", "ebmkit 0.16.0": "ebm"}
"""Column title → package to import."""

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


def exists(package: str, name: str) -> bool:
    """Return whether ``package`` has the dotted ``name``: a module, or an attribute of one."""
    owner = importlib.import_module(package)
    for part in name.split("."):
        if not hasattr(owner, part):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(f"{owner.__name__}.{part}")
        owner = getattr(owner, part, None)
    return owner is not None


def missing() -> list[str]:
    """Return the names in the table that an installed library does not have."""
    installed = {t: p for t, p in LIBRARIES.items() if importlib.util.find_spec(p) is not None}
    return [
        f"{title}: {name}"
        for names in FEATURES.values()
        for (title, package), name in zip(LIBRARIES.items(), names, strict=True)
        if name is not None and title in installed and not exists(package, name)
    ]


def table() -> str:
    """Return the features as Markdown.

    Raises:
        LookupError: an installed library does not have a name of the table.
    """
    if names := missing():
        raise LookupError(
            f"docs/tools/related.py: the installed libraries have no {', '.join(names)}; "
            "correct FEATURES"
        )
    rows = [["", *LIBRARIES], ["---"] * 4]
    rows += [
        [feature, *("no" if name is None else f"`{name}`" for name in names)]
        for feature, names in FEATURES.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(table())
