"""A machine of the tests' own: systemd as its first process, over a copy of this system that is forgotten afterwards.

Namespaces for processes, mounts, network, host name and IPC, with an overlay as root: nothing that runs inside reaches
the system outside, and all of it ends with the first process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

#: Moves into a control group of its own, in a view that begins there: the one outside never sees what is made inside.
ENTER = r"""
set -eu
mount -t cgroup2 none "$1"
mkdir "$1/$2"
echo $$ > "$1/$2/cgroup.procs"
umount "$1"
exec unshare --cgroup --mount bash -c "$3" boot "$1" "$4"
"""

#: Takes the control groups away that are left when all of it has ended.
LEAVE = r"""
mount -t cgroup2 none "$1"
find "$1/$2" -depth -type d -exec rmdir {} +
"""

#: Units that a server has and this one does not need are left out; what is tested brings its own. The checkout is
#: mounted, as it may lie where the overlay does not reach: on /tmp, or on another file system.
BOOT = r"""
set -eu
root=$1 checkout=$2
mount --make-rprivate /
mount -t tmpfs tmpfs "$root"
mkdir "$root"/upper "$root"/work "$root"/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$root/root"
cd "$root/root"
mount -t proc proc proc
mount -t sysfs sys sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs dev
for node in null zero full random urandom tty; do
    mknod -m 666 "dev/$node" c $(stat -c '%Hr %Lr' "/dev/$node")
done
mkdir dev/shm dev/pts dev/mqueue dev/hugepages
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t cgroup2 none sys/fs/cgroup
echo 0123456789abcdef0123456789abcdef > etc/machine-id
rm -rf etc/systemd/system/*.wants lib/systemd/system/*.wants usr/sbin/policy-rc.d etc/blockd var/lib/blockd
printf '[Unit]\nDescription=A machine of the tests\nWants=sockets.target systemd-journald.service\n' \
    > etc/systemd/system/tests.target
echo 'nameserver 127.0.0.53' > resolv.tests
mount --bind resolv.tests etc/resolv.conf
mkdir -p ".$checkout"
mount --bind -o ro "$checkout" ".$checkout"
ip link set lo up
mkdir outside
pivot_root . outside
cd /
umount -l /outside
exec env -i container=tests SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=tests.target --show-status=no
"""


class Machine:
    """One machine; use it as a context."""

    def __init__(self, directory: Path) -> None:
        """Keep its root under a directory."""
        self._root = directory / "machine"
        self._log = directory / "machine.log"
        self._group = f"blockd-tests-{os.getpid()}-{directory.name}"
        self._process: subprocess.Popen[bytes] | None = None
        self._first: int = 0

    def __enter__(self) -> Machine:
        """Boot."""
        self._root.mkdir()
        spaces = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
        with self._log.open("wb") as log:
            command = [*spaces, "bash", "-c", ENTER, "enter", str(self._root), self._group, BOOT, str(CHECKOUT)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            self._first = self._first_process()
            if self._first and self.run("systemctl is-system-running", check=False).stdout.strip() in (
                "running",
                "degraded",
            ):
                return self
            time.sleep(0.1)
        self.__exit__()
        raise AssertionError(f"the machine does not boot:\n{self._log.read_text()}")

    def _first_process(self) -> int:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for child in children:
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        return 0

    def __exit__(self, *_: object) -> None:
        """Turn it off: when the first process ends, the kernel ends all."""
        assert self._process is not None
        if self._first:
            os.kill(self._first, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        leave = ["unshare", "--mount", "bash", "-c", LEAVE, "leave", str(self._root), self._group]
        for _turn in range(50):
            # The kernel takes a moment to see that they are empty.
            if subprocess.run(leave, capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise AssertionError(f"the control group {self._group} is left")

    def run(self, command: str, *, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a shell command inside."""
        inside = [
            "nsenter",
            "--target",
            str(self._first),
            "--mount",
            "--pid",
            "--net",
            "--uts",
            "--ipc",
            "--cgroup",
            "--root",
        ]
        words = [
            *inside,
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND=noninteractive",
            "TERM=dumb",
        ]
        done = subprocess.run(
            [*words, "bash", "-c", f"cd / && {command}"], capture_output=True, text=True, check=False, timeout=timeout
        )
        if check and done.returncode:
            print(done.stdout, done.stderr, self.log()[-4000:], file=sys.stderr)
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def out(self, command: str) -> str:
        """Run a shell command inside, give what it prints."""
        return self.run(command).stdout.strip()

    def copy(self, file: Path, place: str) -> None:
        """Put a file into the machine."""
        where = ["nsenter", "--target", str(self._first), "--mount", "--root", "tee", place]
        subprocess.run(where, input=file.read_bytes(), stdout=subprocess.DEVNULL, check=True)

    def log(self) -> str:
        """Give what systemd and its units said on the console."""
        return self.run("journalctl --no-pager -q", check=False).stdout
