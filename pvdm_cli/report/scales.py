"""Numbers for people: round ticks of an axis, short figures, sizes and times."""

import math
from collections.abc import Sequence
from itertools import pairwise

STEPS = (1, 2, 5, 10)  # a tick is one of these times a power of ten
UNITS = (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1))


def linear_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values from low to high, about `count` of them, evenly spaced."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * k for k in STEPS), key=lambda step: abs(math.log(step / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Values from low to high for a logarithmic axis: powers of ten, or 1, 2 and 5 times them."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        every = -(-len(exponents) // 6) if len(factors) == 1 else 1
        found = [factor * 10.0**k for k in exponents[::every] for factor in factors]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) >= 3:
            return found
    return found if len(found) == 2 else linear_ticks(low, high, 3)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Write the ticks of one axis alike: no more decimals than tell them apart."""
    most = max((abs(tick) for tick in ticks), default=0.0)
    gaps = [abs(b - a) for a, b in pairwise(ticks)]
    if most >= 10_000:
        unit, letter = (1e6, "M") if most >= 1e6 else (1e3, "k")
        return [f"{tick / unit:.4g}{letter}" if tick else "0" for tick in ticks]
    if 0 < most < 1e-3:
        return [_scientific(tick) for tick in ticks]
    if gaps and max(gaps) > 1.01 * min(gaps):  # logarithmic: each with decimals of its own
        return [_scientific(tick) if tick < 1e-3 else f"{tick:.4g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 3
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def _scientific(value: float) -> str:
    """Write a small value, such as 4e-4."""
    if not value:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def figure(value: float) -> str:
    """Write a value with four figures."""
    if value and abs(value) < 1e-3:
        return _scientific(value)
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    """Write a share."""
    return f"{round(100 * value, 2):.3g} %"


def file_size(count: int) -> str:
    """Write bytes in the unit that suits them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.95 * scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Write a time in the two units that suit it."""
    for big, size, small, unit in UNITS:
        count = round(seconds / unit)
        if count * unit >= size:
            whole, rest = divmod(count, size // unit)
            return f"{whole} {big} {rest} {small}" if rest else f"{whole} {big}"
    return f"{seconds:.3g} s"
