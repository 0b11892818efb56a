"""Values as the page writes them.

Used by everything in `report/`. Left out: escaping, which the template does for every text.
"""

import json
from typing import Any

NONE = "\N{EN DASH}"
LONGEST_TEXT = 600  # characters of a prompt, an answer or a reason
LONGEST_VALUE = 300  # of a table among the details of a check


def number(value: object) -> str:
    """A figure as it is read: four significant digits, thousands apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return NONE
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else _short(f"{value:.3g}")


def brief(value: float) -> str:
    """A figure to be taken in at a glance: three significant digits."""
    return number(float(f"{value:.3g}"))


def count(number_of: int, what: str) -> str:
    """ "1 step", "2 steps"."""
    return f"{number_of:,} {what}" + ("" if number_of == 1 else "s")


def tick(value: float) -> str:
    """A figure beside an axis."""
    if abs(value) >= 1e4:
        return f"{value / 1000:,.4g}k" if abs(value) < 1e9 else _short(f"{value:.3g}")
    return "0" if abs(value) < 1e-12 else _short(f"{value:,.4g}")


def share(value: float) -> str:
    """A part of a whole in per cent."""
    return f"{100 * value:.3g} %"


def memory(num_bytes: float, digits: int = 3) -> str:
    """Bytes in the largest unit that fits: "1.2 GB"."""
    for unit, large in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(num_bytes) >= large:
            return f"{num_bytes / large:.{digits}g} {unit}"
    return f"{num_bytes:.0f} B"


def memory_tick(num_bytes: float) -> str:
    """Bytes beside an axis, where neighbours are to differ."""
    return memory(num_bytes, digits=4)


def duration(seconds: float) -> str:
    """Seconds as they are said: "12 s", "3 min 20 s", "5 h 2 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def moment(text: object) -> str:
    """An ISO moment of a run's files, to the second, in UTC."""
    return str(text)[:19].replace("T", " ") if text else NONE


def shortened(text: object, longest: int = LONGEST_TEXT) -> str:
    """A text that others wrote: what cannot be printed made visible, the middle of a long one left
    out.
    """
    plain = str(text)
    if len(plain) > longest:
        half = longest // 2
        left_out = f" … {len(plain) - 2 * half:,} characters … "
        plain = plain[:half] + left_out + plain[-half:]
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for letter in plain
    )


def value(found: Any) -> str:
    """A setting or a detail in a few words: the `path` or `type` of a table stands for it."""
    if found is None or isinstance(found, bool | int | float):
        return number(found)
    if isinstance(found, list):
        return shortened(", ".join(map(value, found)), LONGEST_VALUE)
    if not isinstance(found, dict):
        return shortened(found, LONGEST_VALUE)
    for key in ("path", "architecture"):
        if found.get(key):
            return str(found[key])
    given = [f"{key} {value(item)}" for key, item in found.items() if item and key != "type"]
    return shortened(", ".join([*([found["type"]] if "type" in found else []), *given]))


def as_json(found: Any) -> str:
    """What a program on the page reads, without what could end an element."""
    return json.dumps(found, ensure_ascii=True, separators=(",", ":"))


def _short(text: str) -> str:
    """Without the zeros of an exponent: 2e-05 as 2e-5."""
    for sign in ("e-0", "e+0"):
        text = text.replace(sign, sign[:-1])
    return text.replace("e+", "e")
