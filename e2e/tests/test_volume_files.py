"""What files of a shared volume can do over 9p, and what they cannot: docs/volumes.md says it."""

from __future__ import annotations

import fcntl
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SLEEP, WEBAPP
from e2e.harness.waiting import until

PROBE = r'''
import ctypes, errno, fcntl, json, mmap, os, signal, socket, subprocess, sys, threading
os.chdir(sys.argv[1])
found = {}

def late(*_):
    raise OSError(errno.ETIMEDOUT, "late")

signal.signal(signal.SIGALRM, late)

def probe(name):
    def run(work):
        signal.alarm(60)
        try:
            found[name] = work()
        except OSError as error:
            found[name] = errno.errorcode[error.errno]
        signal.alarm(0)
    return run

@probe("hard link")
def _():
    open("a", "w").write("x")
    os.link("a", "b")
    return os.stat("b").st_nlink, os.stat("a").st_ino == os.stat("b").st_ino

@probe("sparse")
def _():
    with open("sparse", "wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    return os.stat("sparse").st_blocks < 1024

@probe("seek hole")
def _():
    with open("sparse", "rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_DATA) > 0

@probe("fallocate")
def _():
    with open("allocated", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
    return os.stat("allocated").st_size

@probe("punch hole")
def _():
    libc = ctypes.CDLL(None, use_errno=True)
    with open("sparse", "r+b") as file:
        if libc.fallocate(file.fileno(), 3, ctypes.c_long(0), ctypes.c_long(4096)) < 0:
            raise OSError(ctypes.get_errno(), "fallocate")
    return True

@probe("user xattr")
def _():
    os.setxattr("a", "user.k", b"v" * 1000)
    return os.getxattr("a", "user.k") == b"v" * 1000 and os.listxattr("a") == ["user.k"]

@probe("acl")
def _():
    import struct
    entries = [(1, 6, -1), (2, 4, 1000), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *each) for each in entries)
    os.setxattr("a", "system.posix_acl_access", acl)
    return True

@probe("mmap shared read")
def _():
    with open("map", "w+b") as file:
        file.write(b"x" * 8192)
        file.flush()
        with mmap.mmap(file.fileno(), 8192, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            return view[:1] == b"x"

@probe("mmap shared write")
def _():
    with open("map", "r+b") as file, mmap.mmap(file.fileno(), 8192) as view:
        view[4096:4101] = b"hello"
        view.flush()
    return open("map", "rb").read()[4096:4101] == b"hello"

@probe("mmap private")
def _():
    with open("map", "rb") as file:
        writable = mmap.PROT_READ | mmap.PROT_WRITE
        with mmap.mmap(file.fileno(), 8192, mmap.MAP_PRIVATE, writable) as view:
            view[:1] = b"y"
            return view[:1] == b"y"

LOCK = """
import fcntl, sys
with open("lock", "r+") as file:
    try:
        getattr(fcntl, sys.argv[1])(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("got")
    except OSError:
        print("busy")
"""
for kind in ("flock", "lockf"):
    @probe(kind)
    def _():
        with open("lock", "w+") as file:
            getattr(fcntl, kind)(file, fcntl.LOCK_EX)
            argv = [sys.executable, "-c", LOCK, kind]
            held = subprocess.run(argv, capture_output=True, text=True).stdout.strip()
        free = subprocess.run(argv, capture_output=True, text=True).stdout.strip()
        return held, free

@probe("append")
def _():
    with open("log", "a") as one, open("log", "a") as two:
        for n in range(100):
            one.write("1\n"); one.flush()
            two.write("2\n"); two.flush()
    return len(open("log").readlines())

@probe("unix socket")
def _():
    server = socket.socket(socket.AF_UNIX)
    server.bind("sock")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("sock")
    return True

@probe("fifo")
def _():
    os.mkfifo("fifo")
    thread = threading.Thread(target=lambda: open("fifo", "w").write("through"), daemon=True)
    thread.start()
    return open("fifo").read()

@probe("o_direct")
def _():
    os.close(os.open("a", os.O_RDONLY | os.O_DIRECT))
    return True

@probe("o_tmpfile")
def _():
    os.close(os.open(".", os.O_RDWR | os.O_TMPFILE))
    return True

@probe("rename over open")
def _():
    open("new", "w").write("new")
    with open("a") as held:
        os.rename("new", "a")
        return os.read(held.fileno(), 9).decode(), open("a").read()

@probe("rename exchange")
def _():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, b"a", -100, b"log", 2) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")
    return True

@probe("utime")
def _():
    os.utime("a", ns=(0, 1_000_000_005))
    return os.stat("a").st_mtime_ns

@probe("truncate open unlinked")
def _():
    with open("gone", "w+") as file:
        os.unlink("gone")
        file.write("x" * 100); file.flush()
        os.ftruncate(file.fileno(), 10)
        return os.fstat(file.fileno()).st_size

@probe("fsync")
def _():
    with open("a", "r+") as file:
        os.fsync(file.fileno())
    return True

@probe("inotify inside")
def _():
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(fd, b".", 0x100)
    open("noticed", "w").close()
    return b"noticed" in os.read(fd, 4096)

print(json.dumps(found), flush=True)
os._exit(0)
'''


HOLD = """
import fcntl, signal
flocked, locked = open("/shared/flock", "w"), open("/shared/lockf", "w")
fcntl.flock(flocked, fcntl.LOCK_EX)
fcntl.lockf(locked, fcntl.LOCK_EX)
open("/shared/held", "w").close()
signal.pause()
"""

WATCH = """
import ctypes, os, select
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
libc.inotify_add_watch(fd, b"/shared", 0x100)
open("/shared/watching", "w").close()
# What is made inside is heard, and so is the end of the wait.
heard = b""
while b"over" not in heard:
    heard += os.read(fd, 4096)
print(b"by-the-host" in heard)
"""


def test_what_the_host_and_a_container_do_not_see_of_each_other(
    daemon: Daemon, tmp_path: Path
) -> None:
    """Locks of a shared volume; changes by the host that nobody is woken for; and what the host
    puts into an emptyDir that is the guest's."""
    shared = tmp_path / "volume"
    own = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/data"
    for folder in (shared, own):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    container = Pod.run(daemon).start(
        WEBAPP,
        ["/usr/bin/python3", "-c", HOLD],
        mounts=[
            v1_pb2.Mount(container_path="/shared", host_path=str(shared)),
            v1_pb2.Mount(container_path="/own", host_path=str(own)),
        ],
        linux=v1_pb2.LinuxContainerConfig(
            security_context=v1_pb2.LinuxContainerSecurityContext(
                run_as_user=v1_pb2.Int64Value(value=0)
            )
        ),
    )
    until("the locks are held", (shared / "held").exists)
    with (shared / "flock").open("r+") as flocked, (shared / "lockf").open("r+") as locked:
        fcntl.flock(flocked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Nor does the container see these: nobody there waits for the host's programs.
        again = "import fcntl; fcntl.flock(open('/shared/new', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        with (shared / "new").open("w") as fresh:
            fcntl.flock(fresh, fcntl.LOCK_EX)
            done = daemon.client.exec_sync(container.id, ["/usr/bin/python3", "-c", again])
            assert done.exit_code == 0, done.stderr
    (own / "late").write_text("of the host")
    assert container.sh("ls /own") == ""
    with ThreadPoolExecutor(1) as pool:
        argv = ["/usr/bin/python3", "-c", WATCH]
        waiting = pool.submit(daemon.client.exec_sync, container.id, argv, 60)
        until("it watches", (shared / "watching").exists)
        (shared / "by-the-host").touch()
        assert "by-the-host" in container.sh("ls /shared; touch /shared/over")
        assert waiting.result().stdout == b"False\n"


def test_what_files_can_do(daemon: Daemon, tmp_path: Path) -> None:
    """The table of docs/volumes.md: a volume of the host's, and an emptyDir, the guest's own."""
    shared = tmp_path / "volume"
    own = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/data"
    for folder in (shared, own):
        folder.mkdir(parents=True)
    root = v1_pb2.LinuxContainerSecurityContext(run_as_user=v1_pb2.Int64Value(value=0))
    container = Pod.run(daemon).start(
        WEBAPP,
        SLEEP,
        mounts=[
            v1_pb2.Mount(container_path="/shared", host_path=str(shared)),
            v1_pb2.Mount(container_path="/own", host_path=str(own)),
        ],
        linux=v1_pb2.LinuxContainerConfig(security_context=root),
    )

    def probe(folder: str) -> dict[str, Any]:
        argv = ["/usr/bin/python3", "-c", PROBE, folder]
        answer = daemon.client.exec_sync(container.id, argv, 240)
        assert answer.exit_code == 0, answer.stderr.decode()
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    everywhere = {
        "hard link": [2, True],
        "sparse": True,
        "fallocate": 1 << 20,
        "user xattr": True,
        "mmap private": True,
        "flock": ["busy", "got"],
        "lockf": ["busy", "got"],
        "append": 200,
        "o_direct": True,
        "rename over open": ["x", "new"],
        "fsync": True,
        "inotify inside": True,
    }
    assert probe("/own") == everywhere | {
        "seek hole": True,
        "punch hole": True,
        "acl": True,
        "mmap shared read": True,
        "mmap shared write": True,
        "unix socket": True,
        "fifo": "through",
        "o_tmpfile": True,
        "rename exchange": True,
        "utime": 1_000_000_005,
        "truncate open unlinked": 10,
    }
    assert probe("/shared") == everywhere | {
        "seek hole": False,
        "punch hole": "ENOTSUP",
        "acl": "ENOTSUP",
        "mmap shared read": "EINVAL",
        "mmap shared write": "EINVAL",
        "unix socket": "ENXIO",
        "fifo": "ENXIO",
        "o_tmpfile": "ENOTSUP",
        "rename exchange": "EINVAL",
        "utime": 1_000_000_000,
        "truncate open unlinked": "ENOENT",
    }
