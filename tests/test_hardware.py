"""What `probe` makes of the tools it asks. nvidia-smi is a fake on PATH that answers as the real one does."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from autoresearch import hardware, profiles
from autoresearch.hardware import Hardware, probe, readiness, report
from autoresearch.profiles import check_seq_len, profile_for, with_seq_len

HEADER = """\
Sun Nov 22 03:14:07 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI {driver}              Driver Version: {driver}      CUDA Version: {cuda}     |
|-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
"""
MIG_TABLE = """\
+-----------------------------------------------------------------------------------------+
| MIG devices:                                                                            |
+------------------+----------------------------------+-----------+-----------------------+
| GPU  GI  CI  MIG |                     Memory-Usage |        Vol|        Shared         |
|      ID  ID  Dev |                       BAR1-Usage | SM     Unc| CE ENC  DEC  OFA  JPG |
|                  |                                  |        ECC|                       |
|==================+==================================+===========+=======================|
|  0    2   0   0  |              37MiB / 19968MiB    | 42      0 |  3   0    2    0    0 |
|                  |               0MiB / 32767MiB    |           |                       |
+------------------+----------------------------------+-----------+-----------------------+
|  0   11   0   1  |              12MiB /  4864MiB    | 14      0 |  1   0    0    0    0 |
+------------------+----------------------------------+-----------+-----------------------+
"""
MIG_LIST = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa0000-0000)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111-3g)
  MIG 1g.5gb      Device  1: (UUID: MIG-2222-1g)
"""


class Smi:
    """A folder for PATH with nvidia-smi in it, and git and uv as this machine has them or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def script(self, body: str, name: str = "nvidia-smi") -> None:
        path = self.folder / name
        path.write_text("#!/bin/bash\n" + body)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def gpus(self, rows: list[str], header: str = "", listing: str = "", code: int = 0) -> None:
        """Answers a query with `rows`, -L with `listing`, and a call without arguments with `header`."""
        self.script(
            f"case $1 in --query-gpu=*) printf '%s\\n' {shlex.join(rows)};; -L) printf '%s' {shlex.quote(listing)};;"
            f" *) printf '%s' {shlex.quote(header)};; esac\nexit {code}\n"
        )

    def card(self, name: str, mb: int | str, driver: str = "580.95.05", cuda: str = "13.0", cc: str = "9.0") -> None:
        row = f"0, GPU-aaaa0000-0000, {name}, {mb}, {driver}, [N/A], {cc}"
        self.gpus([row], HEADER.format(driver=driver, cuda=cuda))

    def probe(self, env: Mapping[str, str] | None = None) -> Hardware:
        return probe({"PATH": str(self.folder), **(env or {})}, home=self.folder)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """As on a machine whose own GPU, if it has one, isn't there."""
    monkeypatch.setattr(hardware, "_DEVICE_NODE", tmp_path / "nvidiactl")
    monkeypatch.setattr(hardware, "_WSL_TOOL", str(tmp_path / "none"))
    monkeypatch.setattr(hardware, "_running_site", lambda: tmp_path / "none")
    return Smi(tmp_path / "bin")


# --- GPUs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mb", "cc", "profile", "seq_len"),
    [
        ("NVIDIA H200", 143771, "9.0", "gpu-70gb", 2048),
        ("NVIDIA H100 80GB HBM3", 81559, "9.0", "gpu-70gb", 2048),
        ("NVIDIA A100-SXM4-40GB", 40960, "8.0", "gpu-36gb", 1024),
        ("NVIDIA GeForce RTX 5090", 32607, "12.0", "gpu-15gb", 512),
        ("NVIDIA GeForce RTX 4090", 24564, "8.9", "gpu-15gb", 512),
        ("Tesla T4", 15360, "7.5", "gpu-15gb", 512),
        ("Tesla T4", 15079, "7.5", "gpu-15gb", 512),
        ("NVIDIA GeForce RTX 3060", 12288, "8.6", "gpu-5gb", 256),
        ("NVIDIA GeForce GTX 1660 Ti", 6144, "7.5", "gpu-5gb", 256),
        ("NVIDIA GeForce GTX 1650", 4096, "7.5", "gpu-5gb", 256),
    ],
)
def test_a_card_gets_the_profile_of_the_memory_that_it_reports(
    smi: Smi, name: str, mb: int, cc: str, profile: str, seq_len: int
) -> None:
    smi.card(name, mb, cc=cc)
    hw = smi.probe()
    assert (hw.gpu_name, hw.gpu_count, hw.vram_mb, hw.device) == (name, 1, mb, "cuda")
    assert (hw.driver_version, hw.cuda_version, hw.compute_capability) == ("580.95.05", "13.0", cc)
    assert hw.gpu_error is None
    assert profile_for(hw).name == profile
    assert profile_for(hw).constants["MAX_SEQ_LEN"] == seq_len
    assert not [line for line in readiness(hw)[1] if "driver" in line or "capability" in line]


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("| NVIDIA-SMI 470.82.01    Driver Version: 470.82.01    CUDA Version: 11.4     |", "11.4"),
        ("| NVIDIA-SMI 595.58  KMD Version: 595.58  CUDA UMD Version: 13.2  |", "13.2"),
        ("CUDA Version        : 12.4", "12.4"),
        ("| NVIDIA-SMI 535.54.03   Driver Version: 535.54.03    CUDA Version: N/A  |", None),
        ("| NVIDIA-SMI 535.54.03   Driver Version: 535.54.03    CUDA Version: ERR! |", None),
        ("| NVIDIA-SMI 390.157     Driver Version: 390.157      |", None),
        ("", None),
    ],
)
def test_the_cuda_version_is_a_version_or_nothing_never_a_piece_of_the_frame(smi: Smi, line: str, version: str | None) -> None:
    smi.gpus(["0, GPU-a, NVIDIA H100 80GB HBM3, 81559, 580.95.05, Disabled, 9.0"], line)
    assert smi.probe().cuda_version == version


def test_a_driver_too_old_to_know_compute_cap_is_asked_without_it(smi: Smi) -> None:
    smi.script(
        "case $1 in *compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;;\n"
        "--query*) echo '0, GPU-a, Tesla T4, 15109, 450.80.02';; *) echo 'CUDA Version: 11.0';; esac\n"
    )
    hw = smi.probe()
    assert (hw.gpu_name, hw.vram_mb, hw.compute_capability, hw.cuda_version) == ("Tesla T4", 15109, None, "11.0")
    ready, problems = readiness(hw)
    assert not ready
    assert any("450.80.02 supports CUDA 11.0" in line and "580" in line for line in problems)


def test_a_card_that_the_locked_torch_left_out_is_a_problem_with_a_way_out(smi: Smi) -> None:
    smi.card("Tesla V100-SXM2-32GB", 32768, cc="7.0")
    ready, problems = readiness(smi.probe())
    assert not ready
    assert any("compute capability 7.0" in line and "CUDA_VISIBLE_DEVICES=-1" in line for line in problems)


@pytest.mark.parametrize(
    ("says", "code"),
    [
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
            "NVIDIA driver is installed and running.",
            9,
        ),
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95", 18),
        ("", 255),
    ],
)
def test_a_broken_driver_is_no_gpu_and_not_ready(smi: Smi, says: str, code: int) -> None:
    smi.script(f"echo {shlex.quote(says)}\nexit {code}\n")
    hw = smi.probe()
    assert (hw.gpu_name, hw.device, hw.vram_mb, hw.cuda_version) == (None, "cpu", None, None)
    assert hw.gpu_error is not None and hw.gpu_error.startswith("nvidia-smi failed: ")
    assert (says.split("\n")[0] or f"exit code {code}") in hw.gpu_error
    ready, problems = readiness(hw)
    assert not ready
    assert any("reinstall the NVIDIA driver" in line for line in problems)


@pytest.mark.parametrize("garbage", ["hello", "a, b, c, d, e, f, g", "\x1b[31m\x00\xff", "", "0, GPU-a"])
def test_an_answer_that_makes_no_sense_is_an_error_and_no_crash(smi: Smi, garbage: str) -> None:
    (smi.folder / "answer").write_bytes(garbage.encode("latin-1"))
    smi.script(f"/bin/cat {smi.folder}/answer\n")
    hw = smi.probe()
    assert hw.gpu_name is None and hw.gpu_error is not None
    assert hw.gpu_error.isprintable() and len(hw.gpu_error) < 300


def test_a_program_that_is_none_counts_as_missing(smi: Smi) -> None:
    smi.script("")
    (smi.folder / "nvidia-smi").write_bytes(b"\x7fELF of another machine")
    hw = smi.probe()
    assert hw.gpu_name is None and hw.device == "cpu"


def test_a_hanging_nvidia_smi_is_given_up_with_all_that_it_started(
    smi: Smi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hardware, "ANSWER_LIMIT_S", 0.3)
    smi.script(f"/bin/sleep 600 & echo $! >> {tmp_path}/pids; wait\n")
    smi.script("echo git version 2.39.5", "git")
    started = time.monotonic()
    hw = smi.probe()
    assert time.monotonic() - started < 2
    assert hw.gpu_error == "nvidia-smi gave no answer within 0 s"
    assert hw.git_version == "2.39.5", "the tools that did answer are heard"
    deadline = time.monotonic() + 5
    for pid in (tmp_path / "pids").read_text().split():
        while _alive(int(pid)):
            assert time.monotonic() < deadline, "it outlives what started it"


def _alive(pid: int) -> bool:
    """A killed child of a killed parent may be a zombie until init has reaped it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_lines_around_the_answer_are_passed_over(smi: Smi) -> None:
    warning = "WARNING: infoROM is corrupted at gpu 0000:65:00.0"
    smi.gpus([warning, "0, GPU-a, NVIDIA A40, 46068, 580.95.05, [N/A], 8.6", warning], "CUDA Version: 13.0")
    hw = smi.probe()
    assert (hw.gpu_name, hw.vram_mb, hw.gpu_error) == ("NVIDIA A40", 46068, None)


def test_a_driver_without_a_card_is_a_cpu_machine_that_is_ready(smi: Smi) -> None:
    smi.script("echo 'No devices were found'; exit 6\n")
    hw = smi.probe()
    assert (hw.gpu_name, hw.gpu_error, hw.device) == (None, None, "cpu")


def test_a_gpu_whose_tools_are_missing_is_told_not_passed_over(smi: Smi) -> None:
    hardware._DEVICE_NODE.touch()
    hw = smi.probe()
    assert hw.gpu_error is not None and "nvidia-smi is not on PATH" in hw.gpu_error
    assert not readiness(hw)[0]


def test_memory_that_cannot_be_told_gets_the_smallest_gpu_profile_and_a_note(smi: Smi) -> None:
    smi.card("NVIDIA GB10", "[N/A]", cc="12.1")
    hw = smi.probe()
    assert (hw.device, hw.vram_mb) == ("cuda", None)
    assert profile_for(hw).name == "gpu-5gb"
    assert any("memory can't be told" in line for line in hardware.notes(hw))
    assert report(hw, "cpu", True, [])["vram_mb"] == 0


TWO = [
    "0, GPU-aaaa0000-0000, NVIDIA H100 80GB HBM3, 81559, 580.95.05, Disabled, 9.0",
    "1, GPU-bbbb1111-1111, NVIDIA GeForce RTX 4090, 24564, 580.95.05, [N/A], 8.9",
]


@pytest.mark.parametrize(
    ("visible", "count", "name"),
    [
        (None, 2, "NVIDIA H100 80GB HBM3"),
        ("0", 1, "NVIDIA H100 80GB HBM3"),
        ("1", 1, "NVIDIA GeForce RTX 4090"),
        ("1,0", 2, "NVIDIA GeForce RTX 4090"),
        ("1, 5, 0", 1, "NVIDIA GeForce RTX 4090"),  # as CUDA does: what follows a wrong entry is invisible
        ("GPU-bbbb", 1, "NVIDIA GeForce RTX 4090"),
        ("", 0, None),
        ("-1", 0, None),
    ],
)
def test_cuda_visible_devices_is_honoured(smi: Smi, visible: str | None, count: int, name: str | None) -> None:
    smi.gpus(TWO, HEADER.format(driver="580.95.05", cuda="13.0"))
    hw = smi.probe({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert (hw.gpu_count, hw.gpu_name, hw.gpu_error) == (count, name, None)


def test_a_wish_for_a_gpu_that_is_not_there_is_an_error(smi: Smi) -> None:
    smi.gpus(TWO)
    hw = smi.probe({"CUDA_VISIBLE_DEVICES": "7"})
    assert hw.gpu_error == "CUDA_VISIBLE_DEVICES=7 names no GPU of this machine"
    assert not readiness(hw)[0]


@pytest.mark.parametrize(
    ("visible", "name", "mb", "table"),
    [
        (None, "NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19968, MIG_TABLE),
        ("MIG-2222-1g", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4864, MIG_TABLE),
        ("MIG-2222-1g", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5000, ""),
        ("0", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", 20000, ""),
    ],
)
def test_a_mig_slice_counts_with_its_own_memory(smi: Smi, visible: str | None, name: str, mb: int, table: str) -> None:
    row = "0, GPU-aaaa0000-0000, NVIDIA A100-SXM4-40GB, 40960, 580.95.05, Enabled, 8.0"
    smi.gpus([row], HEADER.format(driver="580.95.05", cuda="13.0") + table, MIG_LIST)
    hw = smi.probe({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert (hw.gpu_name, hw.vram_mb, hw.gpu_count) == (name, mb, 1)


def test_a_mig_slice_in_a_container_that_may_not_read_the_cards_memory(smi: Smi) -> None:
    row = "0, GPU-aaaa0000-0000, NVIDIA A100-SXM4-40GB, [Insufficient Permissions], 580.95.05, Enabled, 8.0"
    smi.gpus([row], HEADER.format(driver="580.95.05", cuda="13.0") + MIG_TABLE, MIG_LIST)
    assert smi.probe().vram_mb == 19968


# --- without a GPU ----------------------------------------------------------------------------------------------------


def test_a_machine_without_a_gpu_is_ready_with_the_cpu_profile(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.script("echo git version 2.39.5", "git")
    monkeypatch.setattr(hardware, "disk_free_mb", lambda path: 50_000)
    hw = smi.probe()
    ready, problems = readiness(hw)
    said = report(hw, profile_for(hw).name, ready, problems)
    assert list(said)[:6] == ["gpu_name", "vram_mb", "cuda_version", "python_ok", "uv_ok", "ready"]
    assert [said[key] for key in list(said)[:6]] == [None, 0, None, True, False, True]
    assert said["profile"] == "cpu" and said["problems"] == []
    assert any("uv is not installed" in str(line) for line in hardware.notes(hw)), "no blocker, but told"


def test_this_machine_can_be_described() -> None:
    hw = probe()
    assert hw.cpu_name and hw.cpu_cores >= 1 and hw.platform
    assert 0 < hw.cpu_cores <= (os.cpu_count() or 1)
    assert hw.ram_mb > 100 and hw.disk_free_mb > 0
    assert hw.python_ok and hw.python_version.startswith("3.")


def test_apple_silicon_is_mps_under_its_chips_name(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(hardware, "_cpu_name", lambda: "Apple M3 Pro")
    hw = smi.probe()
    assert (hw.device, hw.gpu_name, hw.vram_mb, hw.cuda_version) == ("mps", "Apple M3 Pro", None, None)
    profile = profile_for(hw)
    assert (profile.name, profile.constants["TIME_BUDGET"], profile.constants["DATASET"]) == ("mps", 300, "stdlib")


def test_what_is_missing_is_told_each_with_its_way_out(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "disk_free_mb", lambda path: 4_000)
    ready, problems = readiness(smi.probe())
    assert not ready
    assert len(problems) == 2
    assert any("git" in line and "install it" in line for line in problems)
    assert any("4,000 MB of disk are free, 10,000 are needed" in line for line in problems)


def test_with_the_environment_there_a_gigabyte_of_disk_is_enough(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    (smi.folder / ".venv/lib/python3.12/site-packages/torch-2.15.0.dist-info").mkdir(parents=True)
    smi.script("echo git version 2.39.5", "git")
    monkeypatch.setattr(hardware, "disk_free_mb", lambda path: 4_000)
    hw = smi.probe()
    assert hw.torch_version == "2.15.0"
    assert readiness(hw) == (True, [])


def test_uv_is_found_on_path_and_as_the_scripts_private_copy(smi: Smi, tmp_path: Path) -> None:
    assert not smi.probe({"HOME": str(tmp_path)}).uv_ok
    place = tmp_path / ".local/share/autoresearch/uv/bin"
    place.mkdir(parents=True)
    private = Smi(place / "x")
    private.script("echo 'uv 0.13.9 (x86_64-unknown-linux-gnu)'", "uv")
    (place / "x/uv").rename(place / "uv")
    assert smi.probe({"HOME": str(tmp_path)}).uv_version == "0.13.9"
    smi.script("echo 'uv 0.14.0'", "uv")
    assert smi.probe({"HOME": str(tmp_path)}).uv_version == "0.14.0"
    smi.script("echo 'pyenv: uv: command not found'; exit 127", "uv")
    assert not smi.probe().uv_ok, "a shim that runs nothing is no uv"


@pytest.mark.parametrize(
    ("group", "files", "cores", "ram_mb"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None, None),
        ("0::/", {"cpu.max": "100000 100000"}, 1, None),
        ("0::/", {"cpu.max": "20000 100000"}, 1, None),
        ("0::/", {"memory.max": 64}, None, 64),
        ("0::/a/b", {"a/memory.max": 64, "a/b/memory.max": "max"}, None, 64),
        ("0::/of/the/host", {"memory.max": 32}, None, 32),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": 48}, None, 48),
        (
            "3:cpu,cpuacct:/",
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            1,
            None,
        ),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
        ("0::/", {"memory.max": "", "cpu.max": "x y"}, None, None),
        ("garbage", {}, None, None),
    ],
)
def test_a_containers_limits_cut_cores_and_memory(
    tmp_path: Path, group: str, files: dict[str, str | int], cores: int | None, ram_mb: int | None
) -> None:
    """Numbers in `files` are MB."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group + "\n")
    for name, value in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value * 2**20 if isinstance(value, int) else value}\n")
    bare = tmp_path / "nothing"
    assert hardware.usable_cores(tmp_path) == (cores or hardware.usable_cores(bare))
    assert hardware.usable_ram_mb(tmp_path) == (ram_mb or hardware.usable_ram_mb(bare))


def test_disk_is_measured_where_a_folder_will_be(tmp_path: Path) -> None:
    assert hardware.disk_free_mb(tmp_path / "not/there/yet") > 0


def test_looking_at_the_machine_imports_nothing_that_is_not_the_standard_librarys() -> None:
    code = (
        "import sys, autoresearch.hardware as h; h.probe()\n"
        "print({n.split('.')[0] for n in sys.modules} - {*sys.stdlib_module_names, 'autoresearch', '__main__'})"
    )
    source = Path(hardware.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-ISc", f"import sys; sys.path.insert(0, {str(source)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.sub(r"'_sysconfigdata_\w*[^']*'", "", done.stdout.strip()) in ("set()", "{}"), "but Python's own build data"


# --- profiles ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=list(profiles._SIZE_ROWS))
def profile(request: pytest.FixtureRequest) -> hardware.Profile:
    return profiles._profile(request.param, "cuda")


def test_every_profile_holds_together_at_every_length(profile: hardware.Profile) -> None:
    for n in (profile.constants["MAX_SEQ_LEN"], 64, 128, 256, 512, 1024, 2048, 8192, 65536):
        assert isinstance(n, int)
        fitted = with_seq_len(profile, n)
        c, t = fitted.constants, fitted.train
        ints = {k: v for k, v in {**c, **t}.items() if isinstance(v, int)}
        assert ints["MAX_SEQ_LEN"] == n
        for name in ("MAX_SEQ_LEN", "TOTAL_BATCH", "DEVICE_BATCH", "SHORT_WINDOW"):
            assert ints[name] > 0 and ints[name] & (ints[name] - 1) == 0, f"{name} is a power of two"
        assert ints["DEVICE_BATCH"] * n <= ints["TOTAL_BATCH"], "a device step is no longer than the optimizer's"
        assert ints["TOTAL_BATCH"] % (ints["DEVICE_BATCH"] * n) == 0
        assert ints["EVAL_TOKENS"] >= n and ints["SHORT_WINDOW"] < n
        assert set(str(t["WINDOW_PATTERN"])) <= {"S", "L"} and ints["HEAD_DIM"] % 2 == 0
        assert isinstance(t["COMPILE"], bool)


def test_the_table_is_that_of_the_design(smi: Smi) -> None:
    rows = {name: profiles._profile(name, "cuda") for name in profiles._SIZE_ROWS}
    assert {name: (p.constants["MAX_SEQ_LEN"], p.constants["EVAL_TOKENS"]) for name, p in rows.items()} == {
        "gpu-70gb": (2048, 20_971_520),
        "gpu-36gb": (1024, 10_485_760),
        "gpu-15gb": (512, 5_242_880),
        "gpu-5gb": (256, 2_097_152),
        "mps": (256, 131_072),
        "cpu": (256, 131_072),
    }
    assert rows["cpu"].constants["TIME_BUDGET"] == 30


def test_a_length_changes_what_it_must_and_keeps_the_tokens_on_the_device() -> None:
    large = profiles._profile("gpu-70gb", "cuda")
    short = with_seq_len(large, 256)
    assert short.constants["EVAL_TOKENS"] == 2_097_152, "not 40 * 524288 with its head replaced"
    assert short.train["DEVICE_BATCH"] == 512
    assert {k for k in large.train if large.train[k] != short.train[k]} == {"DEVICE_BATCH", "SHORT_WINDOW"}
    assert large.constants["MAX_SEQ_LEN"] == 2048, "the profile that was given is as it was"
    assert with_seq_len(large, 2048) == large


@pytest.mark.parametrize(
    ("n", "offers"),
    [(384, "256 or 512"), (0, "64"), (-512, "64"), (63, "64"), (100, "64 or 128"), (65537, "65536"), (10**9, "65536")],
)
def test_a_length_that_cannot_work_is_named_in_one_line_with_the_nearest_that_can(n: int, offers: str) -> None:
    with pytest.raises(ValueError, match=rf"length {n} .*take {offers}$") as error:
        check_seq_len(n)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("n", [True, 512.0, "512"])
def test_a_length_is_a_whole_number(n: object) -> None:
    with pytest.raises(ValueError, match="no whole number"):
        check_seq_len(n)  # type: ignore[arg-type]


def test_a_profile_that_was_changed_does_not_change_the_next(smi: Smi) -> None:
    hw = smi.probe()
    profile_for(hw).constants["TIME_BUDGET"] = 1
    profile_for(hw).train["DEPTH"] = 99
    assert profile_for(hw).constants["TIME_BUDGET"] == 30
    assert profile_for(hw).train["DEPTH"] == 4
