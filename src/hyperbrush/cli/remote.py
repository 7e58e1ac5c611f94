"""`hyperbrush train --server URL`: the same settings, trained by a running `hyperbrush serve`."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import typer

from hyperbrush.errors import UserError

if TYPE_CHECKING:
    import httpx

    from hyperbrush.training.attention.run import HypernetworkRun

PART_FILES, PART_BYTES = 20, 48 << 20  # of an upload
PATIENCE = 60.0  # seconds that a server may be away while it is followed


class Server:
    """A running `hyperbrush serve`; url: as it printed it, with or without the token.

    Raises:
        UserError: the address is none.
    """

    def __init__(self, url: str, token: str = "") -> None:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise UserError(
                f"--server needs {error.name}, which is not installed: pip install 'hyperbrush[app]'"
            ) from error

        wrong = UserError(f"--server {url!r}: expected an address such as http://127.0.0.1:7870")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:
            raise wrong from None
        if bad:
            raise wrong
        token = token or (parse_qs(parts.query).get("token") or [""])[0]
        self.url = f"{parts.scheme}://{parts.netloc}"
        own = parts.hostname in ("localhost", "127.0.0.1", "::1")  # no proxy stands before it
        self.client = httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(60, connect=10),
            trust_env=not own,
        )

    def ask(self, method: str, path: str, **how: Any) -> Any:
        """Ask the REST API.

        Raises:
            UserError: it does not answer, or refuses.
        """
        import httpx

        try:
            answer = self.client.request(method, path, **how)
        except httpx.HTTPError as error:
            raise UserError(
                f"{self.url} does not answer ({error!s:.200}); does `hyperbrush serve` run there?"
            ) from error
        return self.checked(answer)

    def checked(self, answer: "httpx.Response") -> Any:
        """What an answer says.

        Raises:
            UserError: a refusal.
        """
        if answer.status_code == 401:
            raise UserError(f"{self.url} asks for a token: --token, or HYPERBRUSH_TOKEN")
        if answer.is_success:
            try:
                return answer.json()
            except ValueError:
                raise UserError(f"{self.url} is no hyperbrush server: it answers with no JSON") from None
        try:
            detail = answer.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = answer.text[:300] or answer.reason_phrase
        raise UserError(f"{self.url} refused ({answer.status_code}): {detail}")

    @contextmanager
    def events(self, path: str) -> Iterator[Iterator[dict[str, Any]]]:
        """Server-sent events of a path, as the JSON they hold."""
        import httpx

        with self.client.stream("GET", path, timeout=httpx.Timeout(PATIENCE, connect=10)) as answer:
            if not answer.is_success:
                answer.read()
                self.checked(answer)
            yield _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield json.loads("\n".join(data))
            data = []


def train(config: "HypernetworkRun", given: Mapping[str, Any], server: Server, *, dry_run: bool) -> None:
    """Train a config there and follow it; dry_run: its plan alone.

    given: the config as the server gets it, without what nobody said.

    Raises:
        UserError: whatever the server refuses, and a training that failed.
    """
    from hyperbrush.cli import console

    settings = dict(given)
    training = config.training
    folder = training.mask_folder if training.masks == "files" else None
    for key in ("data", "validation"):
        if key in settings:
            folders = [dict(one) for one in settings[key]]
            settings[key] = [
                {**f, "path": dataset(server, str(f["path"]), training.captions, mask_folder=folder)}
                for f in folders
            ]
    if folder is not None:  # there they lie beside their pictures
        settings["training"] = {k: v for k, v in settings["training"].items() if k != "mask_folder"}
    if training.condition_folder is not None:
        told = dataset(server, training.condition_folder, "none")
        settings["training"] = {**settings["training"], "condition_folder": told}
    request = {"settings": settings}
    if dry_run:
        job = follow(server, server.ask("POST", "/plans", json=request)["id"], config.name)
        console.done(str(job["result"]["text"]))
        console.suggest_without("--dry-run")
        return
    started = server.ask("POST", "/trainings", json=request)
    page = f"{server.url}/runs/{quote(started['run'])}"
    console.note(f"it trains at {page}")
    try:
        job = follow(server, started["job"], config.name, run=started["run"])
    except KeyboardInterrupt:
        console.note(f"the training goes on there; see it, pause it or stop it at {page}")
        raise typer.Exit(130) from None
    console.done(str(job["result"].get("summary", "")))


def dataset(server: Server, path: str, captions: str = "auto", *, mask_folder: str | None = None) -> str:
    """The name there of a folder: a local one is sent first, unless the same is there already.

    Folders in it, captions and masks are kept as they are.

    captions: where they come from, see `scan`.
    mask_folder: where its masks are; beside the pictures by default.

    Raises:
        UserError: neither is there.
    """
    from hyperbrush.cli import console
    from hyperbrush.ldm.data.archives import is_source

    there = {found["name"] for found in server.ask("GET", "/datasets")}
    local = Path(path).expanduser()
    if not is_source(local):
        if path not in there and not Path(path).parts[1:]:
            raise UserError(
                f"there is no folder {path!r} here and no dataset of that name at {server.url}; it has: "
                f"{', '.join(sorted(there)) or 'none'}"
            )
        return path
    files = _files(local, captions, mask_folder)
    name = local.resolve().name
    if name in there:
        if _same(server, name, files):
            return name
        number = 2
        while f"{name}-{number}" in there:
            number += 1
        name = f"{name}-{number}"
    name = str(server.ask("POST", "/datasets", json={"name": name})["name"])
    sent = 0
    with console.bar(transient=True) as bar:
        task = bar.add_task(f"sending {path}", total=len(files), info="")
        for part in _parts(files):
            said = server.ask(
                "POST",
                f"/datasets/{quote(name, safe='')}/pictures",
                files=[("files", one) for one in _sent(part)],
            )
            sent += len(said["added"])
            for refused in said["refused"]:
                console.note(f"{refused['name']} was not taken: {refused['reason']}")
            bar.advance(task, len(part))
    console.note(f"{sent} pictures and masks of {path} are there as the dataset {name!r}")
    return name


@dataclass(frozen=True)
class _Picture:
    """A local picture as it is sent: its place there, where its captions are, the captions, its mask."""

    name: str
    path: Path
    source: str
    captions: tuple[str, ...]
    mask: Path | None
    size: int
    mask_size: int

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).with_suffix("").as_posix()

    @property
    def said(self) -> tuple[str, ...] | None:
        """Captions as they are sent, where the name does not say them."""
        return None if self.source in ("filename", "none") else self.captions


def _sent(part: list[_Picture]) -> Iterator[tuple[str, bytes]]:
    """Files of some pictures: themselves, masks and texts of their names, rows of the metadata."""
    from hyperbrush.ldm.data.archives import content_of

    rows = []
    for picture in part:
        yield picture.name, content_of(picture.path)
        if picture.mask is not None:
            yield f"{picture.stem}.mask{picture.mask.suffix}", content_of(picture.mask)
        if picture.source == "text":
            yield f"{picture.stem}.txt", "\n".join(picture.captions).encode()
        elif picture.said is not None:
            rows.append({"file_name": picture.name, "text": list(picture.captions)})
    if rows:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        yield "metadata.jsonl", "\n".join(lines).encode()


def _files(folder: Path, captions: str, mask_folder: str | None) -> list[_Picture]:
    """The usable pictures of a folder."""
    from hyperbrush.app.names import plain_name
    from hyperbrush.cli import console
    from hyperbrush.ldm.data.archives import content_of
    from hyperbrush.ldm.data.masks import Masks, find_masks
    from hyperbrush.ldm.data.scan import Scan, scan

    looked = scan(folder, captions, caption_lines=True, exclude=mask_folder)
    items, masks, bad = find_masks(Masks("files", mask_folder, needed=False), looked.folder, looked.items)
    if problems := (*looked.problems, *bad):
        told = Scan(looked.folder, (), problems)
        console.note(f"{len(problems)} files of {folder} are not sent:\n{told.report(5)}")

    def bytes_of(path: Path) -> int:
        return path.stat().st_size if path.is_file() else len(content_of(path))

    found = []
    for item, mask in zip(items, masks, strict=True):
        place = item.path.relative_to(looked.folder).as_posix()
        if item.path.suffix == ".row":  # of a table, whose pictures have no names
            place = place.removesuffix(".row") + ".png"
        source = item.source
        try:
            plain_name(item.path.name, "picture")
        except UserError:  # it will be another there, and no caption any more
            source = "text" if source == "filename" else source
        mask_size = 0 if mask is None else bytes_of(mask)
        found.append(_Picture(place, item.path, source, item.written, mask, bytes_of(item.path), mask_size))
    if not found:
        raise UserError(f"there is no usable picture in {folder}")
    return found


def _parts(files: list[_Picture]) -> Iterator[list[_Picture]]:
    part: list[_Picture] = []
    for picture in files:
        size = sum(p.size + p.mask_size for p in part) + picture.size + picture.mask_size
        if part and (len(part) >= PART_FILES or size > PART_BYTES):
            yield part
            part = []
        part.append(picture)
    if part:
        yield part


def _same(server: Server, name: str, files: list[_Picture]) -> bool:
    """Whether a dataset there has just these pictures, captions and masks."""
    here = {p.stem: (p.size, p.said, p.mask_size) for p in files}
    there: dict[str, tuple[int, tuple[str, ...] | None, int]] = {}
    while True:
        path = f"/datasets/{quote(name, safe='')}"
        said = server.ask("GET", path, params={"start": len(there), "count": 1000})
        for p in said["pictures"]:
            captions = None if p["source"] == "filename" else tuple(p.get("several") or [p["caption"]])
            stem = PurePosixPath(p["name"]).with_suffix("").as_posix()
            there[stem] = p["bytes"], captions, p.get("mask", 0)
        if len(there) >= said["count"] or not said["pictures"]:
            return here == there


def follow(server: Server, job: str, name: str, *, run: str = "") -> dict[str, Any]:
    """Show a job's progress until it ends, and return it; the server may be away for a while.

    Raises:
        UserError: it failed, or the server stays away.
    """
    import httpx

    from hyperbrush.cli import console

    seen = time.monotonic()
    with console.bar() as bar:
        shown = _Shown(server, bar, name, run)
        while True:
            try:
                with server.events(f"/jobs/{job}/events") as events:
                    for stands in events:
                        seen = time.monotonic()
                        shown.tell(stands)
                        if stands["state"] in ("done", "failed", "stopped", "paused"):
                            return _ended(stands, server)
            except httpx.HTTPError as error:
                if time.monotonic() - seen > PATIENCE:
                    raise UserError(
                        f"{server.url} is away ({error!s:.200}); a training goes on there: look at its page later"
                    ) from error
            time.sleep(0.5)


def _ended(job: dict[str, Any], server: Server) -> dict[str, Any]:
    if job["state"] == "failed":
        raise UserError(f"it failed there: {job['error']}")
    if job["state"] != "done":
        raise UserError(f"it was {job['state']} at {server.url}; go on with it on its page")
    return job


class _Shown:
    """The progress bar of a job that runs elsewhere; without a terminal, a line now and then."""

    def __init__(self, server: Server, bar: Any, name: str, run: str) -> None:
        self.server, self.bar, self.name, self.run = server, bar, name, run
        self.task = bar.add_task("waits for its turn", total=None, info="")
        self._looked, self._told = 0.0, 0
        self._info = ""

    def tell(self, job: Mapping[str, Any]) -> None:
        """After an event."""
        from hyperbrush.cli import console

        said = job["progress"]
        step, steps, stage = said.get("step"), said.get("steps"), said.get("stage", "")
        if job["state"] == "queued":
            return
        training = stage == "training"
        if training and self.run and time.monotonic() - self._looked > 0.5:
            self._looked = time.monotonic()
            self._info = self._figures()
        what = f"training {self.name}" if training else f"{stage or job['kind']}"
        self.bar.update(self.task, description=what, completed=step, total=steps, info=self._info)
        due = bool(step and steps) and (step - self._told >= max(1, steps // 20) or step == steps)
        if training and not console.err.is_terminal and due and step != self._told:
            console.err.print(f"step {step}/{steps}  {self._info}", markup=False)
            self._told = step

    def _figures(self) -> str:
        """Loss, rate, speed and memory as the run's folder tells them."""
        try:
            live = self.server.ask("GET", f"/runs/{quote(self.run, safe='')}")["live"]
            return (
                f"loss {live['smoothed']:.4f}  rate {live['learning_rate']:.1e}  "
                f"{live['pictures_per_second']:.1f} pictures/s  {live['memory'] / 2**20:.0f} MiB"
            )
        except (UserError, KeyError, TypeError, ValueError):
            return self._info
