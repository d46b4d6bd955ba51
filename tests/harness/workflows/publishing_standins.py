"""The pipeline on a machine with a GPU, with stand-ins for its heavy parts, against whatever hub the environment names.

`python -m tests.harness.workflows.publishing_standins SOCKET` runs commands for what `interpreter` writes:
quantizers, builders and engines are those of `builds.standins`; the machine has an H200 with both engines. Plans,
stages, the artifact, the preconditions and the upload are the real ones.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pipeline.plan.hardware
import pipeline.run
import pipeline.steps.quantize_step
from pipeline import cli
from pipeline.plan import BuildPlan
from pipeline.plan.hardware import Hardware, Quantizer
from runtime.artifact.labels import ENGINES_FOLDER
from runtime.text.prompt import Budgets, PromptRenderer
from tests.harness.builds import standins
from tests.harness.trt.lane import H200, model

PACKAGES = {**H200.packages, "vllm": "0.31.0", "llmcompressor": "0.14.0"}


def describe(cache: Path, quantize_python: Path | None, needs: tuple[str, ...] = ()) -> Hardware:
    machine = replace(H200, packages=PACKAGES)
    return Hardware(machine, free_disk=2**41, cores=2, quantizer=Quantizer(Path("python"), dict(PACKAGES)))


def compile_engine(model_dir: Path, out: Path, *, source: Path, plan: BuildPlan, progress: Any) -> None:
    """Write what TensorRT-LLM's builder would, without an engine in it."""
    assert plan.chat is not None
    assert plan.chat.trt is not None
    assert plan.chat.limits.max_batch_size == int(os.environ["TRT_MAX_BATCH_SIZE"])
    folder = out / ENGINES_FOLDER / str(plan.chat.trt.label)
    folder.mkdir(parents=True)
    standins.weights(folder / "rank0.engine", "engine")
    (folder / "config.json").write_text("{}")
    (out / "tokenizer.json").write_text("{}")
    standins.record("build")


CLIENT = """#!{python} -IS
import json, os, socket, sys
words = sys.argv[1:]
if words[:2] != ["-m", "pipeline"]:
    sys.exit("expected -m pipeline, found " + repr(words))
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([words[2:], dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(server, [len(asked).to_bytes(8, "big")], [1, 2])
    server.sendall(asked)
    sys.exit(int(server.recv(16) or b"96"))
"""


def interpreter(path: Path, address: Path) -> None:
    """Write an interpreter that knows `-m pipeline` alone, and has a server run it."""
    path.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    path.chmod(0o755)


def serve(address: Path) -> None:
    """Run commands, each in a child of this process, which has imported once what takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        # What loads a tokenizer and a template imports most of transformers.
        PromptRenderer(model(Path(folder)), Budgets(), think=False)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen()
        os.write(1, b"ready\n")  # past the buffer that each child writes with
        while True:
            client, _ = listening.accept()
            with client:
                size, outputs, _, _ = socket.recv_fds(client, 8, 2)
                asked = b""
                while len(asked) < int.from_bytes(size, "big"):
                    asked += client.recv(1 << 16)
                words, environment, folder = json.loads(asked)
                if (child := os.fork()) == 0:
                    os.chdir(folder)
                    os.environ.clear()
                    os.environ.update(environment)
                    for number, output in enumerate(outputs, 1):
                        os.dup2(output, number)
                    run(words)
                for output in outputs:
                    os.close(output)
                client.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def run(words: list[str]) -> NoReturn:
    """Run one command, and end this process with its code."""
    code: object = 1
    try:
        sys.argv = ["yap-pipeline", *words]
        cli.main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    for module, name, standin in standins.REPLACED:
        setattr(module, name, standin)
    both = {"vllm": standins.quantize, "trt": standins.quantize}
    pipeline.steps.quantize_step.QUANTIZERS = both  # type: ignore[assignment]
    pipeline.run.BUILDERS = {"vllm": standins.build, "trt": compile_engine}
    pipeline.plan.hardware.describe = describe
    serve(Path(sys.argv[1]))
