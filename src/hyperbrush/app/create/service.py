"""Drawing as pages and API ask for it: requests looked through, settings read out of pictures, results by number."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from hyperbrush.app.create import wildcards
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.model import service as base_models
from hyperbrush.app.requests import DrawRequest
from hyperbrush.app.site import Site
from hyperbrush.app.uploads import open_picture
from hyperbrush.errors import NotThere, UserError

VARY = 0.5  # how much "vary" draws anew
COMPARED = ("negative", "sampler", "steps", "guidance_scale", "width", "height", "clip_skip")


@dataclass(frozen=True)
class Drawn:
    """A picture of a job's result; number: its place there."""

    job: str
    number: int
    when: float
    said: dict[str, Any]  # as `work.drawing.keep` writes it

    @property
    def address(self) -> str:
        """Where it is served."""
        return f"/api/v1/jobs/{self.job}/pictures/{self.number}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "job": self.job,
            "number": self.number,
            "when": self.when,
            "address": self.address,
            **self.said,
        }


def ask(site: Site, request: DrawRequest) -> Job:
    """Put a drawing into the queue, once all that can be told without the model was found sound.

    Raises:
        UserError: a tag that says nothing, an unknown network, wildcard or sampler, a mask without a picture, a model or picture
            that is not there.
    """
    check(site, request)
    return site.submit("draw", request.model_dump())


def check(site: Site, request: DrawRequest) -> None:
    """Refuse what cannot be drawn.

    Raises:
        UserError: as `ask`.
    """
    from hyperbrush.generation.prompt_networks import read_prompt, refuse_negative_tags
    from hyperbrush.generation.settings import check_second_pass, check_subseed, check_text
    from hyperbrush.generation.wording import wording

    check_text(request.prompt)
    check_text(request.negative)
    refuse_negative_tags(request.negative)
    if wildcard := wildcards.first_of(request.negative):
        raise UserError(
            f"{wildcard:.100} is a wildcard, and none are put into the negative prompt: write the words themselves"
        )
    prompt = wildcards.filled(request.prompt, site.workspace.root / wildcards.FOLDER, request.seed or 0)
    read_prompt(prompt, site.workspace.library, request.missing)
    wording(prompt, request.settings())
    check_subseed(request.subseed, request.subseed_strength)
    check_second_pass(request.hires_scale, request.image)
    if request.mask and not request.image:
        raise UserError("a mask needs a picture to start from, of which it keeps a part: give image too")
    if request.mask_padding is not None and not request.mask:
        raise UserError("mask_padding needs a mask, whose region alone is drawn: give mask too")
    for upload in filter(None, (request.image, request.mask)):
        site.uploads.path(upload)
    base_models.refuse_elsewhere(site.workspace, request.model)


def varied(asked: Mapping[str, Any], said: Mapping[str, Any], upload: str) -> dict[str, Any]:
    """What a variation of a picture is asked with; asked: its own job's arguments; upload: the picture's id."""
    size = {side: said[side] for side in ("width", "height")}
    if (
        asked.get("mask_padding") is not None
    ):  # what was drawn was a region, and the picture may be far larger
        size = dict.fromkeys(size)
    begun = {"image": upload, "mask": "", "mask_padding": None, "image_strength": VARY, "hires_scale": None}
    return {**asked, **size, **begun, "seed": None, "count": 1}


def compare_address(asked: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """Where Compare opens with what a picture was drawn with; with hypernetworks, on a grid of strengths."""
    from hyperbrush.generation import read_infotext

    prompt = str(asked.get("prompt", ""))
    if wildcards.first_of(prompt):  # Compare takes none; the picture says what was put in
        prompt = read_infotext(str(said["parameters"])).prompt
    values = {"prompt": prompt, "seed": said["seed"], **{name: asked.get(name) for name in COMPARED}}
    if "<hypernet:" in prompt:
        values["axes"] = "strength=0,0.5,1"
    return "/compare?" + urlencode({name: value for name, value in values.items() if value not in (None, "")})


def settings_of(site: Site, content: bytes, name: str = "the picture") -> dict[str, Any]:
    """The settings a picture carries: {"settings": fields of a `DrawRequest`, "notes": …, "text": as it stands there}.

    Networks that have another name now are found by the hash the picture carries.

    Raises:
        UserError: it is no picture, carries no settings, or they cannot be drawn here.
    """
    from hyperbrush.generation.picture_files import text_in

    try:
        text = text_in(open_picture(content, name), name)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError) as error:  # Pillow's, of damaged EXIF
        raise UserError(f"the settings in {name} cannot be read: {error!s:.200}") from error
    return settings_in(site, text)


def settings_in(site: Site, text: str) -> dict[str, Any]:
    """What settings as a picture carries them mean here, as `settings_of` returns them.

    Raises:
        UserError: they cannot be read, or not be drawn here.
    """
    from hyperbrush.generation import read_infotext, repeat_of
    from hyperbrush.generation.repeat import renamed
    from hyperbrush.ldm.sampling.names import find_sampler

    info = read_infotext(text)
    repeat = repeat_of(info)
    fields = dict(repeat.arguments)
    moved: list[str] = []
    if "prompt" in fields:
        library = site.workspace.library
        fields["prompt"], moved = renamed(info, fields["prompt"], library)
    if "sampler" in fields:
        fields["sampler"] = find_sampler(fields["sampler"]).name
    height, width = fields.pop("size", None) or (None, None)
    known = {key: value for key, value in fields.items() if key in DrawRequest.model_fields}
    return {
        "settings": {**known, "width": width, "height": height},
        "notes": [*repeat.notes, *moved],
        "text": text,
    }


def pictures_of(job: Job) -> list[Drawn]:
    """The pictures of a drawing, also of one that still runs or was stopped."""
    found = job.result.get("pictures", job.progress.get("pictures", []))
    return [Drawn(job.id, number, job.created, dict(said)) for number, said in enumerate(found)]


def kept_pictures(site: Site, job: Job) -> list[Drawn]:
    """The pictures of a drawing whose files are there still."""
    folder = site.workspace.folder("outputs")
    return [one for one in pictures_of(job) if (folder / str(one.said["file"])).is_file()]


def picture_file(site: Site, job: str, number: int) -> Path:
    """The file of a picture.

    Raises:
        NotThere: there is no such job or picture, or its file was removed.
    """
    found = pictures_of(site.jobs.get(job))
    if not 0 <= number < len(found):
        raise NotThere(f"job {job} has no picture {number}; it has {len(found)}")
    folder = site.workspace.folder("outputs")
    path = folder / str(found[number].said["file"])
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise NotThere(f"picture {number} of job {job} is no longer in {folder}")
    return path


def last_pictures(site: Site, last: int) -> list[Drawn]:
    """The pictures drawn last, the newest first; those whose files were removed are left out."""
    found: list[Drawn] = []
    for job in site.jobs.all(kinds=("draw",), last=max(50, last)):
        found += reversed(kept_pictures(site, job))
        if len(found) >= last:
            break
    return found[:last]
