"""A vLLM that says garbage under load: a plugin of its own kind, which breaks it in every process while a file says so.

A row of a batch is taken for another, as a graph that was captured wrong or a kernel that reads a wrong table does it.
One request at a time is answered as ever.

    python -m tests.harness.faults.mixed_rows MODEL FOLDER   prints by how much each fault's replies are less probable

FOLDER is where `install_in` wrote the plugin; it must be on the path that Python imports from.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FILE = "YAP_TEST_VLLM_FAULT"
PLAIN = ""
FAULTS = ("attention", "blocks", "sampler", "rarely")
# Of so many steps one is wrong, for the fault that shows rarely.
SELDOM = 12
STREAMS, LONGEST_PROMPT, LONGEST_REPLY = 6, 48, 24


def install_in(folder: Path) -> dict[str, str]:
    """Write what makes vLLM load the plugin, and return the variables of a process that shall."""
    described = folder / "yap_test_faults-1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: yap-test-faults\nVersion: 1\n")
    entry = f"[vllm.general_plugins]\nyap_test_faults = {__name__}:break_vllm\n"
    (described / "entry_points.txt").write_text(entry)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[3])]), FILE: str(folder / "fault")}


def told() -> str:
    """The fault that is on."""
    try:
        return Path(os.environ[FILE]).read_text()
    except OSError:
        return PLAIN


def break_vllm() -> None:
    """Put the faults into vLLM's attention and sampler; they do nothing while none is on."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
    from vllm.v1.sample.sampler import Sampler

    attend, sample = CPUAttentionBackendImpl.forward, Sampler.forward
    if getattr(attend, "breaks", False):
        return  # plugins may be loaded more than once
    steps = 0

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        metadata = named.get("attn_metadata", arguments[5] if len(arguments) > 5 else None)
        rows = 0 if metadata is None else len(metadata.seq_lens)
        fault = told() if rows > 1 else PLAIN
        if fault == "blocks":
            kept = metadata.block_table
            metadata.block_table = kept.roll(1, 0).contiguous()
            try:
                return attend(self, *arguments, **named)
            finally:
                metadata.block_table = kept
        found = attend(self, *arguments, **named)
        if fault == "attention":
            found.copy_(found.roll(1, 0))
        return found

    def choose(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal steps
        found = sample(self, *arguments, **named)
        steps += 1
        fault = told() if len(found.sampled_token_ids) > 1 else PLAIN
        if fault == "sampler" or (fault == "rarely" and steps % SELDOM == 0):
            found.sampled_token_ids = found.sampled_token_ids.roll(1, 0)
        return found

    forward.breaks = True  # type: ignore[attr-defined]
    CPUAttentionBackendImpl.forward = forward
    Sampler.forward = choose


async def losses(folder: Path, faults: Sequence[str], switch: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return what each fault's replies lose, and whether that passes; one engine, broken and plain in turn."""
    from pipeline.embedded.texts import heldout_texts
    from pipeline.validate.text_under_load import asked_of, loss_of, replies_of, score_of
    from runtime.engines import EngineOptions
    from runtime.engines.vllm.engine import VllmEngine
    from runtime.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    texts = [list(tokenizer(text)["input_ids"]) for text in heldout_texts()]
    asked = asked_of(texts, STREAMS, longest_prompt=LONGEST_PROMPT, longest_reply=LONGEST_REPLY)
    engine = VllmEngine(folder, EngineOptions(max_model_len=256, max_num_seqs=STREAMS, cpu_kv_cache_gib=0.25))
    await engine.start()
    try:
        scores = []
        for fault in (PLAIN, *faults):
            await engine.reset_caches()
            switch(fault)
            replies = await replies_of(engine, asked, STREAMS)
            switch(PLAIN)
            await engine.reset_caches()  # what a fault computed must not be read
            scores.append(await score_of(engine, asked, replies))
        found = [loss_of(score, scores[0]) for score in scores[1:]]
        return [
            {"fault": fault, "told": str(loss), "passed": loss.passed}
            for fault, loss in zip(faults, found, strict=True)
        ]
    finally:
        await engine.shutdown()


if __name__ == "__main__":
    file = Path(os.environ[FILE])
    print(json.dumps(asyncio.run(losses(Path(sys.argv[1]), (PLAIN, *FAULTS), file.write_text))))
