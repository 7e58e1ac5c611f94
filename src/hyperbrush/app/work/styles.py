"""An adapter from a few pictures or a text, and what it does beside the plain model."""

from pathlib import Path
from typing import Any

from hyperbrush.app.requests import StyleRequest, checked
from hyperbrush.app.uploads import Uploads
from hyperbrush.app.work.models import opened
from hyperbrush.app.worker import Desk
from hyperbrush.errors import UserError


def style(desk: Desk) -> dict[str, Any]:
    """Job "style": a `StyleRequest`; adapter.safetensors and the pictures in the job's folder."""
    import time

    from hyperbrush.generation import generate
    from hyperbrush.hypernetworks.generating import generate_adapter, open_generator

    request: StyleRequest = checked(StyleRequest, desk.arguments)
    uploads = Uploads(desk.workspace.state / "uploads")
    model = opened(desk)
    desk.tell(now=True, stage="generating")
    net = open_generator(generator_file(desk, request.generator), model.model)
    begin = time.perf_counter()
    weights = generate_adapter(
        net,
        pictures=[uploads.open(image).convert("RGB") for image in request.images],
        text=request.text,
        name=request.name,
    )
    seconds = time.perf_counter() - begin
    folder = desk.folder / "networks"
    file = weights.save(folder / "adapter.safetensors")
    pictures: dict[str, list[str]] = {"without": [], "with": []}
    for side, tag in (("without", ""), ("with", f" <hypernet:adapter:{request.strength:g}>")):
        for number, prompt in enumerate(request.prompts):
            desk.tell(now=True, stage=side, step=number, steps=len(request.prompts))
            drawn = generate(
                prompt + tag, model=model, seed=request.seed + number, steps=request.steps, hypernetworks=folder
            )
            name = f"{side}-{number}.png"
            drawn[0].save(desk.folder / name)
            pictures[side].append(name)
    return {"file": f"networks/{file.name}", "seconds": seconds, "size": file.stat().st_size, "pictures": pictures}


def generator_file(desk: Desk, name: str) -> Path:
    """The generator of that name among the workspace's, else the one that ships for the model.

    Raises:
        UserError: there is none.
    """
    from hyperbrush.assets import generator_file as shipped

    found = {path.stem: path for path in desk.workspace.folder("generators").glob("*.safetensors")}
    if name in found:
        return found[name]
    own = shipped(desk.workspace.preferences.model)
    if name in ("", desk.workspace.preferences.model) and own is not None:
        return own
    known = ", ".join(sorted(found)) or "none"
    raise UserError(f"there is no generator of weights {name!r:.60}for this model; there are: {known}")
