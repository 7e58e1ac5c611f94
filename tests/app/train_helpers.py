"""Pictures and datasets for the tests of Train."""

import io
import json
import urllib.error
import urllib.request
from typing import Any

from PIL import Image

TINY = {
    "max_steps": 2,
    "batch_size": 2,
    "validate_every": 1,
    "preview_every": 100,
    "validation_share": 0,
    "prompts": [],
}


def png(colour: str = "red", side: int = 40, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, kind)
    return file.getvalue()


def put(app: Any, dataset: str, files: list[tuple[str, bytes]]) -> Any:
    """POST files as a browser does."""
    edge = "edge0123456789"
    body = b""
    for name, content in files:
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        body += head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n"
    body += f"--{edge}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    request = urllib.request.Request(f"{app.url}/api/v1/datasets/{dataset}/pictures", body, kind)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return {"status": error.code, "detail": error.read().decode()}


def shown(app: Any, dataset: str) -> dict[str, str]:
    """Captions by picture."""
    return {p["name"]: p["caption"] for p in app.call(f"/api/v1/datasets/{dataset}")["pictures"]}
