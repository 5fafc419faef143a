"""Processors for text and images alone, with the portable (PIL) image back-end.

Why not simply AutoProcessor: (1) a processor that also knows videos cannot be loaded without
torchvision, and audits use no videos; (2) with torchvision installed transformers resizes
images with another back-end whose pixels differ slightly, so numbers would depend on what
else is installed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

VIDEO_ATTRIBUTE = "video_processor"


@cache
def image_text_class(processor_class: type[Any]) -> type[Any]:
    """The processor class without its video part; itself where it has none.

    The class keeps its name, so that what it saves loads as the original class again.

    Args:
        processor_class: A transformers processor class.
    """
    if VIDEO_ATTRIBUTE not in processor_class.get_attributes():
        return processor_class

    @classmethod
    def get_attributes(cls: type[Any]) -> list[str]:
        names = processor_class.get_attributes()
        return [name for name in names if name != VIDEO_ATTRIBUTE]

    body = {"get_attributes": get_attributes, "__doc__": processor_class.__doc__}
    return type(processor_class.__name__, (processor_class,), body)


def uses_pil(image_processor: Any) -> bool:
    """Whether an image processor is of the PIL back-end."""
    return type(image_processor).__name__.endswith("Pil")
