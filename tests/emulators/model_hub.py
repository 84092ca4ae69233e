"""A model hub on loopback: as much of the Hugging Face Hub's HTTP API as huggingface_hub needs for a snapshot.

    GET  /api/models/{repo}[/revision/{rev}]     the listing, with sizes when `blobs` is asked for
    GET  /api/models/{repo}/tree/{rev}           the same as a tree
    HEAD /{repo}/resolve/{rev}/{file}            size, etag and commit
    GET  /{repo}/resolve/{rev}/{file}            the file; `Range: bytes=N-` is honoured

Its switches are faults: set them before or during a download. `violations` lists what no client should do.
"""

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "Systran/faster-whisper-small"
CHUNK = 64 * 1024


@dataclass
class HubFaults:
    hang: bool = False  # take every request and never answer
    status: int = 0  # answer everything with this, e.g. 503
    unknown: bool = False  # no such repository
    cut_after: int = 0  # close in the middle of a file, after so many bytes of it
    cuts_left: int = 0  # so many times
    hold_after: int = 0  # send so much of model.bin, then wait for `released`
    stuck: asyncio.Event = field(default_factory=asyncio.Event)  # set when a file is held
    released: asyncio.Event = field(default_factory=asyncio.Event)


class ModelHub:
    """`async with ModelHub(folder) as hub:` serves `folder` as one repository; `hub.url` is HF_ENDPOINT."""

    def __init__(self, folder: Path, repository: str = REPOSITORY) -> None:
        self.folder = folder
        self.repository = repository
        self.faults = HubFaults()
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.violations: list[str] = []
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.faults.released.set()
        self._server.close()
        for writer in tuple(self._writers):
            writer.close()

    # ------------------------------------------------------------ HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while (head := await _head(reader)) is not None:
                method, target, headers = head
                self.requests.append(f"{method} {target}")
                if self.faults.hang:
                    await self.faults.released.wait()
                    break
                if not await self._answer(writer, method, unquote(urlsplit(target).path), headers):
                    break
        except ConnectionError:
            pass  # a client that is killed is part of the tests
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str]) -> bool:
        """False: close the connection."""
        api, files = f"/api/models/{self.repository}", f"/{self.repository}/resolve/"
        if self.faults.status:
            return await _send(writer, method, self.faults.status, b"")
        if self.faults.unknown:
            return await _send(writer, method, 404, b"", {"X-Error-Code": "RepoNotFound"})
        if path == api or path.startswith(f"{api}/revision/"):
            return await _send(writer, method, 200, _json(self._listing()))
        if path.startswith(f"{api}/tree/"):
            return await _send(writer, method, 200, _json(self._tree()))
        if path.startswith(files):
            name = path.removeprefix(files).split("/", 1)[1]
            if (self.folder / name).is_file():
                return await self._file(writer, method, name, headers)
        if path != "/api/agent-harnesses":  # asked for once a day where an agent runs the client; no part of a download
            self.violations.append(f"{method} {path}")
        return await _send(writer, method, 404, b"", {"X-Error-Code": "EntryNotFound"})

    async def _file(self, writer: asyncio.StreamWriter, method: str, name: str, headers: dict[str, str]) -> bool:
        data = (self.folder / name).read_bytes()
        about = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start, status = 0, 200
        if wanted := headers.get("range"):
            self.ranges.append(f"{name} {wanted}")
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if method == "HEAD":
            return await _send(writer, method, status, data, about)
        writer.write(_status_line(status, {**about, "Content-Length": str(len(data) - start)}))
        for at in range(start, len(data), CHUNK):
            if self.faults.cuts_left and at - start >= self.faults.cut_after:
                self.faults.cuts_left -= 1
                return False
            if name == "model.bin" and self.faults.hold_after and at >= self.faults.hold_after:
                self.faults.stuck.set()
                await self.faults.released.wait()
            writer.write(data[at : at + CHUNK])
            await writer.drain()
        return True

    # ------------------------------------------------------------ listings

    def _listing(self) -> dict[str, object]:
        siblings = [{"rfilename": path.name, "size": path.stat().st_size} for path in self._files()]
        return {"id": self.repository, "modelId": self.repository, "sha": COMMIT, "siblings": siblings}

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _etag(path.read_bytes())}
            for path in self._files()
        ]

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]] | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = raw.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    fields = (line.split(":", 1) for line in lines if line)
    return method, target, {name.lower(): value.strip() for name, value in fields}


def _status_line(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _send(
    writer: asyncio.StreamWriter, method: str, status: int, body: bytes, headers: dict[str, str] | None = None
) -> bool:
    about = {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(body))}
    writer.write(_status_line(status, about) + (b"" if method == "HEAD" else body))
    await writer.drain()
    return True


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
