"""Who may ask: Host and Origin checked on every request and websocket, a token beyond the loopback, sizes limited."""

import hmac
import ipaddress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode, urlsplit

from starlette.requests import cookie_parser

from hyperbrush.app.messages import Messages, chosen_language

Scope = dict[str, Any]

COOKIE = "hyperbrush_token"
MOST_BODY = 600 << 20  # bytes of a request: a hypernetwork file may be large
MOST_PLAIN = 64 << 20  # of one without files, which is read into memory whole
# What Starlette's middleware (NiceGUI has some) and Socket.IO raise where a client left before the answer.
CLIENT_DISCONNECTED = ("No response returned.", "'REQUEST_METHOD'")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self'; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)

_SIGN_IN = """<!doctype html><html lang="{language}"><head><meta charset="utf-8"><title>hyperbrush</title>
<meta name="viewport" content="width=device-width, initial-scale=1"></head>
<body style="font-family:sans-serif;max-width:30rem;margin:4rem auto;padding:0 1rem"><h1>hyperbrush</h1>
{wrong}<form method="get"><p><label for="token">{token}</label></p>
<p><input id="token" name="token" type="password" autocomplete="current-password" style="width:100%">
<button>{open}</button></p></form></body></html>"""


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Args:
        host: the address that is listened on.
        names: other names a browser may call this machine by.
        token: asked of everyone where it is set.
    """

    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()
    token: str = ""

    def allows_host(self, header: str) -> bool:
        """Whether a Host header names this machine: else a foreign name was bent to it (DNS rebinding)."""
        name = _host_name(header)
        if name in LOOPBACK or name in (self.host, *self.names):
            return True
        if is_loopback(self.host):
            return False
        try:
            ipaddress.ip_address(name)  # a name can be bent, a number cannot
        except ValueError:
            return False
        return True

    def allows_token(self, headers: dict[str, str], query: str) -> bool:
        """Whether a request carries the token: as cookie, as bearer, or in the address once."""
        if not self.token:
            return True
        given = [
            unquote(cookie_parser(headers.get("cookie", "")).get(COOKIE, "")),
            headers.get("authorization", "").removeprefix("Bearer ").strip(),
            *parse_qs(query).get("token", []),
        ]
        return any(hmac.compare_digest(g.encode(), self.token.encode()) for g in given)


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI: lets through what `Access` allows, with headers that keep pages to themselves."""

    def __init__(self, app: Any, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One request or websocket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        query = scope.get("query_string", b"").decode("latin-1")
        refused = self._refusal(scope, headers)
        if refused is None and not self.access.allows_token(headers, query):
            if scope["type"] == "http" and "text/html" in headers.get("accept", ""):
                await _answer(send, 401, _sign_in(headers, query), "text/html; charset=utf-8")
                return
            refused = 401, "a token is needed: Authorization: Bearer TOKEN"
        if refused is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await _answer(send, *refused)
            return
        given = parse_qs(query).get("token")
        if given and self.access.token and scope["type"] == "http" and scope["method"] == "GET":
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            value = quote(self.access.token, safe="")  # the true one, whatever else was given
            cookie = f"{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000{secure}"
            rest = urlencode([pair for pair in parse_qsl(query) if pair[0] != "token"])
            place = (
                "/" + quote(scope["path"].lstrip("/\\")) + ("?" + rest if rest else "")
            )  # never another host
            extra = [(b"location", place.encode()), (b"set-cookie", cookie.encode())]
            await _answer(send, 303, "", extra=extra)
            return
        most = _most(headers)
        limit = _Limit(receive, most)
        try:
            await self.app(scope, limit, _with_headers(send))
        except _TooLarge:
            await _answer(send, 413, f"a request may have {most >> 20} MiB at most")
        except (RuntimeError, KeyError) as error:
            if not limit.left or str(error) not in CLIENT_DISCONNECTED:
                raise

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self.access.allows_host(host):
            return 421, "this host name is not served here; see hyperbrush serve --host and --name"
        origin = headers.get("origin")
        if origin is not None and not _same(origin, host):
            return 403, "requests from other origins are refused"
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")
        if headers.get("sec-fetch-site") == "cross-site" and not (
            reads and headers.get("sec-fetch-mode") == "navigate"
        ):
            return 403, "requests from other sites are refused"
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "Content-Length is no number"
        if int(length[:20]) > (most := _most(headers)):
            return 413, f"a request may have {most >> 20} MiB at most"
        return None


def _sign_in(headers: dict[str, str], query: str) -> str:
    """The page that asks for the token, in the browser's language; a wrong one in the address is told."""
    chosen = cookie_parser(headers.get("cookie", "")).get("language", "")
    t = Messages(chosen_language(chosen, "", headers.get("accept-language", "")))
    is_wrong = bool(parse_qs(query).get("token"))
    return _SIGN_IN.format(
        language=t.language,
        wrong=f'<p role="alert" style="color:#b00020">{t("frame.sign_in_wrong")}</p>' if is_wrong else "",
        token=t("frame.sign_in_token", command="<code>hyperbrush serve</code>"),
        open=t("frame.sign_in_open"),
    )


class _TooLarge(Exception):
    pass


class _Limit:
    """Counts the bytes of a body that does not say its length; left: the client has gone away."""

    def __init__(self, receive: Any, most: int) -> None:
        self.receive, self.most, self.count = receive, most, 0
        self.left = False

    async def __call__(self) -> Any:
        message = await self.receive()
        if message["type"] == "http.request":
            self.count += len(message.get("body", b""))
            if self.count > self.most:
                raise _TooLarge
        self.left = self.left or message["type"] == "http.disconnect"
        return message


def _most(headers: dict[str, str]) -> int:
    """Bytes that a request's body may have."""
    return MOST_BODY if headers.get("content-type", "").startswith("multipart/form-data") else MOST_PLAIN


def _with_headers(send: Any) -> Any:
    async def put(message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            own = [(name, value) for name, value in HEADERS if name not in names]
            message = {**message, "headers": [*message["headers"], *own]}
        await send(message)

    return put


async def _answer(
    send: Any, status: int, text: str, kind: str = "text/plain; charset=utf-8", *, extra: Any = ()
) -> None:
    body = text.encode()
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        *HEADERS,
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _host_name(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _same(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
