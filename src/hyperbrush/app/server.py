"""The server: REST API and pages on one address."""

import asyncio
import contextlib
import errno
import json
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from hyperbrush import __version__
from hyperbrush.app.messages import language_of
from hyperbrush.app.security import Access, Guard, is_loopback
from hyperbrush.app.site import Site
from hyperbrush.app.workspace import Workspace
from hyperbrush.assets import model_folder, style_folder
from hyperbrush.errors import NotThere, UserError
from hyperbrush.setting_errors import in_words
from hyperbrush.translation import say

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
APIS = {  # tag → module with `add(router, site)`
    "system": "settings.api",
    "jobs": "jobs.api",
    "drawings": "create.api",
    "gallery": "gallery.api",
    "networks": "networks.api",
    "datasets": "train.api_datasets",
    "trainings": "train.api",
    "runs": "runs.api",
    "styles": "styles.api",
    "comparing": "compare.api",
    "models": "model.api",
}
REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"description": "What was asked cannot be done; `detail` says why"},
    404: {"description": "It is not there"},
}
PAGES = ("create", "gallery", "networks", "train", "runs", "styles", "compare", "model", "settings")


@dataclass(frozen=True)
class Address:
    """Where to listen.

    Args:
        host, port: 0 takes a free port.
        names: other names a browser may call this machine by.
        certificate, key: TLS files (PEM).
    """

    host: str = "127.0.0.1"
    port: int = 7870
    names: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None


def make_app(site: Site, access: Access) -> Any:
    """The whole application, as ASGI."""
    import os

    # Before NiceGUI is imported: what it stores lies with the rest of the app's state.
    os.environ.setdefault("NICEGUI_STORAGE_PATH", str(site.workspace.state / "pages"))
    from fastapi.staticfiles import StaticFiles
    from fastapi_offline import FastAPIOffline
    from nicegui import ui

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch(site))
        yield
        watch.cancel()
        site.close()

    app = FastAPIOffline(
        title="hyperbrush",
        version=__version__,
        description="Hypernetworks for Stable Diffusion: use, train and generate them.",
        lifespan=lifespan,
    )

    def translated(request: Request, text: str) -> str:
        try:
            preferred = site.workspace.preferences.language
        except UserError:  # the preferences are broken, which may be what is told
            preferred = ""
        return say(text, language_of(request, preferred))

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> Response:
        return _told(404 if isinstance(error, NotThere) else 400, translated(request, str(error)))

    @app.exception_handler(OSError)
    async def unreadable(request: Request, error: OSError) -> Response:
        """A file that vanished meanwhile, a disk that is full."""
        log.warning("a file could not be used", exc_info=error)
        name = Path(str(error.filename)).name if error.filename else "a file"
        full = error.errno == errno.ENOSPC
        text = f"{name}: {error.strerror or error}" + ("; make room on the server" if full else "")
        status = 507 if full else 404 if isinstance(error, FileNotFoundError) else 400
        return _told(status, translated(request, text))

    @app.exception_handler(HTTPException)
    async def told(request: Request, error: HTTPException) -> Response:
        """As FastAPI does, but where a body could not be kept while it came in: that says nothing of the disk."""
        if isinstance(error.__cause__, OSError):
            return await unreadable(request, error.__cause__)
        return await http_exception_handler(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        said = [
            {"type": e["type"], "loc": e["loc"], "msg": translated(request, in_words(e))}
            for e in error.errors()
        ]
        return _told(422, said)

    for tag, module in APIS.items():
        router = APIRouter(prefix="/api/v1", tags=[tag], responses=REFUSED)
        import_module(f"hyperbrush.app.{module}").add(router, site)
        app.include_router(router)
    import_module("hyperbrush.app.webui.api").add(app, site)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.mount("/examples", StaticFiles(directory=style_folder() / "train"), name="examples")
    app.get("/drawn.png", include_in_schema=False)(lambda: FileResponse(model_folder("emoji") / "grid.png"))
    for page in PAGES:
        import_module(f"hyperbrush.app.{page}.page").add(site)
    import_module("hyperbrush.app.ui.lost").add(site)
    ui.run_with(
        app,
        title="hyperbrush",
        favicon=STATIC / "icon.svg",
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=10.0,
    )
    return Guard(app, access)


def _told(status: int, detail: Any) -> Response:
    """An answer in ASCII: what was sent, and is quoted, may hold halves of characters."""
    return Response(json.dumps({"detail": detail}), status, media_type="application/json")


async def _watch(site: Site) -> None:
    with contextlib.suppress(Exception):  # the watch meets it again, and tells of it
        # May import torch, which takes seconds, beside the first requests.
        await asyncio.to_thread(lambda: site.device)
    await site.watch()


def serve(workspace: Workspace, address: Address, *, token: str = "", on_ready: Any = None) -> None:
    """Serve until Ctrl-C.

    on_ready: called with the address to open, once it answers.

    Raises:
        UserError: the address cannot be listened on, a TLS file cannot be read, or another server has the workspace.
    """
    import uvicorn

    from hyperbrush.app.jobs.worker import server_lives

    if server_lives(workspace.state):
        raise UserError(f"another server runs on {workspace.root} already; open that one, or stop it")
    if not is_loopback(address.host):
        token = token or secrets.token_urlsafe(24)
    if (address.certificate is None) != (address.key is None):
        raise UserError("TLS needs both files: --certificate and --key")
    for file in filter(None, (address.certificate, address.key)):
        if not file.is_file():
            raise UserError(f"there is no TLS file {file}")
    listening = _listen(address)
    port = listening.getsockname()[1]
    access = Access(address.host, address.names, token)
    config = uvicorn.Config(
        make_app(Site(workspace), access),
        log_level="warning",
        ssl_certfile=str(address.certificate) if address.certificate else None,
        ssl_keyfile=str(address.key) if address.key else None,
        server_header=False,
        timeout_graceful_shutdown=2,
        ws_max_size=64 << 20,
    )
    try:
        config.load()
    except OSError as error:
        raise UserError(f"the TLS files cannot be used: {error}") from error
    server = uvicorn.Server(config)
    name = "localhost" if address.host in ("0.0.0.0", "::") else address.host  # what a browser can open
    name = f"[{name}]" if ":" in name else name
    url = f"{'https' if address.certificate else 'http'}://{name}:{port}/" + (
        f"?token={quote(token, safe='')}" if token else ""
    )

    async def run() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started and on_ready is not None:
            on_ready(url)
        await serving

    with _alone(workspace):
        asyncio.run(run())


@contextlib.contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace: two servers that start at once do not see each other's server.json yet.

    Raises:
        UserError: another server has it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(workspace.state / "server.lock")
    try:
        workspace.state.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"another server runs on {workspace.root} already; open that one, or stop it"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {workspace.state}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address.host, address.port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(
            f"cannot listen on {address.host}:{address.port}: {error.strerror or error}; choose another --port"
        ) from error
    return listening
