#!/usr/bin/env python3
"""Runs `runtime-vllm` on a GPU host without Docker, from what carry.py packed: from its stack check to its drain.

    python3 tests/gpu/image/prove.py OUT [--pieces /tmp/img] [--room DIR] [--layers 32] [--steps …]
        [--chosen "full graphs"] [--and COMMAND …]

All but the unpacking and the driver happens inside the image, as `docker run --gpus all --read-only` would run it
(container.py), with nothing of the host's Python. OUT/image-logs.tgz has a log for each step, and `steps`: how each
ended, after how many seconds. The artifact is of 8B shape with random weights, unproven, compiled by the image's own
engine, with options that `--chosen` names; where that fails, the engine serves without. `--and` runs a last command
inside the image, with /repo and the artifact at /artifact, such as `--and python /repo/tests/gpu/streams.py /artifact`.
What is unpacked is kept in ROOM: later runs go on with it by `--steps`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.gpu.image import drivers, pieces

HERE = Path(__file__).parent
KEY = "proof"
PORT = 18800
# The runtime is the image's own; what makes an artifact and what talks to a server comes from this checkout.
CARRIED = ("tests", "pipeline", "client")
PATHS = "/opt/yap/app:/repo:/repo/client"
COMPILE_CACHE = "compile_cache"  # as pipeline/build/layout.py names it
STEPS = (
    "unpack",
    "app",
    "drivers",
    "probe",
    "stack",
    "start",
    "torch",
    "model",
    "artifact",
    "check",
    "inspect",
    "serve",
)
MATRIX = """
import time, torch, vllm, transformers, triton
print("torch", torch.__version__, "CUDA", torch.version.cuda, "vLLM", vllm.__version__)
print("transformers", transformers.__version__, "triton", triton.__version__)
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
a @ a
torch.cuda.synchronize()
began = time.perf_counter()
for _ in range(10):
    a @ a
torch.cuda.synchronize()
print(f"{10 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12:.0f} TFLOP/s in bf16")
"""


class Proof:
    """One run: where everything lies, and how every step ended."""

    def __init__(self, out: Path, room: Path) -> None:
        self.packed = out / "image-logs.tgz"
        self.out = room / "logs"
        self.room = room
        self.root = room / "root"
        self.work = room / "work"
        self.cache = room / "cache"
        self.model = self.work / "8b"
        self.failed = False

    def tell(self, line: str) -> None:
        """Tell how something ended, here and in OUT/steps."""
        print(line, flush=True)
        with (self.out / "steps").open("a") as file:  # of all runs
            file.write(line + "\n")

    def step(self, name: str, work: Callable[[Path], object]) -> bool:
        """Do one step; whatever it raises is in its log, and the next ones are tried all the same."""
        log = self.out / f"{name}.log"
        began = time.monotonic()
        try:
            problem = work(log)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        self.tell(f"{name}: {problem or 'ok'} after {time.monotonic() - began:.1f} s")
        # One file, for a host that gives back few; after each step, for a run that is cut off.
        with tarfile.open(self.packed.with_suffix(".part"), "w:gz") as tar:
            tar.add(self.out, "logs")
        self.packed.with_suffix(".part").replace(self.packed)
        self.failed = self.failed or bool(problem)
        return not problem

    def words(self, *command: str, entrypoint: bool = False, artifact: bool = False, **variables: str) -> list[str]:
        """Return the words that run a command inside the image."""
        words = [sys.executable, str(HERE / "container.py"), "--root", str(self.root)]
        words += ["--image", str(self.room / "image.json"), "--bind", f"{self.cache}:/cache"]
        words += ["--bind", f"{self.room / 'repo'}:/repo:ro"]
        words += ["--bind", f"{self.model}:/artifact:ro"] if artifact else ["--bind", f"{self.work}:/work"]
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            variables = {"CUDA_VISIBLE_DEVICES": os.environ["CUDA_VISIBLE_DEVICES"], **variables}
        for name, value in variables.items():
            words += ["--env", f"{name}={value}"]
        return [*words, *(["--entrypoint"] if entrypoint else []), "--", *command]

    def inside(self, *command: str, limit: float = 300, **more: object) -> Callable[[Path], str | None]:
        """Return a step: the command inside the image, to its end."""

        def work(log: Path) -> str | None:
            with log.open("wb") as file:
                words = self.words(*command, **more)  # type: ignore[arg-type]
                done = subprocess.run(
                    words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=limit, check=False
                )
            return f"exit status {done.returncode}; {last_line(log)}" if done.returncode else None

        return work

    def unpack(self, source: Path) -> Callable[[Path], None]:
        """Return the step that lays out the root file system, and what is needed beside it."""

        def work(log: Path) -> None:
            shutil.rmtree(self.root, ignore_errors=True)
            size = pieces.unpack(source, self.root)
            shutil.copy(source / "image.json", self.room)
            shutil.copytree(source / "tokenizer", self.work / "tokenizer", dirs_exist_ok=True)
            log.write_text(f"{size} bytes in {self.root}\n")

        return work

    def renew(self, log: Path) -> None:
        """Do the last steps of the Dockerfile again: this checkout's runtime, compiled; so it is of one commit."""
        app = self.root / "opt/yap/app"
        shutil.rmtree(app / "runtime")
        shutil.copytree(ROOT / "runtime", app / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("entrypoint.sh", "health.py", "cc.sh", "preflight.py"):
            target = self.root / "opt/yap/bin" / name.removesuffix(".sh")
            shutil.copyfile(ROOT / "images" / name, target)
            target.chmod(0o755 if name.endswith(".sh") else 0o644)
        subprocess.run(["chmod", "-R", "a+rX", str(app)], check=True)
        words = ["chroot", str(self.root), "/opt/yap/venv/bin/python", "-m", "compileall", "-q", "/opt/yap/app"]
        with log.open("wb") as file:
            subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True)

    def bring_drivers(self, log: Path) -> None:
        """Bring the driver in, as the container toolkit does, and see the GPU from inside."""
        names = drivers.lay(self.root)
        log.write_text("\n".join([*names, ""]))
        with log.open("ab") as file:
            subprocess.run(self.words("nvidia-smi"), stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True)

    def lay_out(self, *, renew: bool) -> None:
        """Make the folders that the image may write, and copy of this checkout what it is asked with."""
        self.out.mkdir(parents=True, exist_ok=True)
        for folder in (self.work, self.cache):
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, 2000, 0)
            folder.chmod(0o2775)
        if not renew and (self.room / "repo").exists():  # another run may be reading it
            return
        shutil.rmtree(self.room / "repo", ignore_errors=True)
        for name in CARRIED:
            shutil.copytree(ROOT / name, self.room / "repo" / name, ignore=shutil.ignore_patterns("__pycache__"))
        # Whatever umask the checkout was made with, the image's user reads it.
        subprocess.run(["chmod", "-R", "a+rX", str(self.room / "repo")], check=True)

    def serve(self, log: Path) -> str | None:
        """Start the image's entry point on the artifact, wait for readiness, talk, and stop it while it speaks."""
        url = f"http://127.0.0.1:{PORT}"
        compiled = (self.model / COMPILE_CACHE).is_dir()
        settings = {} if compiled else {"ENFORCE_EAGER": "1"}
        settings |= {"TEXT_API_KEY": KEY, "ARTIFACT_TRUST": "unsigned", "HOST": "127.0.0.1", "PORT": str(PORT)}
        words = self.words(entrypoint=True, artifact=True, DEPLOY_MODE="chat", VLLM_LOGGING_LEVEL="INFO", **settings)
        began = time.monotonic()
        with log.open("wb") as file:
            server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            while status_of(f"{url}/readyz") != 200:
                if server.poll() is not None:
                    return f"exit status {server.returncode} before readiness; {last_line(log)}"
                if time.monotonic() - began > 400:
                    return f"not ready within 400 s; {last_line(log)}"
                time.sleep(0.1)
            self.tell(f"  ready after {time.monotonic() - began:.1f} s")
            with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                (self.out / "metrics").write_bytes(answer.read())
            health = ["python", "-I", "-S", "/opt/yap/bin/health.py"]
            self.step("health", self.inside(*health, HOST="127.0.0.1", PORT=str(PORT)))
            socket = f"ws://127.0.0.1:{PORT}/ws"
            talking = {"PYTHONPATH": PATHS, "TEXT_API_KEY": KEY}
            words = ["python", "/repo/tests/gpu/image/spoken.py", socket, KEY]
            self.step("turn", self.inside(*words, **talking))
            ten = ["python", "/repo/tests/conversation.py", "--server", socket]
            self.step("conversation", self.inside(*ten, **talking))
            # As `docker stop` does, at the first token of a reply.
            with (self.out / "drain.log").open("wb") as file:
                spoken = self.words(*words, "--tokens", "150", **talking)
                client = subprocess.Popen(spoken, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file)
                assert client.stdout is not None
                first = client.stdout.readline()
                stopped = time.monotonic()
                server.send_signal(signal.SIGTERM)
                file.write(first + client.stdout.read())
                client.wait(60)
            status = server.wait(60)
            took = time.monotonic() - stopped
            self.tell(f"  drained in {took:.1f} s: server {status}, the reply under way {client.returncode}")
            if odd := unexpected(log):
                return f"the server's log says {odd}"
            if first != b"speaking\n":
                return f"expected a first token before SIGTERM, found {first!r}"
            return f"exit status {status}, the reply's {client.returncode}" if status or client.returncode else None
        finally:
            if server.poll() is None:
                server.kill()  # the container's first process goes with it
                server.wait()


def status_of(url: str) -> int:
    """Return a path's HTTP status; 0 while nobody listens."""
    # As tests/harness/server.py asks. This file runs alone on the GPU host, with the standard library.
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def unexpected(log: Path) -> str | None:
    """Return the first event of a server's log that a start, some turns and a drain have no place for."""
    for line in log.read_text("utf-8", "replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict):
            continue
        # torch tells all that it does, if it is let.
        told = str(event.get("logger")).startswith("torch") and event.get("level") in ("debug", "info")
        if told or event.get("level") in ("error", "critical"):
            return line[:300]
    return None


def last_line(log: Path) -> str:
    """Return the end of a log, short."""
    lines = log.read_text("utf-8", "replace").split("\n")
    return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "nothing printed")


def roomy() -> Path:
    """Return where a root file system and a model have their place: in memory where that is enough."""
    shared = Path("/dev/shm")
    return Path("/dev/shm/yap-image" if shutil.disk_usage(shared).total > 50 << 30 else "/tmp/yap-image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pieces", type=Path, default=Path("/tmp/img"))
    parser.add_argument("--room", type=Path, default=roomy())
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--chosen", metavar="CANDIDATE", help="options of `build --tune` that it shall serve with")
    parser.add_argument("--and", dest="last", nargs=argparse.REMAINDER, default=[])
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("prove.py: expected root, which may mount and change the root folder, found another user")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    room: Path = arguments.room.resolve()
    proof = Proof(out.resolve(), room)
    proof.lay_out(renew="app" in arguments.steps)
    stack = ["python", "/opt/yap/bin/preflight.py", "vllm"]
    made = {"PYTHONPATH": PATHS, "HF_HUB_OFFLINE": "1"}
    make = ["python", "/repo/tests/gpu/inputs/make_model.py", "/work/8b", "--tokenizer", "/work/tokenizer"]
    inspect = ["python", "-m", "pipeline", "inspect", "/artifact"]

    def model(log: Path) -> str | None:
        shutil.rmtree(proof.model, ignore_errors=True)
        return proof.inside(*make, "--layers", str(arguments.layers), **made)(log)

    def artifact(log: Path) -> str | None:
        words = ["python", "/repo/tests/gpu/inputs/make_artifact.py", "/work/8b"]
        words += ["--chosen", arguments.chosen] if arguments.chosen else []
        problem = proof.inside(*words, limit=400, **made)(log)
        if problem:
            shutil.rmtree(proof.model / COMPILE_CACHE, ignore_errors=True)
            proof.step("uncompiled", proof.inside(*words, "--uncompiled", **made))
        return problem

    steps: dict[str, Callable[[Path], object]] = {
        "unpack": proof.unpack(arguments.pieces),
        "app": proof.renew,
        "drivers": proof.bring_drivers,
        "probe": proof.inside("python", "-c", (HERE / "probe.py").read_text("utf-8")),
        "stack": proof.inside(*stack),
        "start": proof.inside(*stack, "--start"),
        "torch": proof.inside("python", "-c", MATRIX),
        "model": model,
        "artifact": artifact,
        "check": proof.inside("check", "/artifact", "--lane", "vllm", entrypoint=True, artifact=True),
        "inspect": proof.inside(*inspect, artifact=True, **made),
        "serve": proof.serve,
    }
    for name in STEPS:
        if name in arguments.steps and not proof.step(name, steps[name]) and name == "unpack":
            break
    if arguments.last:
        proof.step("last", proof.inside(*arguments.last, artifact=True, limit=1100, **made))
        print((proof.out / "last.log").read_text("utf-8", "replace")[-6000:])
    sys.exit(1 if proof.failed else 0)


if __name__ == "__main__":
    main()
