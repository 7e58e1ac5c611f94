"""Hostile requests: foreign hosts and origins, tokens, traversal, sizes, HTML where text is expected."""

import http.client
import io
import json
import socket
import ssl
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
from PIL import Image

from hyperbrush.app.security import Access
from hyperbrush.app.uploads import open_picture
from hyperbrush.errors import UserError


def ask(
    app: Any, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, str, dict[str, str]]:
    """A raw request: no library mends its path or headers."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(app.url).netloc, timeout=30)
    connection.putrequest(
        method, path, skip_host=bool(headers and "Host" in headers), skip_accept_encoding=True
    )
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace"), dict(answer.getheaders())


HOSTS = [
    "evil.com",
    "evil.com:7870",
    "127.0.0.1.evil.com",
    "localhost.evil.com",
    "192.168.1.5",
    "",
    "[::ffff:1.2.3.4]",
]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["/", "/api/v1/status", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"])
def test_foreign_names_are_refused(app: Any, host: str, path: str) -> None:
    assert ask(app, "GET", path, {"Host": host})[0] == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7870", "[::1]:80", "LOCALHOST"])
def test_own_names_are_served(app: Any, host: str) -> None:
    assert ask(app, "GET", "/api/v1/status", {"Host": host})[0] == 200


ORIGINS = [
    "http://evil.com",
    "null",
    "file://",
    "http://127.0.0.1:1",
    "http://localhost.evil.com",
    "http://[",
]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/draw"),
        ("PATCH", "/api/v1/preferences"),
        ("POST", "/sdapi/v1/options"),
        ("GET", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"),
    ],
)
def test_foreign_origins_are_refused(app: Any, origin: str, method: str, path: str) -> None:
    assert ask(app, method, path, {"Origin": origin}, b"{}")[0] == 403


def test_a_foreign_page_cannot_embed_or_fetch(app: Any) -> None:
    cross = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert ask(app, "GET", "/api/v1/status", cross)[0] == 403
    assert ask(app, "POST", "/api/v1/draw", cross, b"{}")[0] == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(app, "GET", "/", link)[0] == 200  # a link to it may be followed
    _, _, headers = ask(app, "GET", "/")
    headers = {name.lower(): value for name, value in headers.items()}
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_a_websocket_of_a_foreign_page_is_closed(app: Any) -> None:
    parts = urllib.parse.urlsplit(app.url)
    key = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    answers = {}
    for origin in ("http://evil.com", app.url):
        with socket.create_connection((parts.hostname, parts.port), 10) as raw:
            path = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
            raw.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nOrigin: {origin}\r\n{key}\r\n".encode()
            )
            answers[origin] = raw.recv(200).decode("latin-1").split("\r\n")[0]
    assert " 403 " in answers["http://evil.com"]
    assert " 101 " in answers[app.url]


TRAVERSALS = [
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..\\..\\windows",
    "%00",
    "%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "~root",
    "%c0%ae%c0%ae/",
]


@pytest.mark.parametrize("bad", TRAVERSALS)
@pytest.mark.parametrize(
    "path",
    [
        "/static/{}",
        "/api/v1/jobs/{}",
        "/api/v1/jobs/{}/preview",
        "/api/v1/jobs/{}/log",
        "/api/v1/jobs/{}/pictures/0",
        "/api/v1/uploads/{}",
        "/api/v1/hypernetworks/{}",
        "/api/v1/hypernetworks/{}/file",
        "/api/v1/hypernetworks/{}/preview",
        "/api/v1/datasets/{}",
        "/api/v1/datasets/{}/pictures/0",
        "/api/v1/runs/{}",
        "/api/v1/runs/{}/report",
        "/api/v1/runs/{}/previews/0",
        "/_nicegui/{}",
    ],
)
def test_no_path_leads_out(app: Any, path: str, bad: str) -> None:
    status, text, _ = ask(app, "GET", path.format(bad))
    assert 400 <= status < 500
    assert "root:" not in text


@pytest.mark.parametrize("name", ["../evil", "/etc", "a/../../b", ".."])
def test_folders_of_a_training_stay_inside(app: Any, name: str) -> None:
    asked = {"settings": {"name": "hostile", "data": [name]}}
    answer = app.call("/api/v1/trainings", asked)
    assert answer["status"] == 400
    assert not (app.root / "runs/hostile").exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", "a\\b", "<b>", "a:b", "\x00"])
def test_names_of_runs_are_names(app: Any, name: str) -> None:
    answer = app.call("/api/v1/trainings", {"settings": {"name": name, "data": ["datasets"]}})
    assert answer["status"] == 400


def test_a_request_that_says_it_is_huge_is_not_read(app: Any) -> None:
    assert ask(app, "POST", "/api/v1/uploads", {"Content-Length": str(10 << 30)})[0] == 413
    assert ask(app, "POST", "/api/v1/uploads", {"Content-Length": "many"})[0] == 400


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_bombs_and_junk_are_no_pictures() -> None:
    for content, said in [
        (picture(20_000, 20_000), "pixels"),
        (b"GIF89a" + b"\x00" * 50, "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 100, "cannot be read"),
        (b"", "cannot be read"),
        (picture(512, 512)[:70], "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
        (b"x" * (33 << 20), "MiB"),
    ]:
        with pytest.raises(UserError, match=said):
            open_picture(content)
    assert open_picture(picture(64, 64)).size == (64, 64)


SCRIPT = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"


@pytest.mark.main
def test_names_and_captions_are_text_not_html(app: Any, open_page: Callable[..., Any]) -> None:
    run = app.root / "runs" / "html"
    run.mkdir(parents=True)
    said = {"kind": "hypernetwork", "name": SCRIPT, "data": [SCRIPT], "training": {"prompts": [SCRIPT]}}
    (run / "config.yaml").write_text(json.dumps(said))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "event": "back_off", "message": SCRIPT}) + "\n")
    data = app.root / "datasets" / "html"
    data.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(data / "a.png")
    (data / "a.txt").write_text(SCRIPT)
    networks = app.root / "models/hypernetworks"
    networks.mkdir(parents=True, exist_ok=True)
    (networks / "<b onmouseover=alert(1)>.pt").write_bytes(b"junk")
    (networks / "<b onmouseover=alert(1)>.json").write_text(
        json.dumps({"description": SCRIPT, "notes": SCRIPT})
    )
    try:
        for path in (
            "/runs",
            "/runs/html",
            "/hypernetworks",
            "/train?dataset=html",
            "/?prompt=" + urllib.parse.quote(SCRIPT),
        ):
            page = open_page(app, path)
            page.wait_for_timeout(700)
            assert "pwned" not in page.title()
            assert page.locator("main img[src='x']").count() == 0
            assert page.locator("main b[onmouseover]").count() == 0
    finally:
        for file in networks.glob("<b*"):
            file.unlink()


def test_beyond_the_loopback_a_token_is_asked(own_app: Callable[..., Any]) -> None:
    app = own_app("--host", "0.0.0.0")
    full = app.url
    parts = urllib.parse.urlsplit(full)
    token = urllib.parse.parse_qs(parts.query)["token"][0]
    assert len(token) >= 30
    assert parts.hostname == "localhost", "an address to open"
    app.url = f"http://127.0.0.1:{parts.port}"
    assert ask(app, "GET", "/api/v1/status")[0] == 401
    assert ask(app, "GET", "/api/v1/status", {"Authorization": "Bearer wrong"})[0] == 401
    assert ask(app, "GET", "/api/v1/status", {"Authorization": f"Bearer {token}"})[0] == 200
    status, text, _ = ask(app, "GET", "/", {"Accept": "text/html"})
    assert (status, "token" in text, "This is not the token" in text) == (401, True, False)
    head = {"Accept": "text/html", "Accept-Language": "ko-KR,ko;q=0.9"}
    status, text, _ = ask(app, "GET", "/runs?token=wr%3Cb%3Eong", head)
    assert status == 401
    assert 'lang="ko"' in text
    assert "토큰이 맞지 않습니다" in text
    assert "<b>" not in text
    status, _, headers = ask(app, "GET", f"/runs?token={token}")
    assert status == 303
    assert headers["location"] == "/runs"
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=Strict" in headers["set-cookie"]
    cookie = headers["set-cookie"].split(";")[0]
    assert ask(app, "GET", "/api/v1/status", {"Cookie": cookie})[0] == 200
    assert ask(app, "GET", "/", {"Host": "evil.com", "Cookie": cookie})[0] == 421  # a name can be bent
    assert ask(app, "GET", "/", {"Host": f"192.168.7.7:{parts.port}", "Cookie": cookie})[0] == 200


def test_names_given_are_served() -> None:
    access = Access("0.0.0.0", ("studio.local",))
    assert access.allows_host("studio.local:7870")
    assert not access.allows_host("studio.local.evil.com")
    assert not Access("127.0.0.1").allows_host("10.0.0.1")


def test_tls_files_are_used(own_app: Callable[..., Any], tmp_path: Path) -> None:
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    try:
        subprocess.run(
            [*made, "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    app = own_app("--certificate", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem"))
    assert app.url.startswith("https://")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    trusted.check_hostname = False
    connection = http.client.HTTPSConnection(
        urllib.parse.urlsplit(app.url).netloc, context=trusted, timeout=20
    )
    connection.request("GET", "/api/v1/status")
    assert connection.getresponse().status == 200


def served(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`hyperbrush serve`, where it is to refuse."""
    command = [sys.executable, "-m", "hyperbrush", "serve", "--no-open", "--port", "0", "--folder", str(root)]
    return forked.run([*command, *arguments], timeout=60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--certificate", "none.pem"], "both"),
        (["--certificate", "none.pem", "--key", "none.pem"], "none.pem"),
        (["--host", "203.0.113.9"], "cannot listen"),
    ],
)
def test_what_cannot_be_served_is_said(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = served(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_two_servers_do_not_share_a_workspace(app: Any) -> None:
    done = served(app.root)
    assert done.returncode == 2
    assert "already" in done.stderr
