"""Claims about downloads: whatever the network does, either every byte is right or one line says what to do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hf_server import Fault, Hub

ROOT = Path(__file__).resolve().parents[1]
FIRST, SECOND, LAST = "shard_00000.parquet", "shard_00001.parquet", "shard_01822.parquet"
CONSTANTS = "TIME_BUDGET = 5\nMAX_SEQ_LEN = 64\nEVAL_TOKENS = 640\nVOCAB_SIZE = {}\nDATASET = 'fineweb-edu'\n"


def shard(seed: int) -> bytes:
    """A parquet file with about 100 KB of made-up text that doesn't compress away."""
    rng = random.Random(seed)
    texts = [" ".join(f"{rng.getrandbits(40):x}" for _ in range(40)) for _ in range(200)]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), buffer, compression="none")
    return buffer.getvalue()


FILES = {FIRST: shard(0), SECOND: shard(1), LAST: shard(2), "shard_00002.parquet": shard(3)}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(FILES) as server:
        yield server


class Lab:
    """A copied lab with its own cache, and prepare.py run in it as a user would."""

    def __init__(self, folder: Path, vocab: int = 300) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "prepare.py").write_bytes((ROOT / "prepare.py").read_bytes())
        (folder / "constants.py").write_text(CONSTANTS.format(vocab))
        self.cache = folder.parent / "cache"
        self.shards = self.cache / "data" / "fineweb-edu"

    def start(self, endpoint: str, *flags: str, stderr: int = subprocess.PIPE, **env: str) -> subprocess.Popen[str]:
        mine = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        mine |= {"HF_ENDPOINT": endpoint, "AUTORESEARCH_CACHE": str(self.cache), "NO_PROXY": "*"}
        mine |= {"HF_HOME": str(self.cache / "hf"), "AUTORESEARCH_RETRY_SECONDS": "0.001"} | env
        return subprocess.Popen(
            [sys.executable, "prepare.py", *(flags or ("--num-shards", "1"))],
            cwd=self.folder,
            env=mine,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def prepare(self, endpoint: str, *flags: str, **env: str) -> tuple[int, str, str]:
        process = self.start(endpoint, *flags, **env)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def manifest(self, vocab: int = 300) -> dict:
        return json.loads((self.cache / "prepared" / f"fineweb-edu-v{vocab}-t64" / "manifest.json").read_text())

    def have(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.shards.glob("*")}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab")


def last_line(err: str) -> str:
    return err.strip().splitlines()[-1]


def test_downloads_the_shards_asked_for_and_the_last_one_once(hub: Hub, lab: Lab) -> None:
    code, out, err = lab.prepare(hub.url, "--num-shards", "2")
    assert (code, err.count("downloaded ")) == (0, 3), err
    assert lab.have() == {name: FILES[name] for name in (FIRST, SECOND, LAST)}
    assert [(i["name"], i["held_out"]) for i in lab.manifest()["inputs"]] == [
        (FIRST, False),
        (SECOND, False),
        (LAST, True),
    ]
    hub.requests.clear()
    code, out, err = lab.prepare(hub.url, "--num-shards", "2")
    assert (code, out.startswith("prepared already"), hub.requests) == (0, True, [])


def test_more_shards_are_added_to_those_that_are_here(hub: Hub, lab: Lab) -> None:
    assert lab.prepare(hub.url, "--num-shards", "1")[0] == 0
    hub.requests.clear()
    assert lab.prepare(hub.url, "--num-shards", "2")[0] == 0
    assert {r.file for r in hub.requests} == {SECOND}
    assert len(lab.manifest()["inputs"]) == 3


def test_what_is_here_is_prepared_for_another_vocabulary_without_a_network(hub: Hub, lab: Lab, tmp_path: Path) -> None:
    assert lab.prepare(hub.url)[0] == 0
    other = Lab(tmp_path / "other", vocab=400)
    code, _, err = other.prepare("http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert code == 0, err
    assert {path.name for path in (lab.cache / "prepared").iterdir()} == {
        "fineweb-edu-v300-t64",
        "fineweb-edu-v400-t64",
    }


@pytest.mark.parametrize("how", ["close", "reset", "short"])
def test_a_connection_that_breaks_goes_on_where_it_stopped(hub: Hub, lab: Lab, how: str) -> None:
    hub.faults[FIRST] = [Fault(stop_after=30_000, how=how) for _ in range(3)]
    code, _, err = lab.prepare(hub.url)
    assert code == 0, err
    assert lab.have() == {name: FILES[name] for name in (FIRST, LAST)}
    starts = [r.first_byte for r in hub.asked(FIRST)]
    assert len(starts) == 4 and starts == sorted(starts)
    if how != "reset":  # a reset may overtake bytes that were sent
        assert starts == [0, 30_000, 60_000, 90_000]


def test_a_server_that_knows_no_ranges_starts_over(hub: Hub, lab: Lab) -> None:
    hub.ranges = False
    hub.faults[FIRST] = [Fault(stop_after=30_000)]
    code, _, err = lab.prepare(hub.url)
    assert code == 0, err
    assert lab.have()[FIRST] == FILES[FIRST]


def test_a_terminal_shows_a_progress_bar(hub: Hub, lab: Lab) -> None:
    hub.faults[LAST] = [Fault(status=401, method="HEAD")]  # one shard is enough to see
    terminal, stderr = os.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    process = lab.start(hub.url, stderr=stderr, TERM="xterm")
    os.close(stderr)
    seen = b""
    with contextlib.suppress(OSError):  # what a terminal says when the other side is gone
        while chunk := os.read(terminal, 4096):
            seen += chunk
    os.close(terminal)
    process.communicate()
    assert b"100%" in seen and FIRST.encode() in seen


def test_more_breaks_than_tries_are_no_failure_while_bytes_arrive(hub: Hub, lab: Lab) -> None:
    hub.always[FIRST] = Fault(stop_after=10_000)
    code, _, err = lab.prepare(hub.url)
    assert code == 0, err
    assert len(hub.asked(FIRST)) > 5


def test_wrong_bytes_are_fetched_again(hub: Hub, lab: Lab) -> None:
    hub.faults[FIRST] = [Fault(wrong=True)]
    code, _, err = lab.prepare(hub.url)
    assert code == 0 and "sha256" in err
    assert lab.have()[FIRST] == FILES[FIRST]
    assert [r.first_byte for r in hub.asked(FIRST)] == [0, 0]


def test_bytes_that_are_always_wrong_never_become_a_shard(hub: Hub, lab: Lab) -> None:
    hub.always[FIRST] = Fault(wrong=True)
    code, _, err = lab.prepare(hub.url)
    assert code == 3 and "sha256" in last_line(err) and "Traceback" not in err
    assert lab.have() == {}


def test_a_file_that_is_not_there_is_told_at_once(hub: Hub, lab: Lab) -> None:
    del hub.files[LAST]
    try:
        code, _, err = lab.prepare(hub.url)
    finally:
        hub.files[LAST] = shard(2)
    assert code == 3 and "404" in last_line(err) and LAST in last_line(err) and "--source" in last_line(err)
    assert len(hub.asked(LAST, "HEAD")) == 1
    assert FIRST in lab.have()  # what came is kept


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_server_error_is_tried_again(hub: Hub, lab: Lab, method: str) -> None:
    hub.faults[FIRST] = [Fault(status=500, method=method), Fault(status=503, method=method)]
    code, _, err = lab.prepare(hub.url)
    assert code == 0 and "500" in err and "503" in err, err


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_server_error_for_ever_ends_in_one_line(hub: Hub, lab: Lab, method: str) -> None:
    hub.always[FIRST] = Fault(status=500, method=method)
    code, _, err = lab.prepare(hub.url)
    assert code == 3 and "500" in last_line(err) and "setup --source stdlib" in last_line(err)
    assert "Traceback" not in err
    assert len(hub.asked(FIRST, method)) == 5


def test_a_refusal_is_told_at_once(hub: Hub, lab: Lab) -> None:
    hub.always[FIRST] = Fault(status=401, method="HEAD")
    code, _, err = lab.prepare(hub.url)
    assert code == 3 and "401" in last_line(err)
    assert len(hub.asked(FIRST, "HEAD")) == 1


def test_a_killed_download_goes_on_where_it_stopped(hub: Hub, lab: Lab) -> None:
    hub.faults[FIRST] = [Fault(stop_after=50_000, how="hang")]
    process = lab.start(hub.url)
    part = lab.shards / f"{FIRST}.part"
    while not part.exists() or part.stat().st_size < 40_000:
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    kept = part.stat().st_size
    hub.requests.clear()
    code, _, err = lab.prepare(hub.url)
    assert code == 0, err
    assert hub.asked(FIRST)[0].first_byte == kept
    assert lab.have()[FIRST] == FILES[FIRST]


def test_left_over_bytes_of_another_or_longer_file_are_dropped(hub: Hub, lab: Lab) -> None:
    lab.shards.mkdir(parents=True)
    (lab.shards / f"{FIRST}.part").write_bytes(b"x" * (len(FILES[FIRST]) + 10))
    (lab.shards / f"{LAST}.part").write_bytes(b"x" * 1000)
    code, _, err = lab.prepare(hub.url)
    assert code == 0, err
    assert lab.have() == {name: FILES[name] for name in (FIRST, LAST)}


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid", "nonsense"])
def test_without_a_network_one_line_names_the_ways_out(lab: Lab, endpoint: str) -> None:
    code, out, err = lab.prepare(endpoint)
    assert code == 3 and "setup --source stdlib" in last_line(err) and "FOLDER" in last_line(err), err
    assert "Traceback" not in err and out == ""


def test_offline_by_wish_is_told_at_once(lab: Lab) -> None:
    code, _, err = lab.prepare("http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert code == 3 and err.count("\n") == 1 and "HF_HUB_OFFLINE" in err and "setup --source stdlib" in err


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many"])
def test_a_senseless_number_of_shards_is_a_wrong_call(lab: Lab, number: str) -> None:
    code, _, err = lab.prepare("http://127.0.0.1:9", "--num-shards", number)
    assert code == 64 and "--num-shards" in err


def test_more_shards_than_there_are_is_one_line(lab: Lab) -> None:
    code, _, err = lab.prepare("http://127.0.0.1:9", "--num-shards", "1823")
    assert code == 3 and "1822" in err and err.count("\n") == 1
