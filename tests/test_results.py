"""Claims about results.py: each row is written once and whole, and every tool's rows are read for what they are."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from autoresearch.errors import NotReady
from autoresearch.results import CRASH, DISCARD, KEEP, Row, append, clean, commits, format_row, gains, missing, read, summarize

ROOT = Path(__file__).resolve().parents[1]
HEAD = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"

BASELINE = Row("0c68d73aa", 0.9979, 37.52, KEEP, "baseline")
BETTER = Row("a3f2c91", 0.969712, 37.2, KEEP, "SwiGLU activation + depth-12")
WORSE = Row("b8e1d04", 0.9821, 38.1, DISCARD, "MoE 4-expert: marginal gain")
CRASHED = Row("c1a5f30", None, None, CRASH, "OOM: sequence length 4096")


def written(path: Path, *rows: Row) -> Path:
    for row in rows:
        append(path, row)
    return path


# -- what is lacking -----------------------------------------------------------------------------------------------------


def test_a_row_is_there_if_its_commit_is_wherever_it_stands_and_whatever_else_was_changed(tmp_path: Path) -> None:
    table = written(tmp_path / "results.tsv", WORSE, Row(BASELINE.commit, 0.99, None, DISCARD, "as I see it"))
    assert commits(table) == ["b8e1d04", "0c68d73"]
    assert missing(["0c68d73", "a3f2c91", "b8e1d04"], commits(table)) == [1]
    assert missing(["a3f2c91"], commits(tmp_path / "nothing")) == [0]


def test_of_two_rows_whose_commits_begin_alike_none_stands_for_the_other() -> None:
    assert missing(["a3f2c91", "b8e1d04", "a3f2c91"], ["a3f2c91", "b8e1d04"]) == [2]
    assert missing(["a3f2c91", "a3f2c91"], ["a3f2c91", "a3f2c91"]) == []


def test_the_commits_are_those_of_the_rows_that_are_read(tmp_path: Path) -> None:
    table = written(tmp_path / "results.tsv", BASELINE, BETTER)
    table.write_text(table.read_text() + "\nhalf a li\nx\ty\tz\tneither\tnor\n")
    assert commits(table) == [row.commit for row in read(table)[0]] == ["0c68d73", "a3f2c91"]


# -- writing -------------------------------------------------------------------------------------------------------------


def test_the_file_is_a_header_and_one_line_a_row_in_the_formats_of_the_docs(tmp_path: Path) -> None:
    stopped = Row("d4d4d4d", None, 12.04, DISCARD, "stopped early")
    path = written(tmp_path / "results.tsv", BASELINE, BETTER, WORSE, CRASHED, stopped)
    assert path.read_text(encoding="utf-8") == HEAD + (
        "0c68d73\t0.997900\t37.5\tkeep\tbaseline\n"
        "a3f2c91\t0.969712\t37.2\tkeep\tSwiGLU activation + depth-12\n"
        "b8e1d04\t0.982100\t38.1\tdiscard\tMoE 4-expert: marginal gain\n"
        "c1a5f30\tcrash\t—\tcrash\tOOM: sequence length 4096\n"
        "d4d4d4d\t—\t12.0\tdiscard\tstopped early\n"
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows, warnings = read(written(tmp_path / "results.tsv", BETTER, WORSE, CRASHED))
    assert (rows, warnings) == ([BETTER, WORSE, CRASHED], [])


def test_a_crash_row_has_no_number_whatever_it_was_given() -> None:
    assert format_row(Row("c1a5f30", 0.5, 40.0, CRASH, "x")) == "c1a5f30\tcrash\t—\tcrash\tx"


def test_a_missing_or_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "empty.tsv").touch()
    assert read(tmp_path / "none.tsv") == read(tmp_path / "empty.tsv") == ([], [])


HOSTILE = [
    "tab\there",
    "line\nbreak\r\nand return\r",
    "\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1H",
    "\x1b]8;;http://example.org\x07link\x1b]8;;\x07",
    "\x1b]0;title\x1b\\x",
    "\x9b31m eight bit",
    "bell \x07 null \x00 del \x7f",
    "\u202ereversed\u202c \u2066isolated\u2069 \u200emark\u200f \u061c",
    "line \u2028 paragraph \u2029 next \x85",
    "\ufeffbyte order",
    "a lone surrogate \udcff from an argument",
]


@pytest.mark.parametrize("description", HOSTILE, ids=range(len(HOSTILE)))
def test_a_description_can_break_neither_the_table_nor_a_terminal(tmp_path: Path, description: str) -> None:
    path = written(tmp_path / "results.tsv", Row("a3f2c91", 1.0, 1.0, KEEP, description), WORSE)
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert [line.count("\t") for line in lines] == [4, 4, 4, 0]
    said = lines[1].split("\t")[4]
    assert said and all(unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in said)
    assert read(path)[0][0].description == said


def test_text_of_any_script_stays_and_a_long_one_is_cut_with_a_mark() -> None:
    assert clean("  größer:  学習率 0.95→0.92 🙂 ") == "größer: 学習率 0.95→0.92 🙂"
    assert clean("x" * 1000) == "x" * 299 + "…"


# -- a machine that dies -------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_set_aside_and_the_next_row_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "results.tsv", BETTER)
    whole = path.read_bytes()
    for cut in range(1, len(format_row(WORSE)) - len(WORSE.description)):
        path.write_bytes(whole + format_row(WORSE).encode()[:cut])
        (tmp_path / "results.tsv.torn").unlink(missing_ok=True)
        append(path, CRASHED)
        assert read(path) == ([BETTER, CRASHED], []), cut
        assert (tmp_path / "results.tsv.torn").read_bytes() == format_row(WORSE).encode()[:cut] + b"\n"


def test_a_last_line_that_lacks_only_its_newline_is_completed(tmp_path: Path) -> None:
    path = written(tmp_path / "results.tsv", BETTER, WORSE)
    path.write_bytes(path.read_bytes()[:-1])
    append(path, CRASHED)
    assert read(path) == ([BETTER, WORSE, CRASHED], [])
    assert not (tmp_path / "results.tsv.torn").exists()


@pytest.mark.parametrize("cut", range(1, len(HEAD)))
def test_a_header_cut_at_any_byte_is_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.tsv"
    path.write_bytes(HEAD.encode()[:cut])
    append(path, BETTER)
    assert path.read_text() == HEAD + format_row(BETTER) + "\n"


def test_a_torn_line_is_left_out_with_a_warning_that_names_it(tmp_path: Path) -> None:
    path = written(tmp_path / "results.tsv", BETTER)
    path.write_bytes(path.read_bytes() + b"b8e1d04\t0.98")
    rows, warnings = read(path)
    assert rows == [BETTER]
    assert len(warnings) == 1 and "results.tsv, line 3" in warnings[0] and "b8e1d04 0.98" in warnings[0]


FILL = """
import sys
from pathlib import Path
from autoresearch.results import Row, append, read
path = Path(sys.argv[1])
count = 0
try:
    while count < 1000:
        append(path, Row(f"{count:07d}", 1.0, 1.0, "keep", "x" * 60))
        count += 1
except OSError as error:
    assert error.filename == str(path), error
    print(count, error.errno)
rows, warnings = read(path)
assert [row.commit for row in rows] == [f"{n:07d}" for n in range(count)] and not warnings, (len(rows), warnings)
assert path.read_bytes().endswith(b"\\n")
if len(sys.argv) > 2:
    Path(sys.argv[2]).unlink()
    append(path, Row("after", 1.0, 1.0, "keep", "x"))
    assert read(path)[0][-1].commit == "after" and len(read(path)[0]) == count + 1
"""


def test_a_full_disk_leaves_whole_rows_alone_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """A file system of 32 KB, half of it taken, mounted where nobody else sees it."""
    (tmp_path / "fill.py").write_text(FILL)
    script = "mount -t tmpfs -o size=32k tmpfs full && head -c 16384 /dev/zero >full/ballast"
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, f"mkdir -p full; {script}"], cwd=tmp_path).returncode:
        pytest.skip("no file system of one's own can be mounted here")
    command = f"{script} && {sys.executable} fill.py full/results.tsv full/ballast"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*unshare, command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, number = map(int, done.stdout.split())
    assert count > 100 and number == 28  # ENOSPC


def test_a_write_that_is_cut_in_the_middle_leaves_whole_rows_alone(tmp_path: Path) -> None:
    """As on a full disk, wherever the limit falls; for machines where nothing can be mounted."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    (tmp_path / "fill.py").write_text(FILL)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "fill.py", "results.tsv"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert 40 < int(done.stdout.split()[0]) < 60


# -- other tools' files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nothing", ["0.000000", "0.0", "0", "N/A", "n/a", "-", "—", "nan", "NaN", "inf", "-inf", "", "None", "crash", "oops"]
)
@pytest.mark.parametrize("status", [KEEP, DISCARD, CRASH])
def test_a_number_that_is_none_is_none_whatever_the_status(tmp_path: Path, nothing: str, status: str) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(f"{HEAD}abc1234\t{nothing}\t{nothing}\t{status}\tx\n")
    (row,), warnings = read(path)
    assert (row.val_bpb, row.memory_gb, row.status, warnings) == (None, None, status, [])
    assert not row.kept and not gains([row])


def test_the_status_decides_and_never_the_number(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(f"{HEAD}a\t0.5\t40.0\tcrash\tscored, then crashed\nb\t0.9\t1.0\tdiscard\tlow\nc\t0.95\t1.0\tkeep\tkept\n")
    rows, _ = read(path)
    assert [row.val_bpb for row in rows] == [None, 0.9, 0.95]
    summary = summarize(rows)
    assert summary.best == rows[2] and summary.crashes == 1


def test_a_file_with_peak_vram_mb_is_read_in_gb_and_written_in_mb(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text("commit\tval_bpb\tpeak_vram_mb\tstatus\tdescription\na3f2c91\t0.9697\t38420.0\tkeep\ttheirs\n")
    append(path, BETTER)
    append(path, CRASHED)
    assert path.read_text().splitlines()[2:] == [
        "a3f2c91\t0.969712\t38092.8\tkeep\tSwiGLU activation + depth-12",
        "c1a5f30\tcrash\t—\tcrash\tOOM: sequence length 4096",
    ]
    rows, warnings = read(path)
    assert [round(row.memory_gb or 0, 1) for row in rows] == [37.5, 37.2, 0.0] and not warnings


def test_columns_in_another_order_and_of_other_names_are_found_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text("status\tcommit\tsteps\tval_bpb\tdescription\nKeep \tabc1234\t953\t0.98\ttheirs\n")
    append(path, BETTER)
    rows, warnings = read(path)
    assert rows == [Row("abc1234", 0.98, None, KEEP, "theirs"), Row("a3f2c91", 0.969712, None, KEEP, BETTER.description)]
    assert not warnings


def test_windows_line_ends_a_byte_order_mark_and_bytes_that_are_no_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode() + b"a3f2c91\t0.9697\t1.0\tkeep\tcaf\xe9\r\n\r\n")
    (row,), warnings = read(path)
    assert (row.val_bpb, row.description, warnings) == (0.9697, "caf�", [])


def test_what_other_tools_let_pass_is_harmless_once_read(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(f"{HEAD}a3f2c91\t0.9697\t1.0\tkeep\t\x1b[31mred\x1b[0m\ta tab too\n")
    assert read(path)[0][0].description == "red a tab too"


def test_a_foreign_header_is_told_in_one_line_that_names_the_file_and_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    for text in ("name,score,when\n1,2,3\n", "\x1b[2Jhello\n", "x" * 5000, HEAD.replace("status", "state")):
        path.write_text(text)
        with pytest.raises(NotReady) as told:
            read(path)
        said = str(told.value)
        assert str(path) in said and "move the file away" in said
        assert "\n" not in said and "\x1b" not in said and len(said) < 400 + len(str(path))


# -- what the rows amount to ---------------------------------------------------------------------------------------------


def test_the_first_row_claims_no_improvement() -> None:
    (first,) = gains([BASELINE])
    assert first.gain is None
    summary = summarize([BASELINE])
    assert (summary.experiments, summary.improvements, summary.top) == (0, 0, [])


def test_a_gain_is_over_the_kept_row_before_whatever_lies_between() -> None:
    last = Row("eeeeeee", 0.96, 37.0, KEEP, "GQA with 4 KV heads")
    steps = gains([BASELINE, CRASHED, WORSE, BETTER, WORSE, CRASHED, last])
    assert [step.row for step in steps] == [BASELINE, BETTER, last]
    assert [step.gain and round(step.gain, 6) for step in steps] == [None, 0.028188, 0.009712]


def test_a_summary_counts_and_sorts() -> None:
    last = Row("eeeeeee", 0.93, 37.0, KEEP, "larger gain")
    summary = summarize([BASELINE, CRASHED, BETTER, WORSE, last])
    assert (summary.experiments, summary.improvements, summary.crashes) == (4, 2, 1)
    assert (summary.started, summary.best) == (0.9979, last)
    assert [step.row.description for step in summary.top] == ["larger gain", BETTER.description]


def test_a_second_baseline_that_scores_worse_is_no_improvement() -> None:
    summary = summarize([BETTER, BASELINE])
    assert summary.improvements == 0 and summary.best == BETTER


def test_rows_without_any_score_have_a_summary_too() -> None:
    summary = summarize([CRASHED, CRASHED])
    assert (summary.experiments, summary.started, summary.best) == (2, None, None)
