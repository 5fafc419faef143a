"""Reading the map that an error shows, as its reader would."""

from __future__ import annotations

from vlmend.models.spec import FamilySpec


def map_in(text: str) -> FamilySpec:
    """The `FamilySpec(...)` at the end of an error, evaluated."""
    shown = text[text.index("FamilySpec(") : text.rindex(")") + 1]
    found = eval(shown, {"FamilySpec": FamilySpec})
    assert isinstance(found, FamilySpec)
    return found
