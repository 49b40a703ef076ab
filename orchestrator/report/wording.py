"""How numbers, times and sizes are said."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

STRATEGY_NAMES = {
    "zero-shot": "Zero-shot",
    "feature-extraction": "Feature extraction",
    "partial": "Partial fine-tuning",
    "full": "Full fine-tuning",
    "domain-adaptive": "Domain-adaptive pretraining",
    "scratch": "Training from scratch",
}
MISSING = "–"


def finite(value: object) -> float | None:
    """`value` as a finite float, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: float) -> str:
    """Three significant digits, in the shortest common form: 0.00213, 2.1e-5, 12,345."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{int(value):,}"
    if abs(value) >= 1e7 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def score(value: float | None) -> str:
    """A metric, always with three decimals so that columns line up."""
    return MISSING if value is None else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference of metrics with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def percent(fraction: float) -> str:
    """A fraction of one as a whole percentage."""
    return f"{100 * fraction:.0f} %"


def duration(seconds: float | None) -> str:
    """A span of time in the two units that matter."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(n_bytes: float) -> str:
    """Bytes in binary units; a dash for 0, which means not measured."""
    if n_bytes <= 0:
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.3g} GiB"


def parameters(count: int) -> str:
    """A number of weights, in thousands or millions."""
    if count >= 1_000_000:
        return f"{count / 1e6:.3g} M"
    return f"{count / 1e3:.3g} k" if count >= 10_000 else f"{count:,}"


def value(anything: Any) -> str:
    """A parameter's value as people would write it in a spec."""
    known = finite(anything)
    if known is not None:
        return number(known)
    if isinstance(anything, str):
        return anything
    return json.dumps(anything, ensure_ascii=False)


def plural(count: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def cut(name: str, most: int) -> str:
    """A long name with its middle left out."""
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def strategy_name(strategy: str) -> str:
    """A strategy as a heading says it."""
    return STRATEGY_NAMES.get(strategy, strategy)
