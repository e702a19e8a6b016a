"""The JavaScript client comes with the router, and browsers keep it."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient

import fastapi_resumable
from fastapi_resumable import Resumable

STATIC = Path(fastapi_resumable.__file__).parent / "static"
MODULE = STATIC / "resumable.js"


def app_with_router(outer: str = "", inner: str = "/v1") -> FastAPI:
    app = FastAPI()
    app.include_router(Resumable(prefix=inner).router, prefix=outer)
    return app


def follow(client: TestClient, url: str) -> httpx.Response:
    """What a browser does with a script's URL."""
    response = client.get(url, follow_redirects=False)
    assert response.status_code == 307
    assert response.headers["Cache-Control"] == "no-cache"
    return client.get(str(response.url.join(response.headers["Location"])), follow_redirects=False)


def test_the_module_is_served_under_a_url_that_browsers_keep_for_good():
    """`resumable.js` leads to a URL with a hash of the content, which is immutable."""
    response = follow(TestClient(app_with_router()), "/v1/resumable.js")
    assert response.status_code == 200
    assert response.content == MODULE.read_bytes()
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert re.fullmatch(r"/v1/resumable\.[0-9a-f]{16}\.js", response.url.path)


def test_the_url_that_is_kept_is_found_under_every_prefix_mount_and_root_path():
    """The redirect is relative, so it is right wherever the router is."""
    inner = app_with_router("/api", "/streams")
    outer = FastAPI()
    outer.mount("/mounted", inner)
    behind_proxy = TestClient(inner, root_path="/proxied")
    assert follow(TestClient(inner), "/api/streams/resumable.js").status_code == 200
    assert follow(TestClient(outer), "/mounted/api/streams/resumable.js").status_code == 200
    assert behind_proxy.get("/api/streams/resumable.js", follow_redirects=False).headers["Location"][0] != "/"


def test_the_module_of_another_version_is_not_kept():
    """In a deployment, a page of the old version may ask the new one: it gets a module, but not for good."""
    response = TestClient(app_with_router()).get("/v1/resumable.0123456789abcdef.js")
    assert response.content == MODULE.read_bytes()
    assert response.headers["Cache-Control"] == "no-cache"


def test_the_module_needs_no_credentials_and_is_not_in_openapi():
    """A script tag cannot send the headers that the streams are guarded by."""

    def refuse() -> None:
        raise HTTPException(401)

    app = FastAPI()
    app.include_router(Resumable().router, dependencies=[Depends(refuse)])
    client = TestClient(app)
    assert client.get("/v1/stream/x").status_code == 401
    assert client.get("/v1/resumable.js").status_code == 200
    assert not [path for path in app.openapi()["paths"] if "resumable" in path]


def test_the_source_maps_are_where_the_modules_say():
    """With the sources in them, so that a browser shows what was written."""
    client = TestClient(app_with_router("/api"))
    for name in ("resumable.js", "ag-ui.js"):
        module = follow(client, f"/api/v1/{name}")
        assert module.text.endswith(f"//# sourceMappingURL={name}.map\n")
        source_map = client.get(str(module.url.join(f"{name}.map")))
        assert source_map.headers["Content-Type"] == "application/json"
        assert all(source_map.json()["sourcesContent"])


def test_the_agent_imports_the_client_that_is_served_beside_it():
    """By a relative URL, which leads to the one that browsers keep."""
    client = TestClient(app_with_router("/api"))
    module = follow(client, "/api/v1/ag-ui.js")
    [imported] = re.findall(r'from"([^"]+)"', module.text)
    assert follow(client, str(module.url.join(imported)))


def test_head_answers_like_get():
    """A proxy may ask."""
    client = TestClient(app_with_router())
    response = client.head("/v1/resumable.js")
    assert response.status_code == 200
    assert response.headers["Content-Length"] == str(MODULE.stat().st_size)


def test_the_module_is_read_when_it_is_asked_for():
    """Not at import, nor when an application is made."""
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from fastapi import FastAPI
from fastapi_resumable import Resumable
app = FastAPI()
app.include_router(Resumable().router)
assert not [path for path in opened if path.endswith((".js", ".map"))], opened
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_npm_package_is_of_the_same_version():
    """Server and client are released together."""
    package = json.loads((STATIC / "package.json").read_text())
    assert package["version"] == fastapi_resumable.__version__
    assert all(any(STATIC.glob(pattern)) for pattern in package["files"])
    for entry in package["exports"].values():
        assert all((STATIC / name).is_file() for name in entry.values())


def test_the_module_is_small():
    """Less than 4 KiB, gzipped, as it is served."""
    assert len(gzip.compress(MODULE.read_bytes(), 9)) < 4096
