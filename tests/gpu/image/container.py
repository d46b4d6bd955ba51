#!/usr/bin/env python3
"""Runs a command in an image's unpacked root file system, as `docker run --read-only` does, where there is no Docker.

    python3 tests/gpu/image/container.py --root DIR --image image.json [--bind HOST:PATH[:ro] …]
        [--env NAME=VALUE …] [--shm-size 1g] [--entrypoint] [--] COMMAND …

Namespaces of its own for mounts, processes, IPC and the host's name; the image's user, environment and working folder;
no capabilities and no way to more privileges. The root is read-only, /tmp a tmpfs. /dev holds what every container has,
and the GPU's nodes. The network is the host's. SIGTERM and SIGINT are handed on, and the command's exit status is this
program's; 128 and the signal's number where it was killed. Needs root.

With `--entrypoint` the words are arguments of the image's own entry point; without, they are the command.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

# From <sched.h> and <linux/prctl.h>.
NEW_MOUNTS, NEW_HOST_NAME, NEW_IPC, NEW_PROCESSES = 0x00020000, 0x04000000, 0x08000000, 0x20000000
DROP_CAPABILITY, NO_NEW_PRIVILEGES, PARENT_DEATH = 24, 38, 1
CAPABILITIES = 64
NODES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
# As Docker hides them.
HIDDEN = ("proc/kcore", "proc/keys", "proc/timer_list")
HOST_NAME = "container"
HANDED_ON = (signal.SIGTERM, signal.SIGINT)
# What looks for its own address asks for its host's name, and there is no other name server.
HOSTS = f"127.0.0.1\tlocalhost {HOST_NAME}\n::1\tlocalhost\n"

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Image:
    """What an image says of how it is run.

    Attributes:
        environment: its variables.
        uid: its user.
        gid: its group.
        entrypoint: the words that begin every command.
        folder: where it works.
    """

    environment: dict[str, str]
    uid: int
    gid: int
    entrypoint: tuple[str, ...]
    folder: str

    @classmethod
    def read(cls, path: Path) -> Image:
        """Read what `docker image inspect` told."""
        config = json.loads(path.read_text("utf-8"))["config"]
        uid, _, gid = str(config.get("User") or "0").partition(":")
        pairs = (line.partition("=") for line in config.get("Env") or ())
        return cls(
            environment={name: value for name, _, value in pairs},
            uid=int(uid),
            gid=int(gid or 0),
            entrypoint=tuple(config.get("Entrypoint") or ()),
            folder=config.get("WorkingDir") or "/",
        )


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder of the host's at a path of the container's."""

    source: Path
    path: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Bind:
        """Read it as Docker writes it."""
        source, path, *options = text.split(":")
        return cls(Path(source).resolve(), path, "ro" in options)

    def __str__(self) -> str:
        return f"{self.source}:{self.path}{':ro' if self.read_only else ''}"


@dataclass(frozen=True, slots=True)
class Container:
    """How a container is run.

    Attributes:
        root: the root file system.
        image: what the image says.
        binds: folders of the host's.
        variables: on top of the image's.
        shm_size: of /dev/shm, as `mount` reads it.
    """

    root: Path
    image: Image
    binds: tuple[Bind, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    shm_size: str = "1g"

    def run(self, command: list[str]) -> int:
        """Run a command to its end and return its exit status.

        Raises:
            OSError: the kernel refused what a container is made of.
        """
        refused(libc.unshare(NEW_MOUNTS | NEW_HOST_NAME | NEW_IPC), "unshare")
        self.mount()
        # Only now: the next child is the new namespace's first process, and with it the namespace ends.
        refused(libc.unshare(NEW_PROCESSES), "unshare")
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)  # until there is somebody to hand them to
        child = os.fork()
        if child == 0:
            try:
                usual_signals()
                self.enter(command)
            except BaseException as error:
                print(f"container: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(125)
        for number in HANDED_ON:
            signal.signal(number, lambda number, frame: os.kill(child, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
        _, status = os.waitpid(child, 0)
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)

    def mount(self) -> None:
        """Mount everything but /proc, which shows the processes of whoever mounts it."""
        root = self.root
        socket.sethostname(HOST_NAME)
        (root / "etc/hosts").write_text(HOSTS)
        mount("--make-rprivate", "/")
        mount("--bind", root, root)
        device = root / "dev"
        mount("-t", "tmpfs", "-o", "mode=755,nosuid,size=1m", "tmpfs", device)
        for name, to in LINKS.items():
            (device / name).symlink_to(to)
        # What the host has for every GPU: /dev/nvidia0, /dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia-caps/…
        gpu = [path for path in Path("/dev").rglob("*") if "nvidia" in str(path) and path.is_char_device()]
        for node in [*(Path("/dev") / name for name in NODES), *gpu]:
            if node.exists():
                inside = device / node.relative_to("/dev")
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.touch()
                mount("--bind", node, inside)
        (device / "shm").mkdir()
        mount("-t", "tmpfs", "-o", f"mode=1777,nosuid,nodev,noexec,size={self.shm_size}", "tmpfs", device / "shm")
        mount("--rbind", "/sys", root / "sys")
        mount("-t", "tmpfs", "-o", "mode=1777,nosuid,nodev,exec", "tmpfs", root / "tmp")
        for bind in self.binds:
            inside = root / bind.path.lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            mount("--bind", bind.source, inside)
            mount("-o", f"remount,bind,nosuid,nodev,exec,{'ro' if bind.read_only else 'rw'}", inside)
        mount("-o", "remount,bind,ro,nosuid,nodev,exec", root)
        with_effect(lambda: mount("-o", "remount,bind,ro", root / "sys"))

    def enter(self, command: list[str]) -> NoReturn:
        """Become the command: the first process of the container, as the image's user."""
        mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", self.root / "proc")
        for name in HIDDEN:
            if (self.root / name).exists():
                with_effect(lambda name=name: mount("--bind", "/dev/null", self.root / name))
        os.chroot(self.root)
        os.chdir(self.image.folder)
        for number in range(CAPABILITIES):
            libc.prctl(DROP_CAPABILITY, number, 0, 0, 0)
        os.setgroups([])
        os.setgid(self.image.gid)
        os.setuid(self.image.uid)
        refused(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
        libc.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)  # another user's process forgets it
        environment = {"HOSTNAME": HOST_NAME, **self.image.environment, **self.variables}
        path = environment.get("PATH", "/usr/bin:/bin")
        program = shutil.which(command[0], path=path)
        if program is None:
            raise FileNotFoundError(f"expected {command[0]} in {path}, found none")
        os.execve(program, command, environment)  # noqa: S606 - no shell is wanted


def usual_signals() -> None:
    """Let no signal be ignored or blocked. What a shell starts with `&`, for one, ignores SIGINT."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def refused(status: int, what: str) -> None:
    """Raise what a call of the C library was refused for."""
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(*arguments: str | Path) -> None:
    """Call `mount`."""
    words = ["mount", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def with_effect(step: object) -> None:
    """Do what a sandboxed kernel may not know, and say so where it does not."""
    assert callable(step)
    try:
        step()
    except OSError as error:
        print(f"container: without this: {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--bind", type=Bind.parse, action="append", default=[])
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--shm-size", default="1g")
    parser.add_argument("--entrypoint", action="store_true")
    parser.add_argument("command", nargs="*")
    arguments = parser.parse_args()
    image = Image.read(arguments.image)
    command = [*(image.entrypoint if arguments.entrypoint else ()), *arguments.command]
    container = Container(
        root=arguments.root.resolve(),
        image=image,
        binds=tuple(arguments.bind),
        variables=dict(pair.split("=", 1) for pair in arguments.env),
        shm_size=arguments.shm_size,
    )
    try:
        sys.exit(container.run(command))
    except OSError as error:
        print(f"container: {error}", file=sys.stderr)
        sys.exit(125)


if __name__ == "__main__":
    main()
