"""What this machine has, and whether it can work.

Facts that shape this file:
- Standard library only: `check` answers before anything is installed.
- The GPU is asked about through `nvidia-smi`, which can be missing, hang (a wedged driver), or fail; none of that may
  hang or break `check`. A GPU that is there and cannot be used is an error; a machine without one is a CPU machine.
- MB is 2**20 bytes here.
- In a container the numbers of /proc are the host's, so cores and memory are cut to the cgroup's limits.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

MB = 2**20
ANSWER_LIMIT_S = 5.0  # for each tool asked; a wedged driver makes nvidia-smi hang for good
INSTALL_MB = 10_000  # torch with CUDA is about 5 GB unpacked, and as much again passes through the download cache
WORK_MB = 1_000  # prepared data, logs and kept weights of a night
MIN_PYTHON = (3, 11)
# The locked torch is built for CUDA 13: it needs a driver of that major version, and it left out Volta and older.
MIN_CUDA = (13, 0)
MIN_COMPUTE = (7, 5)

CPU_WAY_OUT = "or set CUDA_VISIBLE_DEVICES=-1 to work on the CPU"


@dataclass(frozen=True)
class Hardware:
    """One machine, as `probe` found it. None: not there, or not to be told. All sizes in MB of 2**20 bytes."""

    gpu_name: str | None  # of the first visible GPU, or the chip on Apple silicon
    gpu_count: int  # GPUs that CUDA_VISIBLE_DEVICES leaves
    vram_mb: int | None  # of the first visible GPU, in total
    driver_version: str | None
    cuda_version: str | None  # the newest CUDA that the driver supports, "13.0"
    compute_capability: str | None  # "9.0"
    gpu_error: str | None  # why a GPU that should be there can't be used
    device: str  # cuda, mps or cpu: what train.py will run on
    cpu_name: str
    cpu_cores: int  # that this process may use
    ram_mb: int  # that this process may use; 0 if it can't be told
    disk_free_mb: int  # where the environment and the lab lie
    python_version: str
    python_ok: bool
    uv_version: str | None
    uv_ok: bool
    torch_version: str | None  # in the lab's environment
    git_version: str | None
    git_ok: bool
    platform: str
    gpu_index: int = 0  # of the first visible GPU, as the driver counts
    gpu_uuid: str = ""


# --- asking the machine -----------------------------------------------------------------------------------------------


def probe(env: Mapping[str, str] | None = None, home: Path | None = None) -> Hardware:
    """Looks at this machine; never raises, and takes about ANSWER_LIMIT_S at most, whatever hangs.

    `env` stands for os.environ (PATH, CUDA_VISIBLE_DEVICES, HOME, AUTORESEARCH_HOME ... are read from it); `home` is
    the folder with the environment `.venv`, by default AUTORESEARCH_HOME, else the repository that this file is in.
    """
    env = os.environ if env is None else env
    home = home or Path(env.get("AUTORESEARCH_HOME") or Path(__file__).resolve().parents[2])
    git, uv = _Question(_find("git", env), ["--version"], env), _Question(_find_uv(env, home), ["--version"], env)
    gpu = _probe_gpu(env)
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    device = "cuda" if gpu.count else "mps" if apple and not gpu.error else "cpu"
    cpu_name = _cpu_name()
    git_version, uv_version = _version(git.answer()), _version(uv.answer())
    return Hardware(
        gpu_name=cpu_name if device == "mps" else gpu.name,
        gpu_count=gpu.count,
        vram_mb=gpu.vram_mb,
        driver_version=gpu.driver_version,
        cuda_version=gpu.cuda_version,
        compute_capability=gpu.compute_capability,
        gpu_error=gpu.error,
        device=device,
        cpu_name=cpu_name,
        cpu_cores=usable_cores(),
        ram_mb=usable_ram_mb(),
        disk_free_mb=disk_free_mb(home),
        python_version=platform.python_version(),
        python_ok=sys.version_info[:2] >= MIN_PYTHON,
        uv_version=uv_version,
        uv_ok=uv_version is not None,
        torch_version=_torch_version(home),
        git_version=git_version,
        git_ok=git_version is not None,
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        gpu_index=gpu.index,
        gpu_uuid=gpu.uuid,
    )


@dataclass(frozen=True)
class _Answer:
    code: int | None  # None: no answer within the limit; 127: no such tool
    text: str


class _Question:
    """A command that was started and whose answer is wanted later, so that slow tools answer side by side."""

    def __init__(self, tool: str | None, args: Sequence[str], env: Mapping[str, str]) -> None:
        self._deadline = time.monotonic() + ANSWER_LIMIT_S
        self._process: subprocess.Popen[str] | None = None
        if tool is None:
            return
        try:
            self._process = subprocess.Popen(
                [tool, *args],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # so that whatever a hanging wrapper script started can be killed with it
            )
        except OSError:  # not executable, another architecture, no shebang: as good as missing
            return

    def answer(self) -> _Answer:
        process = self._process
        if process is None:
            return _Answer(127, "")
        try:
            text, _ = process.communicate(timeout=max(0.01, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill(process)
            return _Answer(None, "")
        return _Answer(process.returncode, text)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kills and does not insist: a process stuck inside a broken driver can't be waited for."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait(0.2)
    except (OSError, subprocess.TimeoutExpired):
        pass
    if process.stdout:
        process.stdout.close()


def _find(name: str, env: Mapping[str, str]) -> str | None:
    return shutil.which(name, path=env.get("PATH") or os.defpath)


def _find_uv(env: Mapping[str, str], home: Path) -> str | None:
    """uv on PATH, else the private copy where scripts/common.sh puts one."""
    data = env.get("XDG_DATA_HOME") or (f"{env['HOME']}/.local/share" if env.get("HOME") else "")
    private = [Path(data) / "autoresearch/uv/bin/uv"] if data else []
    private.append(home / ".autoresearch/uv/bin/uv")
    return _find("uv", env) or next((str(path) for path in private if os.access(path, os.X_OK)), None)


def _version(answer: _Answer) -> str | None:
    found = re.search(r"\d+(?:\.\d+)+", answer.text) if answer.code == 0 else None
    return found.group() if found else None


# --- the GPU ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gpu:
    """The first visible GPU (or MIG slice), and how many are visible."""

    name: str | None = None
    count: int = 0
    vram_mb: int | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    compute_capability: str | None = None
    error: str | None = None
    index: int = 0
    uuid: str = ""


@dataclass(frozen=True)
class _Card:
    """One line of nvidia-smi's list, or one MIG slice of it."""

    index: int
    uuid: str
    name: str
    vram_mb: int | None
    driver_version: str | None
    mig: bool = False
    compute_capability: str | None = None


_FIELDS = ["index", "uuid", "name", "memory.total", "driver_version"]
_NEW_FIELDS = ["mig.mode.current", "compute_cap"]  # drivers before 510 refuse the whole query over compute_cap
_WSL_TOOL = "/usr/lib/wsl/lib/nvidia-smi"  # WSL2 leaves it off the PATH of some shells
_DEVICE_NODE = Path("/dev/nvidiactl")


def _probe_gpu(env: Mapping[str, str]) -> _Gpu:
    wanted = env.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None and wanted.strip() in ("", "-1", "NoDevFiles"):
        return _Gpu()
    tool = _find("nvidia-smi", env) or (_WSL_TOOL if os.access(_WSL_TOOL, os.X_OK) else None)
    if tool is None:
        if _DEVICE_NODE.exists():  # a container that was given the GPU without the driver's tools
            return _Gpu(error=f"{_DEVICE_NODE} is there but nvidia-smi is not on PATH")
        return _Gpu()
    header = _Question(tool, [], env)
    query = _Question(tool, _query(_FIELDS + _NEW_FIELDS), env).answer()
    if query.code not in (0, None) and "not a valid field" in query.text:
        query = _Question(tool, _query(_FIELDS), env).answer()
    header_text = header.answer().text
    if query.code is None:
        return _Gpu(error=f"nvidia-smi gave no answer within {ANSWER_LIMIT_S:.0f} s")
    if "No devices were found" in query.text:  # a driver without a GPU
        return _Gpu()
    cards = _parse_cards(query.text)
    if not cards:
        return _Gpu(error=_reason(query))
    if any(card.mig for card in cards) or "MIG-" in (wanted or ""):
        cards = _slices(cards, _Question(tool, ["-L"], env).answer().text, header_text)
    seen = _visible(cards, wanted)
    if not seen:
        return _Gpu(error=f"CUDA_VISIBLE_DEVICES={wanted} names no GPU of this machine")
    first = seen[0]
    return _Gpu(
        name=first.name,
        count=len(seen),
        vram_mb=first.vram_mb,
        driver_version=first.driver_version,
        cuda_version=_parse_cuda(header_text),
        compute_capability=first.compute_capability,
        index=first.index,
        uuid=first.uuid,
    )


def _query(fields: Iterable[str]) -> list[str]:
    return [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def _parse_cards(text: str) -> list[_Card]:
    """The cards of a query's answer. Lines that are none, such as warnings about a corrupt infoROM, are passed over."""
    cards = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) < len(_FIELDS) or not row[0].isdigit() or not row[1].startswith("GPU-"):
            continue
        mig, compute = row[5:7] if len(row) >= 7 else ("", "")
        cards.append(
            _Card(
                index=int(row[0]),
                uuid=row[1],
                name=row[2],
                vram_mb=_digits(row[3]),
                driver_version=row[4] if row[4][:1].isdigit() else None,
                mig=mig == "Enabled",
                compute_capability=compute if re.fullmatch(r"\d+\.\d+", compute) else None,
            )
        )
    return cards


def _digits(cell: str) -> int | None:
    """A memory cell in MB; None for "[N/A]" (memory shared with the CPU) and "[Insufficient Permissions]"."""
    found = re.fullmatch(r"(\d+)(?: MiB)?", cell.strip())
    return int(found.group(1)) if found else None


def _parse_cuda(header: str) -> str | None:
    """The CUDA version of nvidia-smi's header; newer drivers call it "CUDA UMD Version", some say N/A."""
    found = re.search(r"CUDA(?: [A-Za-z]+)* Version\s*:\s*(\d+(?:\.\d+)+)", header)
    return found.group(1) if found else None


def _slices(cards: list[_Card], listing: str, header: str) -> list[_Card]:
    """What CUDA sees where MIG is on: each slice in the place of its card (`listing` is of `nvidia-smi -L`).

    A slice's memory stands in the header's table of MIG devices; else the "5gb" of its name says it roughly.
    """
    table = re.findall(r"\|\s*(\d+)\s+\d+\s+\d+\s+(\d+)\s*\|\s*\d+MiB\s*/\s*(\d+)MiB", header.partition("MIG devices")[2])
    memory = {(int(gpu), int(dev)): int(mb) for gpu, dev, mb in table}
    by_index = {card.index: card for card in cards}
    seen: list[_Card] = []
    parent: _Card | None = None
    for line in listing.splitlines():
        if gpu := re.match(r"GPU (\d+):", line):
            parent = by_index.get(int(gpu.group(1)))
            if parent and not parent.mig:
                seen.append(parent)
        elif parent and (found := re.match(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)]+)\)", line)):
            kind, number, uuid = found.groups()
            nominal = re.search(r"(\d+)gb", kind)
            vram = memory.get((parent.index, int(number))) or (int(nominal.group(1)) * 1000 if nominal else None)
            seen.append(replace(parent, uuid=uuid, name=f"{parent.name} MIG {kind}", vram_mb=vram))
    return seen or cards


def _visible(cards: list[_Card], wanted: str | None) -> list[_Card]:
    """The cards that CUDA_VISIBLE_DEVICES leaves, in its order. Like CUDA it stops at the first entry that fits none.

    Of MIG slices CUDA uses one at a time. (CUDA counts the fastest card first, nvidia-smi by bus: they agree where
    all cards are alike, or with CUDA_DEVICE_ORDER=PCI_BUS_ID.)
    """
    if wanted is None:
        return cards[:1] if "MIG " in cards[0].name else cards
    seen: list[_Card] = []
    for entry in (part.strip() for part in wanted.split(",")):
        named = [c for c in cards if entry and (str(c.index) == entry or c.uuid.startswith(entry))]
        if not named:
            break
        seen.append(named[0])
    return seen


def gpu_in_use_mb(uuid: str) -> int | None:
    """Memory of a GPU that anybody holds now, in MB; None where it can't be told."""
    tool = _find("nvidia-smi", os.environ) or _WSL_TOOL
    answer = _Question(tool, ["--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={uuid}"], os.environ).answer()
    return _digits(answer.text) if answer.code == 0 else None


def _reason(answer: _Answer) -> str:
    line = next((line.strip() for line in answer.text.splitlines() if line.strip()), "")
    line = "".join(c if c.isprintable() else "?" for c in line)[:200]
    if answer.code:
        return f"nvidia-smi failed: {line or f'exit code {answer.code}'}"
    return f"nvidia-smi's answer can't be read: {line!r}"


# --- processor, memory, disk, environment -----------------------------------------------------------------------------


def _cpu_name() -> str:
    if platform.system() == "Darwin":
        name = _Question("/usr/sbin/sysctl", ["-n", "machdep.cpu.brand_string"], os.environ).answer().text.strip()
        return name or platform.machine()
    try:
        info = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)  # absent on Arm
    return found.group(1).strip() if found else platform.machine()


def _cgroup_folders(root: Path = Path("/")) -> list[Path]:
    """The folders whose limits bind this process: its own cgroup and those above it, of version 2 and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu", "memory"):
            continue
        base = root / "sys/fs/cgroup" / controllers
        own = base / path.lstrip("/")
        # In a container the path can be the host's and lie outside what is mounted: then the mount's top is ours.
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(base) and folder.is_dir()]
    return folders


def _cgroup_numbers(folders: Iterable[Path], name: str) -> list[list[int]]:
    """The numbers in each folder's file `name`; a file that says "max", or isn't there, gives none."""
    numbers = []
    for folder in folders:
        try:
            words = (folder / name).read_text().split()
        except OSError:
            continue
        if words and all(word.lstrip("-").isdigit() for word in words):
            numbers.append([int(word) for word in words])
    return numbers


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: affinity and the cgroup's quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folders = _cgroup_folders(root)
    quotas = [row[0] / row[1] for row in _cgroup_numbers(folders, "cpu.max") if len(row) == 2 and row[1] > 0]
    for folder in folders:  # version 1 keeps the two numbers in two files; -1 is no limit
        quota, period = (_cgroup_numbers([folder], f"cpu.cfs_{what}_us") for what in ("quota", "period"))
        if quota and period and quota[0][0] > 0 and period[0][0] > 0:
            quotas.append(quota[0][0] / period[0][0])
    return max(1, min([cores, *(int(quota + 0.5) for quota in quotas)]))


def usable_ram_mb(root: Path = Path("/")) -> int:
    """Memory that this process may use: the machine's, cut to the cgroup's limits; 0 if it can't be told."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 0
    folders = _cgroup_folders(root)
    limits = [row[0] for name in ("memory.max", "memory.limit_in_bytes") for row in _cgroup_numbers(folders, name)]
    return min([total, *(limit for limit in limits if limit > 0)]) // MB


def disk_free_mb(path: Path) -> int:
    """Free MB for this user where `path` is, or will be; 0 if it can't be told."""
    for folder in (path, *path.parents):
        if folder.exists():
            try:
                return shutil.disk_usage(folder).free // MB
            except OSError:
                return 0
    return 0


def _torch_version(home: Path) -> str | None:
    """The version of torch that train.py will get, read off its folder's name: importing it takes seconds."""
    sites = [*home.glob(".venv/lib/python3*/site-packages"), home / ".venv/Lib/site-packages"]
    running = _running_site()
    if any(running.glob("autoresearch-*.dist-info")):  # installed there, and not merely run from its sources
        sites.append(running)
    for site in sites:
        for folder in site.glob("torch-*.dist-info"):
            return folder.name.removeprefix("torch-").removesuffix(".dist-info")
    return None


def _running_site() -> Path:
    return Path(sysconfig.get_paths()["purelib"])


# --- is it ready? -----------------------------------------------------------------------------------------------------


def readiness(hw: Hardware) -> tuple[bool, list[str]]:
    """(True, []) if training can start here, else False and what is in the way, each line with its way out."""
    problems = []
    if not hw.python_ok:
        wanted = ".".join(map(str, MIN_PYTHON))
        problems.append(f"Python {hw.python_version} is too old: install {wanted} or newer (`uv python install {wanted}`)")
    if not hw.git_ok:
        problems.append("git is not on PATH: install it (https://git-scm.com/downloads)")
    need = WORK_MB if hw.torch_version else INSTALL_MB
    if hw.disk_free_mb < need:
        what = "for a session" if hw.torch_version else "to install the environment"
        problems.append(f"{hw.disk_free_mb:,} MB of disk are free, {need:,} are needed {what}: free some")
    if hw.gpu_error:
        problems.append(f"{hw.gpu_error}: repair or reinstall the NVIDIA driver, {CPU_WAY_OUT}")
    elif hw.device == "cuda":
        problems += _unusable_gpu(hw)
    return not problems, problems


def _unusable_gpu(hw: Hardware) -> list[str]:
    """A GPU that the locked torch can't drive would leave every run on the CPU at a GPU's settings."""
    if "+" in (hw.torch_version or ""):  # another build was put in by hand, with its own limits
        return []
    problems = []
    if _older(hw.cuda_version, MIN_CUDA):
        problems.append(
            f"the NVIDIA driver {hw.driver_version} supports CUDA {hw.cuda_version}, the locked torch needs "
            f"{MIN_CUDA[0]}.{MIN_CUDA[1]}: update the driver to 580 or newer, {CPU_WAY_OUT}"
        )
    if _older(hw.compute_capability, MIN_COMPUTE):
        problems.append(
            f"{hw.gpu_name} has compute capability {hw.compute_capability}, the locked torch needs "
            f"{MIN_COMPUTE[0]}.{MIN_COMPUTE[1]} (Turing or newer): use another GPU, {CPU_WAY_OUT}"
        )
    return problems


def _older(version: str | None, least: tuple[int, int]) -> bool:
    return version is not None and tuple(int(part) for part in version.split(".")[:2]) < least


def notes(hw: Hardware) -> list[str]:
    """What is good to know and stops nothing."""
    lines = []
    if not hw.uv_ok:
        lines.append("uv is not installed: scripts/setup.sh installs a private copy from the package registry")
    if hw.torch_version is None:
        lines.append("the locked environment is not installed yet: scripts/setup.sh does it (about 5 GB)")
    if hw.device == "cuda" and hw.vram_mb is None:
        lines.append("the GPU's memory can't be told: the smallest GPU profile is used")
    if hw.device == "cuda" and (missing := _missing_for_compile()):
        lines.append(f"torch.compile needs {missing}: install it, or set COMPILE = False in train.py")
    return lines


def _missing_for_compile() -> str | None:
    """Triton compiles a small C launcher against Python's headers when it first meets a kernel."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "a C compiler (the package gcc)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Python's headers (the package python3-dev)"
    return None


def report(hw: Hardware, profile: str, ready: bool, problems: list[str]) -> dict[str, object]:
    """What `check --json` prints: the keys that scripts rely on first. Without a GPU: null, 0, null."""
    return {
        "gpu_name": hw.gpu_name,
        "vram_mb": hw.vram_mb or 0,
        "cuda_version": hw.cuda_version,
        "python_ok": hw.python_ok,
        "uv_ok": hw.uv_ok,
        "ready": ready,
        "profile": profile,
        "device": hw.device,
        "gpu_count": hw.gpu_count,
        "driver_version": hw.driver_version,
        "compute_capability": hw.compute_capability,
        "gpu_error": hw.gpu_error,
        "cpu_name": hw.cpu_name,
        "cpu_cores": hw.cpu_cores,
        "ram_mb": hw.ram_mb,
        "disk_free_mb": hw.disk_free_mb,
        "python_version": hw.python_version,
        "uv_version": hw.uv_version,
        "torch_version": hw.torch_version,
        "git_version": hw.git_version,
        "git_ok": hw.git_ok,
        "platform": hw.platform,
        "problems": problems,
        "notes": notes(hw),
    }
