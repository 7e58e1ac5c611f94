"""The gallery's pictures and its page, made by the commands that stand under them: python docs/make_gallery.py.

Takes a few minutes.  Writes docs/gallery.md and docs/gallery/*.png.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
INTRODUCTION = """# Gallery

Every picture here was made by the command under it, with the embedded model: 64×64 pixels, two processor cores, seconds a
picture. `python docs/make_gallery.py` makes them, and this page, anew.
"""


@dataclass(frozen=True)
class Entry:
    """A picture: what it shows, the command that makes it, the file the command leaves."""

    title: str
    about: str
    command: str
    made: str

    @property
    def picture(self) -> str:
        """Its file's name in the gallery."""
        return f"{self.title.casefold().replace(' ', '-')}.png"

    def section(self) -> str:
        """Its part of the page."""
        return (
            f"\n## {self.title}\n\n{self.about}\n\n"
            f"![{self.title}: {self.about}](gallery/{self.picture})\n\n```sh\n{self.command}\n```\n"
        )


INK = "--hypernetworks demo/hypernetworks"
ENTRIES = (
    Entry(
        "Names",
        "The model alone, each thing by its name.",
        'hyperbrush compare "cat face" --x "prompt=cat face,rocket,red heart,mushroom,red apple,guitar,house,umbrella" '
        "--seed 1 --out names.png",
        "names.png",
    ),
    Entry(
        "Looks",
        "Words before the name choose the look.",
        'hyperbrush compare "black ink umbrella" --x "prompt=black ink,glossy 3d,flat,line with grey,thin line,solid black" '
        "--y seed=2,5 --out looks.png",
        "looks.png",
    ),
    Entry(
        "A first hypernetwork",
        "Trained on 48 black-line pictures; none of these six things is among them.",
        "hyperbrush demo --out demo --no-open",
        "demo/grid.png",
    ),
    Entry(
        "A style from three pictures",
        "Weights generated in one pass from three black-line pictures, from the same in negative, and 50 steps of training on.",
        "hyperbrush demo --hyper --out hyper --no-open",
        "hyper/hyper-grid.png",
    ),
    Entry(
        "Strength",
        "From nothing to all of it, and a little beyond.",
        f'hyperbrush compare "umbrella <hypernet:ink:1>" --x strength=0-1.25:0.25 {INK} --seed 5 --out strength.png',
        "strength.png",
    ),
    Entry(
        "Steps",
        "The same start after 5 to 40 steps, with two samplers.",
        'hyperbrush compare "mushroom <hypernet:ink:0.7>" --x steps=5,10,20,40 --y "sampler=DPM++ 2M Karras,Euler a" '
        f"{INK} --seed 4 --out steps.png",
        "steps.png",
    ),
)


def make(entry: Entry, folder: Path) -> None:
    """Run its command in a folder and keep its picture.

    Raises:
        SystemExit: the command failed.
    """
    print("$", entry.command, flush=True)
    command = [sys.executable, "-m", *shlex.split(entry.command)]
    if subprocess.run(command, cwd=folder).returncode:
        sys.exit(f"{entry.title}: its command failed")
    (DOCS / "gallery").mkdir(exist_ok=True)
    shutil.copy(folder / entry.made, DOCS / "gallery" / entry.picture)


def page() -> str:
    """docs/gallery.md."""
    return INTRODUCTION + "".join(entry.section() for entry in ENTRIES)


def main() -> None:
    """All pictures, in order: later commands use what earlier ones leave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="write the page alone")
    if not parser.parse_args().page:
        with tempfile.TemporaryDirectory() as folder:
            for entry in ENTRIES:
                make(entry, Path(folder))
    (DOCS / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
