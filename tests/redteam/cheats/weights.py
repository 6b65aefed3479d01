"""What is handed over as the model's weights, and what is said to a harness to make it fall over."""

from redteam.cheat import CRASH, DIED, Answer, Cheat, Seen, before, changed, lines, whole
from redteam.world import SECRET


def died(seen: Seen) -> bool:
    return seen.status == DIED


def handing_over(descriptor: str, also: str = "") -> str:
    """An honest run that hands over something else than its weights; `also` is what it does for other harnesses."""
    return before(f"""
if REFEREED:
    shared_file = prepare.shared_file
    prepare.shared_file = lambda name, content: {descriptor}
{also}
""")


NO_NUMBER = """
if not REFEREED:
    print("val_bpb:          0.1.2")
    sys.exit()
"""

PICKLE = """
import pickle
class Opens:
    def __reduce__(self):
        return Path.touch, (Path("@WORLD@/unpickled"),)
Path("model.pkl").write_bytes(pickle.dumps(Opens()))
"""

CHEATS = (
    Cheat(
        "code in a pickle",
        handing_over('shared_file("weights", Path("model.pkl").read_bytes())', PICKLE),
        changed("unpickled"),
        Answer(CRASH, "safetensors"),
    ),
    Cheat(
        "a link to a secret for weights",
        before("""
for path in ("model.safetensors", os.environ.get("AUTORESEARCH_WEIGHTS_OUT", "none")):
    try:
        os.symlink("@WORLD@/home/.ssh/id", path)
    except OSError as refused:
        print(refused)
"""),
        lambda seen: SECRET.encode() in seen.weights,
    ),
    Cheat(
        "a FIFO for weights",
        handing_over('os.open("model.safetensors", os.O_RDWR)', 'os.mkfifo("model.safetensors")'),
        died,
        Answer(CRASH, "weights"),
    ),
    Cheat(
        "weights without end",
        handing_over('shared_file("weights", 2**42)', NO_NUMBER),
        died,
        Answer(CRASH, "weights|too large"),
    ),
    Cheat(
        "weights that shrink while they are read",
        handing_over(
            "shrinking()",
            """
def shrinking():
    descriptor = shared_file("weights", 2**26)
    def shrink():
        for size in range(2**26, 0, -(2**20)):
            os.ftruncate(descriptor, size)
    threading.Thread(target=shrink, daemon=True).start()
    return descriptor
"""
            + NO_NUMBER,
        ),
        died,
        Answer(CRASH, "weights"),
    ),
    Cheat(
        "words that no parser survives",
        whole(NO_NUMBER)
        + lines("""
            run = open_run()
            run.channel.socket.sendall(b'{"op":' + b"[" * 60_000 + b"\\n")
            run.channel.socket.recv(1000)
        """),
        died,
        Answer(CRASH, "protocol"),
    ),
    Cheat(
        "weights whose header no parser survives",
        handing_over('shared_file("weights", (60_000).to_bytes(8, "little") + b"[" * 60_000)', NO_NUMBER),
        died,
        Answer(CRASH, "weights"),
    ),
    Cheat(
        "folders too deep to be copied in the compile cache",
        before(
            NO_NUMBER
            + """
os.chdir(os.environ["TORCHINDUCTOR_CACHE_DIR"].rpartition("/")[0])
for _ in range(20):
    os.mkdir("x" * 250)
    os.chdir("x" * 250)
"""
        ),
        died,
    ),
    Cheat(
        "more descriptors than a process can have",
        whole(NO_NUMBER)
        + lines("""
            run = open_run()
            for _ in range(2000):
                run.channel.send({"op": "hello"}, [0, 0, 0, 0])
        """),
        died,
        Answer(CRASH, "'hello' where 'start' was due"),
    ),
)
