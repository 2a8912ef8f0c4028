"""Numbers, names and tables as the reports print them."""

from __future__ import annotations

from collections.abc import Sequence


def percent(value: float) -> str:
    """A share for print: ``57.4 %``."""
    return f"{100 * value:.1f} %"


def interval(ci95: Sequence[float]) -> str:
    """The ends of an interval of a share for print, in per cent: ``53.0–61.7``."""
    return f"{100 * ci95[0]:.1f}–{100 * ci95[1]:.1f}"


def p_text(value: float) -> str:
    """A p-value for print: ``= 0.031``, or ``< 0.0001``."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def listed(names: Sequence[str]) -> str:
    """Names for print: ``ppo, grpo and dpo``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that may hold any text."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
