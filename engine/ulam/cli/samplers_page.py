"""The page of all samplers, made from the samplers themselves: `python -m ulam.cli.samplers_page docs/samplers.md`.

Formula, source and arguments come from a class's docstring; its section, when to use it and the variants shown are
attributes (`GridSampler`); order, evaluations, registers and needs are those of the programs that it compiles to. Only
the order of the sections and the bibliography are kept here.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from .. import samplers, schedules
from ..samplers import grid
from ..samplers.grid import GridSampler
from ..samplers.names import A1111, DROP_LAST, named, names_of

# The sections in their order; others follow, sorted.
SECTIONS = (
    "Ancestral and marginal-preserving steps",
    "Solvers of the probability flow",
    "Stochastic",
    "Few steps, from distilled networks",
    "Langevin dynamics",
    "Inpainting",
)

# Those that have a picture of errors, drawn by docs/samplers_figures.py, beside the page.
FIGURES = {
    "Ancestral and marginal-preserving steps": "samplers_ancestral.svg",
    "Solvers of the probability flow": "samplers_flow.svg",
    "Stochastic": "samplers_stochastic.svg",
}
CAPTION = """\
![Errors of these samplers by their evaluations of the network]({})

Default options on levels uniform in sigma^(1/7) from 80 to 0.002 and to the data: as many levels as take at most 6, 10,
18, 32 and 60 evaluations. The network is the ideal one of a mixture of three Gaussians in one dimension. Without noise:
the root mean square distance from the exact map of the probability flow, at 200 quantiles, in float64. With noise
(law): the Wasserstein-1 distance of 20,000 draws from the data's quantiles, in float32; the dotted line is its mean for
exact draws, below which no sampler can be told from another. Made by `python docs/samplers_figures.py`.
"""

REFERENCES: dict[str, str] = {
    "Bao 2022": "Bao, Li, Zhu, Zhang. Analytic-DPM: an analytic estimate of the optimal reverse variance in diffusion "
    "probabilistic models. arXiv:2201.06503",
    "Boffi 2024": "Boffi, Albergo, Vanden-Eijnden. Flow map matching with stochastic interpolants. arXiv:2406.07507",
    "Chen 2025": "Chen et al. SANA-Sprint: one-step diffusion with continuous-time consistency distillation. "
    "arXiv:2503.09641",
    "Chung 2024": "Chung, Kim, Park, Nam, Ye. CFG++: manifold-constrained classifier free guidance for diffusion "
    "models. arXiv:2406.08070",
    "Cui 2023": "Cui et al. Elucidating the solution space of extended reverse-time SDE for diffusion models. "
    "arXiv:2309.06169",
    "Geng 2025": "Geng, Deng, Bai, Kolter, He. Mean flows for one-step generative modeling. arXiv:2505.13447",
    "Gonzalez 2023": "Gonzalez et al. SEEDS: exponential SDE solvers for fast high-quality sampling from diffusion "
    "models. arXiv:2305.14267",
    "Gu 2026": "Gu et al. AnyFlow: any-step video diffusion model with on-policy flow map distillation. "
    "arXiv:2605.13724",
    "Ho 2020": "Ho, Jain, Abbeel. Denoising diffusion probabilistic models. arXiv:2006.11239",
    "Jolicoeur-Martineau 2021": "Jolicoeur-Martineau et al. Adversarial score matching and improved sampling for image "
    "generation. arXiv:2009.05475",
    "Karras 2022": "Karras et al. Elucidating the design space of diffusion-based generative models. arXiv:2206.00364",
    "Kim 2024": "Kim et al. Consistency trajectory models: learning probability flow ODE trajectory of diffusion. "
    "arXiv:2310.02279",
    "Kingma 2021": "Kingma, Salimans, Poole, Ho. Variational diffusion models. arXiv:2107.00630",
    "Lee 2024": "Lee et al. Beta sampling is all you need. arXiv:2407.12173",
    "Lipman 2023": "Lipman et al. Flow matching for generative modeling. arXiv:2210.02747",
    "Liu 2022": "Liu, Ren, Lin, Zhao. Pseudo numerical methods for diffusion models on manifolds. arXiv:2202.09778",
    "Lu & Song 2025": "Lu, Song. Simplifying, stabilizing and scaling continuous-time consistency models. "
    "arXiv:2410.11081",
    "Lu 2022a": "Lu et al. DPM-Solver. arXiv:2206.00927",
    "Lu 2022b": "Lu et al. DPM-Solver++. arXiv:2211.01095",
    "Lugmayr 2022": "Lugmayr et al. RePaint: inpainting using denoising diffusion probabilistic models. "
    "arXiv:2201.09865",
    "Luo 2023": "Luo et al. Latent consistency models. arXiv:2310.04378",
    "Nichol & Dhariwal 2021": "Nichol, Dhariwal. Improved denoising diffusion probabilistic models. arXiv:2102.09672",
    "Permenter & Yuan 2024": "Permenter, Yuan. Interpreting and improving diffusion models from an optimization "
    "perspective. arXiv:2306.04848",
    "Sabour 2024": "Sabour, Fidler, Kreis. Align your steps: optimizing sampling schedules in diffusion models. "
    "arXiv:2404.14507",
    "Sabour 2025": "Sabour, Fidler, Kreis. Align your flow: scaling continuous-time flow map distillation. "
    "arXiv:2506.14603",
    "Saharia 2022": "Saharia et al. Photorealistic text-to-image diffusion models with deep language understanding "
    "(Imagen). arXiv:2205.11487",
    "Song & Ermon 2019": "Song, Ermon. Generative modeling by estimating gradients of the data distribution. "
    "arXiv:1907.05600",
    "Song 2021a": "Song, Meng, Ermon. Denoising diffusion implicit models. arXiv:2010.02502",
    "Song 2021b": "Song et al. Score-based generative modeling through stochastic differential equations. "
    "arXiv:2011.13456",
    "Song 2023": "Song, Dhariwal, Chen, Sutskever. Consistency models. arXiv:2303.01469",
    "Xu 2023": "Xu et al. Restart sampling for improving generative processes. arXiv:2306.14878",
    "Xue 2023": "Xue et al. SA-Solver: stochastic Adams solver for fast sampling of diffusion models. arXiv:2309.05019",
    "Zhang & Chen 2023": "Zhang, Chen. Fast sampling of diffusion models with exponential integrator. arXiv:2204.13902",
    "Zhang 2023b": "Zhang, Song, Chen. Improved order analysis and design of exponential integrator for diffusion "
    "models sampling. arXiv:2308.02157",
    "Zhao 2023": "Zhao et al. UniPC: a unified predictor-corrector framework. arXiv:2302.04867",
    "Zheng 2024": "Zheng et al. Trajectory consistency distillation. arXiv:2402.19159",
    "k-diffusion": "Crowson. github.com/crowsonkb/k-diffusion",
}

STEPS = 20
LEVELS = {
    "index": "{} spacing of whole indices",
    "fractional": "{} spacing, not rounded to whole indices",
    "endless": "{} spacing of one level more than the steps, the last left out",
}
NAMED = "(name, steps, *, sigmas, ...)"
INTRODUCTION = """\
# Samplers

Made by `python -m ulam.cli.samplers_page` from the classes of `ulam.samplers`; do not edit.

Notation: x_t = alpha_t x_0 + sigma_t eps. D is the network's estimate of x_0 and eps that of the noise, whatever it
predicts; s is the next level after t; q = alpha_t sigma_s / (alpha_s sigma_t); z is fresh standard normal noise. A
sampler takes any schedule and any prediction. It compiles to a table of rows, each at most one evaluation of the
network and one fused update: `print(sampler.program(schedule, predicts))` shows it.
"""
COSTS = f"""\
Order is the global order of accuracy, start-up included, in the step of log-SNR (weak order where noise is added); 0
means that more steps do not remove the error. Evaluations are those of {STEPS} steps on a VP schedule. Registers are
kept states beyond x, each as large as x.
"""


def page() -> str:
    """The text of docs/samplers.md."""
    classes = samplers.catalogue()
    sections = _sections(classes)
    inside = [cls for section in sections.values() for cls in section]
    uses = [(cls.__name__, _own(cls, "use", "")) for cls in inside]
    choice = [f"- [{name}](#{name.lower()}){use and f': {use}'}\n" for name, use in uses]
    parts = [INTRODUCTION, "## Which one\n", "".join(choice), "## What they cost\n", COSTS, _table(inside)]
    for title, section in sections.items():
        figure = [CAPTION.format(FIGURES[title])] if title in FIGURES else []
        parts += [f"## {title}\n", *figure, *map(_entry, section)]
    parts.append("## What several samplers share\n")
    for cls in _shared(classes):
        parts.append(f"### {cls.__name__}\n\n{inspect.getdoc(cls)}\n")
    parts.append(f"### Levels\n\n{inspect.cleandoc(grid.__doc__ or '')}\n")
    parts.append(f"### named\n\n    named{NAMED}\n\n{inspect.getdoc(named)}\n")
    parts += ["## Sources\n", _sources("\n".join(parts))]
    return "\n".join(parts)


def citations(text: str) -> set[str]:
    """The sources cited in square brackets in `text`: author and year, or a library."""
    inside = " ; ".join(re.findall(r"\[([^][]*)\]", " ".join(text.split())))
    return {*re.findall(r"\b[A-Z][\w-]+(?: & [A-Z][\w-]+)? \d{4}[a-z]?", inside), *re.findall("k-diffusion", inside)}


def _sections(classes: dict[str, type[GridSampler]]) -> dict[str, list[type[GridSampler]]]:
    """The samplers of each section by name, the sections in the order of SECTIONS."""
    titles = {cls.section for cls in classes.values()}
    ordered = [title for title in SECTIONS if title in titles] + sorted(titles - {*SECTIONS})
    return {title: [cls for cls in classes.values() if cls.section == title] for title in ordered}


def _table(classes: list[type[GridSampler]]) -> str:
    rows = ["| sampler | order | evaluations | registers | needs |", "|---|---|---|---|---|"]
    for cls in classes:
        for options in ({}, *_own(cls, "variants", ())):
            program = cls(STEPS, **options).program(schedules.vp_linear(), "eps")
            needs = ", ".join(need for need in program.needs if need != "registers") or "none"
            call = f"{cls.__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})"
            name = f"[{call}](#{cls.__name__.lower()})" if not options else f"`{call}`"
            rows.append(f"| {name} | {program.order} | {program.nfe} | {program.registers - 1} | {needs} |")
    return "\n".join(rows) + "\n"


def _own(cls: type, name: str, default: Any) -> Any:
    """An attribute of the class itself, not one that it inherits from the sampler that it builds on."""
    return vars(cls).get(name, default)


def _entry(cls: type[GridSampler]) -> str:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    shared = {field.name for field in dataclasses.fields(GridSampler)} - {"steps"}
    own = [_argument(field) for name, field in fields.items() if field.init and name not in shared]
    call = f"{cls.__name__}({', '.join(own)}, *, ...)"
    defaults = [f"final {fields['final'].default!r}"]
    if cls._times is GridSampler._times:
        defaults.insert(0, LEVELS[cls.convention].format(cls.default_spacing))
    text = f"### {cls.__name__}\n\n    {call}\n\n{inspect.getdoc(cls)}\n\nDefault levels: {'; '.join(defaults)}.\n"
    return text + _elsewhere(cls)


def _elsewhere(cls: type[GridSampler]) -> str:
    """A table of the names that the class has elsewhere, each with the options that it stands for."""
    theirs = [f"`{name}`" for name in _own(cls, "elsewhere", ()) if name.endswith("Scheduler")]
    rows = [f"| diffusers | {', '.join(theirs)} | see `ulam.integrations.diffusers.fuse` |"] if theirs else []
    for name, options in names_of(cls).items():
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        if name in DROP_LAST:
            given += f"{given and '; '}drop_last=True where sigmas are named"
        rows.append(f"| {'A1111' if name in A1111 else 'ComfyUI'} | `{name}` | {given} |")
    return "\n".join(["", "| elsewhere | name | options here |", "|---|---|---|", *rows, ""]) if rows else ""


def _argument(field: dataclasses.Field[Any]) -> str:
    return field.name if field.name == "steps" else f"{field.name}={field.default!r}"


def _shared(classes: dict[str, type[GridSampler]]) -> list[type]:
    """The classes other than samplers that the samplers' docstrings refer to, by name."""
    found = {}
    for cls in classes.values():
        known = vars(samplers) | vars(inspect.getmodule(cls))
        for name in re.findall(r"`([A-Z]\w+)`", f"{inspect.getdoc(cls)} `GridSampler`"):
            if name not in classes and inspect.isclass(known.get(name)):
                found[name] = known[name]
    return [found[name] for name in sorted(found)]


def _sources(text: str) -> str:
    """The lines of REFERENCES for the sources cited in `text`; a source that it does not list, as cited."""
    lines: dict[str, str] = {}
    for key in citations(text):
        known = {name: f"- {name}: {about}" for name, about in REFERENCES.items() if name.startswith(key)}
        lines |= known or {key: f"- {key}"}
    return "\n".join(lines[name] for name in sorted(lines, key=str.lower)) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
