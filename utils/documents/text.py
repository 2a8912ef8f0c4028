"""Numbers and names as the reports print them."""

from __future__ import annotations

from collections.abc import Sequence


def percent(value: float) -> str:
    """A share for print: ``57.4 %``."""
    return f"{100 * value:.1f} %"


def interval(ci95: Sequence[float]) -> str:
    """The ends of an interval of a share for print, in per cent: ``53.0–61.7``."""
    return f"{100 * ci95[0]:.1f}–{100 * ci95[1]:.1f}"


def points(value: float) -> str:
    """A difference of shares for print, in percentage points: ``+4.4``."""
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # adding zero turns "-0.0" into "+0.0"


def points_interval(ci95: Sequence[float]) -> str:
    """The ends of an interval of a difference for print: ``+1.0 to +7.9``."""
    return f"{points(ci95[0])} to {points(ci95[1])}"


def p_text(value: float) -> str:
    """A p-value for a sentence: ``= 0.031``, or ``< 0.0001``."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def p_cell(value: float) -> str:
    """A p-value for a table: ``0.031``, or ``< 0.0001``."""
    return p_text(value).removeprefix("= ")


def plural(count: int, noun: str, several: str = "") -> str:
    """A number of things for print: ``1 pair``, ``3 pairs``, ``2 criteria`` (with its own plural)."""
    return f"{count} {noun if count == 1 else several or noun + 's'}"


def listed(names: Sequence[str]) -> str:
    """Names for print: ``ppo, grpo and dpo``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def duration(seconds: float) -> str:
    """A time for print, e.g. "8.3 s", "4 min 05 s", "2 h 07 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
