"""The machine: processes that live on, processes of others, the disk, the log, memory. All of it bounded."""

from redteam.cheat import BOTH, CRASH, HUNG, TIMEOUT, Answer, Cheat, Seen, after, before, changed, printed, whole

LOG_LIMIT = 20 * 2**20  # bytes


def alive(seen: Seen) -> bool:
    return seen.alive > 0


def survivor(environment: str) -> str:
    """A process that was forked twice, has a session of its own and goes on for a minute."""
    return f"""
ready, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        code = "import time; time.sleep(60)"
        os.execve(sys.executable, [sys.executable, "-c", code, "@MARK@"], {environment})
    os._exit(0)
os.close(write)
os.read(ready, 1)
"""


CHEATS = (
    Cheat("a process that was forked twice lives on", before(survivor("os.environ")), alive, levels=BOTH),
    Cheat("a process that was forked twice lives on, with an empty environment", before(survivor("{}")), alive, levels=BOTH),
    Cheat(
        "many processes that live on",
        before("""
for _ in range(40):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
"""),
        alive,
    ),
    Cheat(
        "the process that scores it ended",
        before("""
import signal
for process in Path("/proc").glob("[0-9]*"):
    try:
        words = (process / "cmdline").read_bytes()
        if b"@MARK@" in words and b"referee" in words and b"bwrap" not in words and int(process.name) != os.getpid():
            os.kill(int(process.name), signal.SIGKILL)
    except OSError as refused:
        pass
"""),
        lambda seen: seen.killed,
        levels=BOTH,
        beside=True,
    ),
    Cheat(
        "a run without end",
        whole("""
            run = open_run()
            threading.Event().wait()
        """),
        lambda seen: seen.status == HUNG,
        Answer(TIMEOUT, "timeout"),
        allowance=1.0,
    ),
    Cheat(
        "the log flooded",
        after("""
line = "x" * (2**20 - 1)
for _ in range(24):
    print(line)
print("the end of the flood", flush=True)
"""),
        lambda seen: len(seen.log) > LOG_LIMIT,
    ),
    Cheat(
        "the disk filled with what stays",
        before("""
for folder in (".", os.environ.get("TORCHINDUCTOR_CACHE_DIR", "@WORLD@/cache"), "@WORLD@/lab"):
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with open(f"{folder}/ballast", "wb") as file:
            for _ in range(16):
                file.write(bytes(2**20))
    except OSError as refused:
        print(refused)
"""),
        changed("ballast"),
    ),
    Cheat(
        "more memory than the machine has",
        before("""
size = 4 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
print("claimed:", len(memory))
"""),
        printed("claimed:"),
        Answer(CRASH, "oom|Cannot allocate memory"),
        levels=BOTH,
    ),
    Cheat(
        "a file larger than any model",
        before("""
with open("huge", "wb") as file:
    file.truncate(2**42)
    file.seek(2**41)
    file.write(b"x")
print("claimed: 4 TB")
"""),
        printed("claimed:"),
        Answer(CRASH, "too large"),
        levels=BOTH,
    ),
)
