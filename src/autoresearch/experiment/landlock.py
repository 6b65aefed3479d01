"""Run a command under Landlock and seccomp: the second best box, with nothing to install.

    python -I landlock.py SPEC -- COMMAND ...       SPEC: JSON {"read": [...], "write": [...], "hidden": [...], "network": false}

Landlock (ABI 6 and newer, Linux 6.12): files outside the lists can't be opened, TCP can't be used, no signals and no abstract Unix
sockets out of the box. seccomp adds what Landlock lacks: no new sockets at all (Landlock knows neither UDP nor a Unix socket's
path; a socket pair works), no ptrace, no io_uring, no
mounts, namespaces, keys or BPF. Both are inherited by all children and can't be taken off again. Standard library alone, since it
also runs as a program of its own.
"""

import ctypes
import errno
import json
import os
import platform
import struct
import sys
from collections.abc import Iterator, Sequence

LEAST_ABI = 6  # scoping of signals and abstract sockets
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE, IOCTL_DEV = 1 << 0, 1 << 2, 1 << 3, 1 << 1, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
ALL_FILES = (1 << 16) - 1
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # rights that mean something for a plain file
TCP = 0b11  # bind and connect
SCOPES = 0b11  # abstract Unix sockets and signals
SET_NO_NEW_PRIVS, SET_SECCOMP, SECCOMP_FILTER = 38, 22, 2

ARCHITECTURES = {"x86_64": 0xC000003E}
# x86-64 numbers: ptrace, process_vm_readv/writev, kcmp, io_uring_*, bpf, userfaultfd, keyctl, request_key, add_key, mount, umount2,
# unshare, setns, pivot_root, chroot, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr, perf_event_open,
# kexec_load, init_module, finit_module, pidfd_getfd
FORBIDDEN = (
    *(101, 310, 311, 312, 425, 426, 427, 321, 323, 250, 249, 248, 165, 166, 272, 308, 155, 161),
    *(428, 429, 430, 431, 432, 433, 442, 298, 246, 175, 313, 438),
)
SOCKET = 41
# setpgid and setsid: they seem to work and do nothing, so that one signal to the process group ends all that a run has started.
PRETENDED = (109, 112)


def problem() -> str:
    """Why this machine can't do it; '' if it can."""
    if platform.system() != "Linux":
        return "Landlock works on Linux alone"
    if platform.machine() not in ARCHITECTURES:
        return f"Landlock with seccomp is written for x86-64, this is {platform.machine()}"
    found = abi()
    return "" if found >= LEAST_ABI else f"Landlock has ABI {found} here, {LEAST_ABI} is needed (Linux 6.12)"


def abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    return max(0, int(_libc().syscall(CREATE_RULESET, None, 0, 1)))


def command(
    read: Sequence[str], write: Sequence[str], words: Sequence[str], hidden: Sequence[str] = (), network: bool = False
) -> list[str]:
    spec = json.dumps({"read": list(read), "write": list(write), "hidden": list(hidden), "network": network})
    return [sys.executable, "-I", "-B", __file__, spec, "--", *words]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def confine(read: Sequence[str], write: Sequence[str], hidden: Sequence[str], network: bool) -> None:
    """This process and all that it starts can open the listed paths and nothing else. For good."""
    libc = _libc()
    attributes = struct.pack("QQQ", ALL_FILES, 0 if network else TCP, SCOPES)
    ruleset = _checked(libc.syscall(CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    for path in read:
        for part, access in _around(os.path.realpath(path), hidden):
            _allow(libc, ruleset, part, access)
    for path in write:
        _allow(libc, ruleset, path, ALL_FILES)
    _allow(libc, ruleset, "/dev/null", READ_FILE | WRITE_FILE)
    _checked(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _checked(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
    _filter_calls(libc, network)


def _around(path: str, hidden: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A path, or where files inside it are hidden all that lies around them: rules can't be taken back for a part."""
    inside = [each for each in hidden if each == path or each.startswith(path.rstrip("/") + "/")]
    if not inside:
        yield path, READ
    elif path not in inside:
        yield path, READ_DIR
        for name in os.listdir(path):  # noqa: PTH208
            child = os.path.join(path, name)  # noqa: PTH118
            if not os.path.islink(child):  # noqa: PTH114 - what a link names has a rule of its own, or none
                yield from _around(child, inside)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            return
        raise
    try:
        allowed = access if os.path.isdir(path) else access & ON_FILES  # noqa: PTH112 - a program without imports of its own
        rule = struct.pack("=Qi", allowed, descriptor)
        _checked(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)


def _filter_calls(libc: ctypes.CDLL, network: bool) -> None:
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse, pretend, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000, 0x80000000

    def step(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    program = [
        step(load, 0, 0, 4),  # architecture
        step(equal, 1, 0, ARCHITECTURES[platform.machine()]),
        step(give, 0, 0, kill),
        step(load, 0, 0, 0),  # number of the call
        step(at_least, 0, 1, 0x40000000),  # the x32 set of calls
        step(give, 0, 0, refuse),
    ]
    for number in FORBIDDEN:
        program += [step(equal, 0, 1, number), step(give, 0, 0, refuse)]
    for number in PRETENDED:
        program += [step(equal, 0, 1, number), step(give, 0, 0, pretend)]
    if network:  # the internet, and netlink for its addresses; a Unix socket's path is nothing that Landlock looks at
        known = [step(equal, left, 0, family) for left, family in ((3, 2), (2, 10), (1, 16))]
        program += [step(equal, 0, 5, SOCKET), step(load, 0, 0, 16), *known, step(give, 0, 0, refuse)]
    else:
        program += [step(equal, 0, 1, SOCKET), step(give, 0, 0, refuse)]
    program.append(step(give, 0, 0, allow))
    code = b"".join(program)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    buffer = ctypes.create_string_buffer(code, len(code))
    filled = Program(len(program), ctypes.cast(buffer, ctypes.c_void_p))
    _checked(libc.prctl(SET_SECCOMP, SECCOMP_FILTER, ctypes.byref(filled), 0, 0), "seccomp")


def main() -> None:
    spec, words = json.loads(sys.argv[1]), sys.argv[3:]
    confine(spec["read"], spec["write"], spec["hidden"], spec["network"])
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
