"""The model organism: a small real LLaVA trained by us, in a world small enough to judge exactly.

Its weaknesses come out of its training and are never scripted. `world` says what
exists, `language` how it is talked about, `pictures` how it is drawn, `stream` what each
training stage sees, `train` runs the recipe, `suites` and `judge` measure the result.
"""

from __future__ import annotations

from pathlib import Path

from vlmend.errors import ModelError


def weights_folder() -> Path:
    """The folder of the organism that comes with the package.

    Raises:
        ModelError: It was left out of this installation.
    """
    folder = Path(__file__).parent / "weights"
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"the organism's weights are not in {str(folder)!r}. Install vlmend anew, or train one "
            "with `vlmend organism train --out DIR` and give DIR/organism as the model."
        )
    return folder
