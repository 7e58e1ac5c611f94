"""An index of every picture that was drawn, in SQLite: a file is opened once, a folder listed again where it has changed."""

import contextlib
import hashlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hyperbrush.app.jobs.jobs import Jobs
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import NotThere, UserError

Kind = Literal["drawing", "grid", "style"]
KINDS: tuple[Kind, ...] = ("drawing", "grid", "style")
OF_JOBS: dict[str, Kind] = {
    "compare": "grid",
    "style": "style",
}  # kinds of jobs that keep pictures in their folder
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
BATCH = 200  # pictures read between two commits
SETTLED = 2e9  # nanoseconds after which a folder's time tells of every change before it
VERSION = 1
TABLES = """
CREATE TABLE IF NOT EXISTS pictures (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, folder TEXT NOT NULL, name TEXT NOT NULL, place TEXT NOT NULL,
    changed INTEGER NOT NULL, size INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    prompt TEXT NOT NULL, parameters TEXT NOT NULL, searched TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_time ON pictures (changed DESC, place DESC);
CREATE INDEX IF NOT EXISTS by_folder ON pictures (folder);
CREATE TABLE IF NOT EXISTS folders (place TEXT PRIMARY KEY, parent TEXT NOT NULL, stamp INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS stars (id TEXT PRIMARY KEY);
"""
SHOWN = "id, kind, folder, name, place, changed, size, width, height, prompt, parameters, id IN (SELECT id FROM stars)"


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery.

    Args:
        id: of its place, for addresses.
        kind: drawing (of the outputs), grid (of a comparison) or style (without or with a generated adapter).
        folder, name: of its file.
        place: in the outputs, or JOB/NAME.
        changed: when it was drawn, nanoseconds since 1970.
        size: bytes.
        width, height: pixels.
        prompt: "" where it carries no settings.
        parameters: the settings it carries.
        starred: whether somebody likes it.
    """

    id: str
    kind: Kind
    folder: str
    name: str
    place: str
    changed: int
    size: int
    width: int
    height: int
    prompt: str
    parameters: str
    starred: bool

    @property
    def path(self) -> Path:
        """Its file."""
        return Path(self.folder, self.name)

    @property
    def job(self) -> str:
        """Of a grid or a style; "" of a drawing, which may outlive its job."""
        return "" if self.kind == "drawing" else self.place.partition("/")[0]

    @property
    def address(self) -> str:
        """Where it is served."""
        return f"/api/v1/gallery/{self.id}/file?{self.changed}"

    @property
    def thumbnail(self) -> str:
        """Where it is served small."""
        return f"/api/v1/gallery/{self.id}/thumbnail?{self.changed}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; changed in seconds."""
        names = ("id", "kind", "name", "place", "size", "width", "height", "prompt", "parameters", "starred")
        addresses = {"job": self.job, "address": self.address, "thumbnail": self.thumbnail}
        return {key: getattr(self, key) for key in names} | addresses | {"changed": self.changed / 1e9}


@dataclass(frozen=True)
class Query:
    """What of the gallery is wanted: pictures whose settings hold all words, of a kind, starred ones alone."""

    words: str = ""
    kind: str = ""
    starred: bool = False

    def where(self) -> tuple[str, list[object]]:
        """As SQL with its values."""
        parts: list[str] = ["1"]
        values: list[object] = []
        for word in self.words.casefold().split():
            parts.append("instr(searched, ?)")
            values.append(word)
        if self.kind:
            parts.append("kind = ?")
            values.append(self.kind)
        if self.starred:
            parts.append("id IN (SELECT id FROM stars)")
        return " AND ".join(parts), values


class Index:
    """The pictures of a workspace, the newest first; stars are kept with them."""

    def __init__(self, workspace: Workspace, jobs: Jobs) -> None:
        self.workspace, self.jobs = workspace, jobs
        self.file = workspace.state / "gallery.sqlite"
        self._writing = threading.Lock()
        self._made = False

    def find(self, query: Query, first: int = 0, most: int = 60) -> tuple[int, list[Shown]]:
        """How many there are in all, and some of them.

        Raises:
            UserError: the index cannot be written.
        """
        where, values = query.where()
        with self._open() as db:
            [count] = db.execute(f"SELECT count(*) FROM pictures WHERE {where}", values).fetchone()
            rows = db.execute(
                f"SELECT {SHOWN} FROM pictures WHERE {where} ORDER BY changed DESC, place DESC LIMIT ? OFFSET ?",
                [*values, most, first],
            ).fetchall()
        return int(count), [_shown(row) for row in rows]

    def get(self, picture: str) -> Shown:
        """The picture of an id.

        Raises:
            NotThere: there is none.
            UserError: the index cannot be written.
        """
        with self._open() as db:
            row = db.execute(f"SELECT {SHOWN} FROM pictures WHERE id = ?", [picture]).fetchone()
        found = None if row is None else _shown(row)
        if found is None or not found.path.is_file():
            raise NotThere(f"there is no picture {picture!r:.40} in the gallery; it may have been deleted")
        return found

    def beside(self, query: Query, one: Shown, step: int) -> tuple[int, Shown | None]:
        """A picture's place among those wanted, from 0, and its neighbour: the next (step 1), or the one before (-1)."""
        where, values = query.where()
        sign, order = ("<", "DESC") if step > 0 else (">", "ASC")
        here = [one.changed, one.place]
        with self._open() as db:
            [at] = db.execute(
                f"SELECT count(*) FROM pictures WHERE {where} AND (changed, place) > (?, ?)", [*values, *here]
            ).fetchone()
            row = db.execute(
                f"SELECT {SHOWN} FROM pictures WHERE {where} AND (changed, place) {sign} (?, ?) "
                f"ORDER BY changed {order}, place {order} LIMIT 1",
                [*values, *here],
            ).fetchone()
        return int(at), None if row is None else _shown(row)

    def star(self, picture: str, starred: bool) -> None:
        """Like a picture, or no more.

        Raises:
            UserError: the index cannot be written.
        """
        said = "INSERT OR IGNORE INTO stars VALUES (?)" if starred else "DELETE FROM stars WHERE id = ?"
        with self._open() as db:
            db.execute(said, [picture])
            db.commit()

    def starred_jobs(self) -> set[str]:
        """Jobs that keep a picture somebody likes in their folder."""
        with self._open() as db:
            rows = db.execute(
                "SELECT place FROM pictures WHERE kind != 'drawing' AND id IN (SELECT id FROM stars)"
            ).fetchall()
        return {str(place).partition("/")[0] for (place,) in rows}

    def refresh(self, on_read: Callable[[], object] = lambda: None) -> bool:
        """Look what was drawn, changed or removed since the last time; whether anything was.

        on_read: called each time that some more can be seen.

        Raises:
            UserError: the index cannot be written.
        """
        with self._writing, self._open() as db:
            looking = _Refresh(db, self.jobs.folder, on_read)
            outputs = self.workspace.folder("outputs")
            looking.visit(outputs, outputs.parent, outputs)
            looking.look_at_jobs(self.jobs)
            looking.end()
            db.commit()
            return looking.changed

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(self._connect()) as db:
                yield db
        except sqlite3.OperationalError as error:
            raise UserError(f"cannot use the gallery's index {self.file}: {error}; make room") from error

    def _connect(self) -> sqlite3.Connection:
        """A connection of the caller's own; what is no database is put aside, and the pictures are read anew."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        is_made = self._made and self.file.exists()
        db = sqlite3.connect(self.file, timeout=30)
        if is_made:
            return db
        try:
            _make(db)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            db.close()
            for end in ("-wal", "-shm"):
                self.file.with_name(self.file.name + end).unlink(missing_ok=True)
            self.file.replace(self.file.with_suffix(".damaged"))
            db = sqlite3.connect(self.file, timeout=30)
            _make(db)
        self._made = True
        return db


class _Refresh:
    """One look at all folders; jobs: where the jobs' are."""

    def __init__(self, db: sqlite3.Connection, jobs: Path, on_read: Callable[[], object]) -> None:
        self.db, self.jobs, self.on_read = db, jobs, on_read
        self.changed = False
        self._read = 0
        self._seen: set[str] = set()
        self._stamps: dict[str, int] = {}
        self._inside: dict[str, list[str]] = {}
        for place, parent, stamp in db.execute("SELECT place, parent, stamp FROM folders"):
            self._stamps[place] = stamp
            self._inside.setdefault(parent, []).append(place)

    def visit(self, folder: Path, parent: Path, outputs: Path) -> None:
        """A folder of the outputs, and those in it."""
        place = str(folder)
        try:
            stamp = folder.stat().st_mtime_ns
            self._seen.add(place)
            if self._stamps.get(place) == stamp:
                inside = list(map(Path, self._inside.get(place, [])))
            else:
                inside = self._list(folder, "drawing", outputs)
                self._keep(place, str(parent), stamp)
        except OSError:  # it has just vanished, or is not for us to read
            return
        for one in inside:
            self.visit(one, folder, outputs)

    def look_at_jobs(self, jobs: Jobs) -> None:
        """Grids and styles, which lie in the folders of their jobs."""
        for name in jobs.ids():
            folder = self.jobs / name
            place = str(folder)
            if self._stamps.get(place) == 0:  # of a kind that keeps none
                self._seen.add(place)
                continue
            job = jobs.find(name)
            if job is None:
                continue
            kind = OF_JOBS.get(job.kind)
            try:
                stamp = folder.stat().st_mtime_ns if kind else 0
            except OSError:
                continue
            self._seen.add(place)
            if self._stamps.get(place) == stamp:
                continue
            if kind:
                with contextlib.suppress(OSError):
                    self._list(folder, kind, self.jobs)
            self._keep(place, str(self.jobs), stamp)

    def end(self) -> None:
        """Forget the folders that are gone."""
        for place in self._stamps.keys() - self._seen:
            self.db.execute("DELETE FROM pictures WHERE folder = ?", [place])
            self.db.execute("DELETE FROM folders WHERE place = ?", [place])
            self.changed = True

    def _keep(self, place: str, parent: str, stamp: int) -> None:
        if time.time_ns() - stamp < SETTLED:
            stamp = -1  # may change again within the clock's tick
        self.db.execute("INSERT OR REPLACE INTO folders VALUES (?, ?, ?)", [place, parent, stamp])

    def _list(self, folder: Path, kind: Kind, root: Path) -> list[Path]:
        """Bring what is known of a folder's pictures up to date; the folders in it."""
        inside, there = [], {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not _is_text(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    inside.append(Path(entry.path))
                elif _is_wanted(entry.name, kind) and entry.is_file(follow_symlinks=False):
                    about = entry.stat(follow_symlinks=False)
                    there[entry.name] = (about.st_mtime_ns, about.st_size)
        known = {
            name: (changed, size)
            for name, changed, size in self.db.execute(
                "SELECT name, changed, size FROM pictures WHERE folder = ?", [str(folder)]
            )
        }
        for name in known.keys() - there.keys():
            self.db.execute("DELETE FROM pictures WHERE folder = ? AND name = ?", [str(folder), name])
            self.changed = True
        for name, stamp in there.items():
            if known.get(name) != stamp:
                self._add(folder, name, kind, root, stamp)
        return inside

    def _add(self, folder: Path, name: str, kind: Kind, root: Path, stamp: tuple[int, int]) -> None:
        path = folder / name
        found = _settings_in(path)
        if found is None:
            return
        width, height, prompt, parameters = found
        place = path.relative_to(root).as_posix()
        searched = f"{parameters}\n{place}".casefold()
        row = [id_of(kind, place), kind, str(folder), name, place, *stamp, width, height, prompt, parameters]
        self.db.execute(f"INSERT OR REPLACE INTO pictures VALUES ({', '.join('?' * 12)})", [*row, searched])
        self.changed = True
        self._read += 1
        if self._read % BATCH == 0:
            self.db.commit()
            self.on_read()


def id_of(kind: str, place: str) -> str:
    """The id of a picture's place."""
    return hashlib.sha256(f"{kind}:{place}".encode("utf-8", "replace")).hexdigest()[:16]


def _make(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    [version] = db.execute("PRAGMA user_version").fetchone()
    if version != VERSION:  # of another hyperbrush: read anew, but for the stars
        db.executescript("DROP TABLE IF EXISTS pictures; DROP TABLE IF EXISTS folders;")
    db.executescript(f"{TABLES} PRAGMA user_version = {VERSION};")


def _is_text(name: str) -> bool:
    """Whether a name can be written down; others are of no encoding this system knows, and left out."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in name)


def _is_wanted(name: str, kind: Kind) -> bool:
    if kind == "drawing":
        return name.lower().endswith(SUFFIXES)
    return name == "grid.png" if kind == "grid" else bool(re.fullmatch(r"with(out)?-\d+\.png", name))


def _settings_in(path: Path) -> tuple[int, int, str, str] | None:
    """(width, height, prompt, settings) of a picture, of which only the beginning is read; None for what is none."""
    from PIL import Image

    from hyperbrush.generation.infotext import read_infotext
    from hyperbrush.generation.picture_files import text_in

    text = prompt = ""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            with contextlib.suppress(UserError):  # it carries none
                text = text_in(picture, path.name)
                prompt = text.partition("\n")[0]
                prompt = read_infotext(text).prompt
    except Exception:  # noqa: BLE001  Pillow raises anything on a damaged file
        return None
    clean = [said.encode("utf-8", "replace").decode() for said in (prompt, text)]
    return width, height, clean[0], clean[1]


def _shown(row: Sequence[Any]) -> Shown:
    return replace(Shown(*row), starred=bool(row[-1]))
