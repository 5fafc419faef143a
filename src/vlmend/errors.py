"""Errors a user can act on: what is wrong, what was given, what is allowed, what to do.

Everything vlmend raises on purpose derives from `VlmendError`; the command line
prints its text and exits with code 2. Anything else is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VlmendError(Exception):
    """Base of every error vlmend raises on purpose."""


class UnknownNameError(VlmendError):
    """A name that is in none of our registries."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        """Build "unknown suite 'figstp'. Known: ... Did you mean 'figstep'?".

        Args:
            kind: What was looked up, e.g. "suite".
            given: The name the user gave.
            known: Every name that would have been right.
        """
        names = sorted(known)
        close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {given!r}. Known: {', '.join(names)}.{hint}")


class DataError(VlmendError):
    """A data file, row or image that cannot be used; names the file and the row."""


class ModelError(VlmendError):
    """A model that cannot be loaded, or whose anatomy is not proven."""


class ArtifactError(VlmendError):
    """A repair artifact that does not belong to this model or is damaged."""


class ConfigError(VlmendError):
    """A setting outside its range, or settings that contradict each other."""


class RunError(VlmendError):
    """A run folder that cannot be written, resumed or compared."""


class MissingExtraError(VlmendError):
    """An optional dependency that is not installed; says how to install it."""
