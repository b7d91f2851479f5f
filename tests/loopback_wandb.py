"""A stand-in for the W&B backend on this machine: answers what the real clients ask, and keeps what they send.

It shows what is sent and nothing of how the W&B app would draw it. A question it does not know is kept in `unknown`.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "somebody"

_OWNED = {"id": "p", "name": "p", "entity": {"id": "e", "name": ENTITY}}
_SEQUENCE = {"artifactSequence": {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}}
_ALWAYS: dict[str, dict[str, Any]] = {
    "Viewer": {
        "viewer": {"id": "u", "name": ENTITY, "username": ENTITY, "email": "", "admin": False, "flags": "{}",
                   "entity": ENTITY, "apiKeys": {"edges": []}, "teams": {"edges": []}, "organizations": []},
        "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []},
    },
    "GetDefaultEntity": {"viewer": {"id": "u", "entity": ENTITY}},
    "ServerFeaturesQuery": {"serverInfo": {"features": []}},
    "CreateArtifact": {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED"} | _SEQUENCE}},
}  # fmt: skip
"""Operation -> what is answered to it whatever was sent."""


class Server:
    """Projects, runs and views, as a backend would hold them; `with Server() as server` serves at `server.url`."""

    def __init__(self, *projects: str) -> None:
        self.projects = list(projects)
        self.runs: dict[str, dict[str, Any]] = {}
        """Run id -> what was said of it when it was made or changed."""
        self.lines: dict[str, dict[str, list[Any]]] = {}
        """Run id -> file -> its lines, in the order they came."""
        self.views: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.unknown: list[str] = []

    def __enter__(self) -> Server:
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def history(self, run: str) -> list[dict[str, Any]]:
        """The rows of a run, in the order they came."""
        return [json.loads(line) for line in self.lines[run]["wandb-history.jsonl"]]

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        operation = re.findall(r"\b(?:query|mutation)\s+(\w+)", query)[0]
        self.asked.append(operation)
        if operation in _ALWAYS:
            return _ALWAYS[operation]
        if hasattr(self, name := f"_{operation.lower()}"):
            return getattr(self, name)(given)
        self.unknown.append(operation)
        return {}

    def _getprojects(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = [{"cursor": name, "node": _project(name)} for name in self.projects]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def _createproject(self, given: dict[str, Any]) -> dict[str, Any]:
        self.projects.append(given["input"]["name"])
        return {"result": {"project": None, "model": _project(self.projects[-1]), "inserted": True}}

    def _projectinternalid(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["projectName"]
        return {"project": _project(name) if name in self.projects else None}

    def _runresumestatus(self, given: dict[str, Any]) -> dict[str, Any]:
        rows = self.lines.get(given["name"], {}).get("wandb-history.jsonl")
        if rows is None:
            return {"model": _OWNED | {"bucket": None}}
        counts = {"historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps(rows[-1:]), "eventsTail": "[]", "summaryMetrics": "{}", "tags": []}
        return {"model": _OWNED | {"bucket": _run(given["name"]) | counts | tails | {"wandbConfig": '{"t": 1}'}}}

    def _upsertbucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        self.runs.setdefault(name, {}).update({key: value for key, value in given.items() if value is not None})
        bucket = _run(name) | {"project": _OWNED | {"name": given["project"]}, "description": "", "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _createrunfiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def _upsertview(self, given: dict[str, Any]) -> dict[str, Any]:
        found = given.get("id") or base64.b64encode(f"View:{1000 + len(self.views)}".encode()).decode()
        self.views[found] = given
        same = {name: given[name] for name in ("type", "name", "displayName", "description", "spec")}
        view = same | {"id": found, "updatedAt": "2026-01-01T00:00:00", "project": _project(given["projectName"])}
        return {"upsertView": {"view": view, "inserted": True}}

    _upsertview2 = _upsertview

    def _view(self, given: dict[str, Any]) -> dict[str, Any]:
        found = {name: view for name, view in self.views.items() if view["name"] == given["viewName"]}
        nodes = [{"id": key, "displayName": v["displayName"], "spec": v["spec"]} for key, v in found.items()]
        return {"project": {"allViews": {"edges": [{"node": node} for node in nodes]}}}

    def _specificreport(self, given: dict[str, Any]) -> dict[str, Any]:
        view = self.views.get(given["reportId"])
        return {"view": view and self._upsertview(view | {"id": given["reportId"]})["upsertView"]["view"]}


def _project(name: str) -> dict[str, Any]:
    return {"__typename": "Project", "id": "p", "internalId": "cDE=", "name": name, "entityName": ENTITY,
            "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}  # fmt: skip


def _run(name: str) -> dict[str, Any]:
    return {"id": name, "name": name, "displayName": name, "config": "{}"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/graphql"):
            asked = json.loads(body)
            self._send({"data": self.server_state.answer(asked["query"], asked.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            for name, chunk in (json.loads(body).get("files") or {}).items():
                lines = self.server_state.lines.setdefault(self.path.split("/")[-2], {}).setdefault(name, [])
                lines[chunk.get("offset", len(lines)) :] = chunk["content"]
        self._send({})

    def do_GET(self) -> None:
        self._send({})

    def do_PUT(self) -> None:
        self._body()
        self._send({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *line: object) -> None:
        """Nothing: a test's output is its own."""
