"""Publishing, end to end, on a hub of its own: push through a failing link, then serve by name. `make demo-publish`.

The client is the real one; the hub is the tests' own, on loopback. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.client import Options, connect
from tests.client.ending import ending
from tests.demos.chain import CALM, PERSONA, SCRIPT, heading, speak
from tests.harness.server import Server
from tests.hub import Account, Hub
from tests.hub.artifacts import contents
from tests.hub.client import key_pair
from yap_client import YapError

REPO = "acme/smollm2-135m-int8"
TOKEN = "hf_demo"


def pipeline(environment: dict[str, str], *arguments: str, shown: str = "") -> int:
    """Run one pipeline command as a user would, and return its exit code."""
    print(f"$ {shown}python -m pipeline {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "pipeline", *arguments], env=environment, check=False).returncode


def show_repository(hub: Hub) -> None:
    """Print what the repository holds."""
    repository = hub.repositories[REPO]
    print(f"{REPO}: {'private' if repository.private else 'public'}, commits:")
    for commit in repository.commits:
        print(f"  {commit.oid[:12]}  {commit.title}")
    for path, content in sorted(repository.files.items()):
        print(f"  {len(content):>12,}  {path}")


async def talk(options: Options) -> bool:
    """The demo's two turns."""
    ok = True
    async with connect(options, persona=PERSONA, sampling=CALM) as talk:
        for utterance, expected in SCRIPT:
            ok = await speak(talk, utterance, expected) and ok
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("artifacts/demo"), help="made first where it is not there")
    out = parser.parse_args().out
    began = time.monotonic()
    results: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="yap-publish-") as home, Hub(part_size=32 << 20) as hub:
        hub.accounts[TOKEN] = Account("acme")
        secret, public = key_pair(Path(home))
        environment = {**os.environ, **hub.environment(TOKEN), "HF_PUSH_REPO_ID": REPO}

        heading("make: an artifact, where there is none yet")
        if not (out / "build_metadata.json").is_file():
            request = ("run", "--cpu", "8bit", "embedded", "embedded", "--out", str(out))
            if status := pipeline(environment, *request):
                sys.exit(f"demo: the run exited {status}")
        # Signing writes into the folder; the demo's own artifact stays as it is.
        out = Path(shutil.copytree(out, Path(home) / "artifact", ignore=shutil.ignore_patterns("model.sig")))
        print(f"a copy of it is at {out}; without --push-quant the hub has seen {len(hub.seen)} requests")

        heading("refuse: everything that is wrong, at once, before anything starts")
        wrong = {**environment, "HF_TOKEN": "", "HF_PUSH_REPO_ID": "your-org/model", "HF_PUSH_PRIVATE": "maybe"}
        shown = "HF_PUSH_REPO_ID=your-org/model HF_PUSH_PRIVATE=maybe "
        results["refused with 64"] = pipeline(wrong, "push", str(out), shown=shown) == 64

        heading("push: signed, over a link that breaks in the middle of a part")
        hub.fail("PUT", "/parts/2$", status=0, after_bytes=10 << 20)
        hub.fail("PUT", "/parts/1$", status=500, after_bytes=5 << 20)
        push = ("push", str(out), "--sign-key", str(secret))
        results["pushed"] = pipeline(environment, *push, shown=f"HF_TOKEN=… HF_PUSH_REPO_ID={REPO} ") == 0
        show_repository(hub)
        files = hub.repositories[REPO].files
        results["the hub holds every byte"] = {path: files[path] for path in contents(out)} == contents(out)

        heading("push again: nothing is sent")
        sent, commits = hub.uploaded(), len(hub.repositories[REPO].commits)
        results["pushed again"] = pipeline(environment, "push", str(out)) == 0
        results["nothing was sent"] = (hub.uploaded(), len(hub.repositories[REPO].commits)) == (sent, commits)

        heading("serve: by name, signature and hashes checked, the download broken once")
        hub.fail("GET", "^/storage/", status=0, after_bytes=60 << 20)
        name = f"hf:{REPO}@{hub.repositories[REPO].head.oid}"
        settings = {
            **hub.environment(TOKEN),
            "ARTIFACT": name,
            "ARTIFACT_CACHE_DIR": f"{home}/cache",
            "ARTIFACT_PUBLIC_KEY_FILE": str(public),
            "LOG_FORMAT": "console",
        }
        with Server(Path(), **settings) as server:
            waited = server.wait_ready()
            print(f"$ ARTIFACT={name} ARTIFACT_PUBLIC_KEY_FILE=… python -m runtime\nready after {waited:.0f} s")
            try:
                results["answered"] = asyncio.run(talk(Options(url=server.url, api_key=server.api_key)))
            except YapError as error:
                print(f"demo: {error}\n{server.log_tail()}")
                results["answered"] = False
            results["drained"] = server.stop() == 0
    heading("result")
    for what, ok in results.items():
        print(f"{'ok  ' if ok else 'FAIL'}  {what}")
    print(f"demo {'passed' if all(results.values()) else 'FAILED'} in {time.monotonic() - began:.0f} s")
    sys.exit(0 if all(results.values()) else 1)


if __name__ == "__main__":
    with ending():
        main()
