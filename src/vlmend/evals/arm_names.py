"""Names of arms for people: without the settings that all arms of a method have in common.

A repair is named after its method and all settings that differ from the default, so that equal
names mean equal settings. Beside a number such a name takes the whole width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FITS = 32
"""Characters of a name that is short enough as it is."""

_FIELDS = frozenset({"name", "arm", "before", "after", "repair"})
"""Fields of a run's records in which the name of an arm, or of its only repair, stands."""


@dataclass(frozen=True)
class ShortNames:
    """Short names of the arms that are shown together.

    Attributes:
        of: Name -> short name.
        left_out: Method -> the settings, in words, that its short names are without.
    """

    of: Mapping[str, str]
    left_out: Mapping[str, str]

    def rename(self, record: Any) -> Any:
        """A copy of plain data with short names wherever an arm is named."""
        if isinstance(record, Mapping):
            return {
                key: self.of.get(value, value)
                if key in _FIELDS and isinstance(value, str)
                else self.rename(value)
                for key, value in record.items()
            }
        if isinstance(record, list | tuple):
            return [self.rename(item) for item in record]
        return record

    def in_text(self, text: str) -> str:
        """The text with short names for long ones.

        Example:
            >>> shorten_arms(["ppo(exits=random, layers=2-4, seed=1)"]).in_text(
            ...     "ppo(exits=random, layers=2-4, seed=1) on organism/icon"
            ... )
            'ppo on organism/icon'
        """
        for name in sorted(self.of, key=len, reverse=True):
            text = text.replace(name, self.of[name])
        return text

    def explain(self) -> list[str]:
        """What the short names are without, one line for each method.

        Example:
            >>> shorten_arms(["base", "ppo(exits=random, layers=2-4, seed=1)"]).explain()
            ['every ppo: exits=random, layers=2-4, seed=1']
        """
        return [f"every {method}: {settings}" for method, settings in self.left_out.items()]


def shorten_arms(names: Iterable[str]) -> ShortNames:
    """Leave out of long names what does not tell arms of the same method apart.

    Args:
        names: All arms that are shown together; a name may come several times.

    Returns:
        Short names, which differ where the names do.

    Example:
        >>> names = ["ppo(exits=random, target_kl=0.02)", "ppo(exits=random, target_kl=0.02, s=1)"]
        >>> list(shorten_arms(names).of.values())
        ['ppo', 'ppo(s=1)']
    """
    methods: dict[str, dict[str, list[str]]] = {}
    for name in names:
        method, settings = _split(name)
        methods.setdefault(method, {})[name] = settings
    short: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for method, found in methods.items():
        if max(map(len, found)) <= FITS:
            short |= {name: name for name in found}
            continue
        first, *others = found.values()
        shared = [s for s in first if all(s in settings for settings in others)]
        for name, settings in found.items():
            own = [s for s in settings if s not in shared]
            short[name] = f"{method}({', '.join(own)})" if own else method
        if shared:
            left_out[method] = ", ".join(shared)
    if len(set(short.values())) < len(short):
        return ShortNames({name: name for name in short}, {})
    return ShortNames(short, left_out)


def _split(name: str) -> tuple[str, list[str]]:
    """The method, and its settings."""
    found = re.fullmatch(r"(.+?)\((.+)\)", name)
    return (name, []) if found is None else (found[1], found[2].split(", "))
