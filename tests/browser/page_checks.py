"""What every page is held to in a browser: screens, schemes, contrast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SCREENS = {"laptop": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
MIN_CONTRAST = 4.5
"""WCAG 2 level AA for text of normal size."""
SUBPIXEL = 1
"""Browsers round layout boxes to whole pixels."""

CONTRAST_SCRIPT = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.checkVisibility() || ["title", "style"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const ink = parse(node.closest("svg") ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < LIMIT) poor.push(`${ratio.toFixed(2)} ${node.tagName} ${node.textContent.trim()}`);
  }
  return poor;
}""".replace("LIMIT", str(MIN_CONTRAST))


@dataclass
class Seen:
    """What the page did while it was open."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
