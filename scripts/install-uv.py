#!/usr/bin/env python3
"""Fetches uv's program from a Python package index, with nothing but the standard library.

    python3 install-uv.py FOLDER      puts it at FOLDER/bin/uv

For a Python that has neither pip nor venv (Debian splits both off). uv is on the index as one wheel a platform, a zip
file that holds one static program: this takes the newest release with a wheel for this machine, checks its sha256
against the index, and renames the program into place. The index is UV_DEFAULT_INDEX, UV_INDEX_URL or PIP_INDEX_URL,
else the public one. On failure: one line on stderr, exit code 1, nothing left behind.

Runs on Python 3.9 and newer: uv brings a newer one along.
"""

from __future__ import annotations

import base64
import hashlib
import html.parser
import http.client
import io
import json
import os
import platform
import re
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PUBLIC_INDEX = "https://pypi.org/simple"
JSON_TYPE = "application/vnd.pypi.simple.v1+json"
TIMEOUT_S = 30  # without a byte; the wheel is about 20 MB
TRIES = 2

File = dict[str, Any]  # an entry of the index's page, as PEP 691 has it


class Failed(Exception):
    """uv can't be had; the message is one line with the reason."""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: install-uv.py FOLDER")
    try:
        index = index_url(os.environ)
        wheel = newest_wheel(list_files(index), platform_tags())
        store(program_of(download(wheel)), Path(sys.argv[1]) / "bin" / program_name())
    except (Failed, OSError) as error:
        sys.exit(str(error))


def index_url(env: Mapping[str, str]) -> str:
    """The index's address without a slash at its end."""
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
    url = next((env[name] for name in names if env.get(name)), PUBLIC_INDEX)
    return re.sub(r"^[A-Za-z0-9_-]+=", "", url).rstrip("/")  # uv allows NAME=URL


def fetch(url: str, accept: str = "*/*") -> tuple[bytes, str, str]:
    """(body, content type, final address). Raises Failed with the host, never with the password of the address."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers={"Accept": accept})
    if parts.username:
        secret = ":".join(urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(secret.encode()).decode())
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return answer.read(), answer.headers.get_content_type(), answer.url
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == TRIES - 1:
                raise Failed(f"the package index {host} answered {error.code} {error.reason}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: no URL at all
            if attempt == TRIES - 1:
                reason = getattr(error, "reason", error)
                raise Failed(
                    f"no answer from the package index {host or url} ({reason}); connect to the network, "
                    "name a mirror in UV_DEFAULT_INDEX, or install uv yourself"
                ) from None
    raise AssertionError("unreachable")


class _Links(html.parser.HTMLParser):
    """The files of an index that speaks only HTML (PEP 503), in the shape of the JSON of PEP 691."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[File] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a" and found.get("href"):
            url, _, fragment = (found["href"] or "").partition("#")
            kind, _, digest = fragment.partition("=")
            name = urllib.parse.unquote(url.rpartition("/")[2])
            self.files.append({"filename": name, "url": url, "hashes": {kind: digest}, "yanked": "data-yanked" in found})


def list_files(index: str) -> list[File]:
    """The files of uv's page: dicts with filename, url (absolute, with the index's own login), hashes, yanked."""
    url = index + "/uv/"
    body, kind, final = fetch(url, JSON_TYPE + ", text/html;q=0.1")
    if "json" in kind:
        files: list[File] = json.loads(body)["files"]
    else:
        links = _Links()
        links.feed(body.decode("utf-8", "replace"))
        files = links.files
    login = urllib.parse.urlsplit(url).netloc.rpartition("@")[0]
    for file in files:
        absolute = urllib.parse.urlsplit(urllib.parse.urljoin(final, file["url"]))
        if login and absolute.netloc == urllib.parse.urlsplit(final).netloc:
            absolute = absolute._replace(netloc=login + "@" + absolute.netloc)
        file["url"] = absolute.geturl()
    return files


def newest_wheel(files: list[File], fits: Callable[[str], bool]) -> File:
    """The file of the newest release that is no pre-release, not yanked, and has a platform tag that `fits` takes."""
    best: File | None = None
    best_version: tuple[int, ...] = ()
    for file in files:
        name = re.fullmatch(r"uv-(\d+(?:\.\d+)*)-py3-none-(.+)\.whl", file["filename"])
        if not name or file.get("yanked") or not any(fits(tag) for tag in name.group(2).split(".")):
            continue
        version = tuple(int(part) for part in name.group(1).split("."))
        if version > best_version:
            best, best_version = file, version
    if best is None:
        raise Failed(f"the package index has no uv for this machine ({platform.platform()})")
    return best


def platform_tags(
    system: str = "", machine: str = "", libc: tuple[str, str] | None = None, macos: str = ""
) -> Callable[[str], bool]:
    """A function that says whether a wheel's platform tag runs on this machine; the arguments stand in for it."""
    system = system or platform.system()
    machine = (machine or platform.machine()).lower()
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if system == "Linux":
        name, version = libc or platform.libc_ver()
        if name == "glibc":
            return lambda tag: _at_most(tag, r"manylinux_(\d+)_(\d+)_" + arch, version)
        return lambda tag: re.fullmatch(r"musllinux_\d+_\d+_" + arch, tag) is not None
    if system == "Darwin":
        arch = {"aarch64": "arm64"}.get(arch, arch)
        return lambda tag: _at_most(tag, r"macosx_(\d+)_(\d+)_" + arch, macos or platform.mac_ver()[0])
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(arch, arch)
    return lambda tag: tag == "win_" + arch


def _at_most(tag: str, pattern: str, version: str) -> bool:
    found = re.fullmatch(pattern, tag)
    have = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    return found is not None and tuple(int(part) for part in found.groups()) <= have


def download(file: File) -> bytes:
    """The wheel's bytes, checked against the index's sha256."""
    digest = file.get("hashes", {}).get("sha256")
    if not digest:
        raise Failed(f"the package index gives no sha256 for {file['filename']}: not installed")
    body, _, _ = fetch(file["url"])
    if hashlib.sha256(body).hexdigest() != digest:
        raise Failed(f"{file['filename']} does not match the sha256 of the package index: not installed")
    return body


def program_name() -> str:
    return "uv.exe" if platform.system() == "Windows" else "uv"


def program_of(wheel: bytes) -> bytes:
    """The program inside the wheel."""
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            inside = [name for name in archive.namelist() if name.endswith(".data/scripts/" + program_name())]
            return archive.read(inside[0])
    except (zipfile.BadZipFile, IndexError):
        raise Failed("the wheel of uv holds no program: not installed") from None


def store(program: bytes, target: Path) -> None:
    """Writes the program beside its target and renames it: a half-written uv is never seen."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(program)
        Path(temporary).chmod(0o755)
        Path(temporary).replace(target)
    except OSError:
        Path(temporary).unlink()
        raise


if __name__ == "__main__":
    main()
