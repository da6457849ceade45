"""Write the tables and the figure of docs/theory.md.

python scripts/write_theory.py
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from estep.theory import example
from estep.theory.bounds import iwae, lemma_1
from estep.theory.example import CORRECT, LABELS_OF_FILMS
from estep.theory.labels import em_acceptance, label_mix, pps_acceptance, rejection_acceptance, star_acceptance
from estep.theory.model import Array, kl
from estep.theory.proposals import Proposal, acceptance, accepted, posterior, pps, rejection, star, verified
from estep.theory.resampling import resampled
from estep.theory.weights import rationale_weights

DOCS = Path(__file__).parent.parent / "docs"
PLAIN, HINTED = example.plain(), example.hinted()
POSTERIOR, WEIGHTS = PLAIN.posterior(CORRECT), rationale_weights(PLAIN, HINTED, CORRECT)
DRAWS = (1, 2, 4, 8, 16)
PROPOSALS: dict[str, Proposal] = {
    "posterior (EM)": posterior,
    "rejection, M = 1": rejection(1),
    "rejection, M = 4": rejection(4),
    "STaR": star(HINTED),
    "PPS": pps(HINTED),
    "PPS, verified": verified(HINTED),
}
HINT_FOLLOWED = np.array([0.9, 0.8, 0.5, 0.8, 0.9])
"""Made up: how often a hinted draw ends in its hint, by label."""
LABELS = {
    "data, EM": em_acceptance,
    "rejection, M = 1": rejection_acceptance(1),
    "rejection, M = 4": rejection_acceptance(4),
    "STaR": star_acceptance(HINT_FOLLOWED),
    "PPS": pps_acceptance(HINT_FOLLOWED),
}
ITERATIONS = 4


def table(head: str, rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join([f"| {head} |", "|" + "---|" * (head.count(" | ") + 1), *(f"| {' | '.join(r)} |" for r in rows)])


def by_proposal() -> str:
    """What each proposal accepts in the example."""
    rows = []
    for name, proposal in PROPOSALS.items():
        q = proposal(PLAIN, CORRECT)
        kept, bound = accepted(q, CORRECT), lemma_1(PLAIN.joint_ZY, q, CORRECT).bound
        figures = [acceptance(q, CORRECT), kept @ PLAIN.s(CORRECT), kl(POSTERIOR, kept), kl(kept, POSTERIOR)]
        rows.append([name, " ".join(f"{share:.3f}" for share in kept), *map(number, [*figures, bound])])
    return table("proposal | accepted rationales q̃ | a | E_q̃[s] | KL(p ‖ q̃) | KL(q̃ ‖ p) | Lemma 1's bound", rows)


def by_draws() -> str:
    """Resampling and the bounds of log μ, by the number of draws."""
    q, pi, s = HINTED.rationales_Z, PLAIN.rationales_Z, PLAIN.s(CORRECT)
    rows = [
        ["KL(p ‖ SIR of n draws from q)", *(f"{kl(POSTERIOR, resampled(q, WEIGHTS, n)):.5f}" for n in DRAWS)],
        ["IWAE bound from n draws of q", *(f"{iwae(q, WEIGHTS, n):.5f}".replace("-", "−") for n in DRAWS)],
        ["IWAE bound from n plain draws", *(f"{iwae(pi, s, n):.5f}".replace("-", "−") for n in DRAWS)],
    ]
    return table(f"n | {' | '.join(map(str, DRAWS))}", rows)


def by_label() -> str:
    """The label mix after the last iteration."""
    rows = [[name, *(f"{100 * share:.1f} %" for share in mix)] for name, mix in label_mixes().items()]
    return table("score | 0 | 1 | 2 | 3 | 4", rows)


def label_mixes() -> dict[str, Array]:
    """From a uniform start, after four iterations."""
    return {name: label_mix(np.full(5, 0.2), LABELS_OF_FILMS, a, ITERATIONS)[-1] for name, a in LABELS.items()}


def number(value: float) -> str:
    """Three decimals, with a true minus sign and without that of a zero."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def with_tables(page: str) -> str:
    """The page with its tables as the code has them."""
    for name, text in (("proposals", by_proposal()), ("draws", by_draws()), ("labels", by_label())):
        begin, end = f"<!-- {name}: written by scripts/write_theory.py -->", f"<!-- end of {name} -->"
        page, found = re.subn(f"{begin}.*?{end}", f"{begin}\n\n{text}\n\n{end}", page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"docs/theory.md has {found} places for the table '{name}'")
    return page


def draw(out: Path) -> None:
    """Accepted rationales, bounds by the number of draws, and label mixes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 0.9, 1.1])
    draw_rationales(left)
    draw_bounds(middle)
    draw_labels(right)
    for panel in (left, middle, right):
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(11)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def draw_rationales(panel: Any) -> None:
    """Panel a: the accepted rationales of the example."""
    places = np.arange(len(POSTERIOR))
    sir = resampled(HINTED.rationales_Z, WEIGHTS, 4)
    panel.bar(places, POSTERIOR, width=0.82, color="#d9d9de", label="posterior p = rejection, any M")
    lines = {
        "SIR of 4 hinted draws": (sir, "#009e73", "D"),
        "STaR": (accepted(star(HINTED)(PLAIN, CORRECT), CORRECT), "#c2559d", "^"),
        "PPS": (accepted(pps(HINTED)(PLAIN, CORRECT), CORRECT), "#2f7fd0", "o"),
        "PPS, verified": (accepted(verified(HINTED)(PLAIN, CORRECT), CORRECT), "#d55e00", "s"),
    }
    for index, (name, (shares, color, marker)) in enumerate(lines.items()):
        panel.plot(places + 0.17 * (index - 1.5), shares, marker, color=color, ms=7, label=name)
    panel.set_xticks(places, [f"z{place + 1}\n{s:.1f}" for place, s in enumerate(PLAIN.s(CORRECT))])
    panel.set(title="a. Accepted rationales", ylabel="probability", ylim=(0, 0.6))
    panel.set_xlabel("rationale, and s(z) = π(y* | x, z)")
    panel.legend(frameon=False, fontsize=9, loc="upper left")


def draw_bounds(panel: Any) -> None:
    """Panel b: the IWAE bounds of log μ."""
    log_mu = math.log(PLAIN.mu(CORRECT))
    hinted = [iwae(HINTED.rationales_Z, WEIGHTS, k) for k in DRAWS]
    plain = [iwae(PLAIN.rationales_Z, PLAIN.s(CORRECT), k) for k in DRAWS]
    panel.axhline(log_mu, color="#55555c", ls="--", lw=1.2)
    panel.text(1, log_mu + 0.008, f"log μ = {number(log_mu)}", va="bottom", fontsize=9)
    panel.plot(DRAWS, hinted, "o-", color="#2f7fd0", label="from hinted draws, w = π s / q")
    panel.plot(DRAWS, plain, "s-", color="#1b1b1f", label="from plain draws, w = s")
    panel.set_xscale("log", base=2)
    panel.set_xticks(DRAWS, map(str, DRAWS))
    panel.set(title="b. IWAE bounds of log π(y* | x)", xlabel="draws k", ylabel="nats", ylim=(-1.54, -1.08))
    panel.grid(axis="y", alpha=0.25)
    panel.legend(frameon=False, fontsize=9, loc="lower right")


def draw_labels(panel: Any) -> None:
    """Panel c: the label mixes."""
    mixes = label_mixes()
    places, bottom = np.arange(len(mixes)), np.zeros(len(mixes))
    shades = ("#b35806", "#f1a340", "#e8e8ec", "#998ec3", "#542788")
    for score, shade in enumerate(shades):
        shares = np.array([mix[score] for mix in mixes.values()])
        panel.bar(places, shares, bottom=bottom, color=shade, width=0.78, edgecolor="white", label=str(score))
        for place, share, base in zip(places, shares, bottom, strict=True):
            if share >= 0.035:
                dark = score in (0, 4)
                panel.text(
                    place, base + share / 2, f"{100 * share:.0f}", ha="center", va="center", fontsize=9,
                    color="white" if dark else "#1b1b1f",
                )  # fmt: skip
        bottom = bottom + shares
    panel.set_xticks(places, [name.replace(", ", "\n").replace("rejection", "RS") for name in mixes])
    panel.set(title=f"c. Label mix after {ITERATIONS} iterations", ylabel="π(y | x), %", ylim=(0, 1))
    panel.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    handles, names = panel.get_legend_handles_labels()
    panel.legend(
        handles[::-1], names[::-1], title="score", frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5)
    )


if __name__ == "__main__":
    page = DOCS / "theory.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    draw(DOCS / "theory.png")
