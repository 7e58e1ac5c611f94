"""Does an older transformers open the embedded model and draw the same picture?  See `make test-older`.

python tests/older/check.py save FOLDER      # with the pinned versions
python tests/older/check.py compare FOLDER   # with the older ones on PYTHONPATH
"""

import sys
from pathlib import Path

import numpy as np
import torch

EMOJI = Path(__file__).parents[2] / "src/hyperbrush/assets/emoji"


def draw() -> np.ndarray:
    """One picture by plain diffusers, without hyperbrush: (64, 64, 3) in [0, 1]."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(EMOJI, safety_checker=None)  # no precision named
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "slice of pizza",
        num_inference_steps=10,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]


def main(what: str, folder: Path) -> None:
    import diffusers
    import transformers

    file = folder / "picture.npy"
    made = draw()
    versions = f"transformers {transformers.__version__}, diffusers {diffusers.__version__}"
    if what == "save":
        np.save(file, made)
        print(f"saved with {versions}")
        return
    error = float(np.abs(made - np.load(file)).max())
    print(f"{versions}: largest difference {error:.2e}")
    if error > 1e-4:
        sys.exit("the pictures differ")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
