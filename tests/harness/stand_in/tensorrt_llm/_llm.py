"""The stand-in's two `LLM` classes, and the output of a request."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tensorrt_llm._sampling import SamplingParams
from tests.harness.trt.api import VERSION, bind, entry, parameters

STEP_S = 0.0005

# Every instance that was made, newest last, for tests to look at.
MADE: list[LLM] = []


class Completion:
    """A reply so far, and what the last step added to it."""

    def __init__(self) -> None:
        self.text = self.text_diff = ""
        self.token_ids: list[int] = []
        self.token_ids_diff: list[int] = []
        self.finish_reason: str | None = None


class RequestOutput:
    """A request's output, which yields itself at each step; leaving the iteration aborts nothing."""

    def __init__(self, llm: LLM, prompt: list[int], params: SamplingParams) -> None:
        self._llm, self._params = llm, params
        self._last = prompt[-1]
        self._aborted = False
        self._steps = 0
        self.outputs = [Completion()]
        self.finished = False

    def abort(self) -> None:
        if self._params.logprobs is not None:
            self._llm.die()  # NVIDIA/TensorRT-LLM issue 10810
        self._aborted = True

    def aborted(self) -> bool:
        return self._aborted

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        await asyncio.sleep(STEP_S)
        if self._llm.dead:
            await asyncio.Event().wait()  # nobody answers any more
        completion, params = self.outputs[0], self._params
        completion.text_diff, completion.token_ids_diff = "", []
        if self._aborted:
            completion.finish_reason = "cancelled"
        else:
            self._last = self._llm.token_after(self._last)
            self._steps += 1
            ends = {params.end_id, *(params.stop_token_ids or [])}
            if self._last in ends and not params.ignore_eos:
                completion.finish_reason = "stop"
            else:
                completion.token_ids_diff = [self._last]
                completion.text_diff = self._llm.text_of(self._last)
                completion.token_ids.append(self._last)
                completion.text += completion.text_diff
                if self._steps == params.max_tokens:
                    completion.finish_reason = "length"
        if completion.finish_reason is not None:
            self.finished = True
            self._llm.running.discard(self)
        return self


class LLM:
    """The part that both backends share."""

    name: str
    arguments_model: str

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        bound = bind(f"{self.name}.__init__", arguments, keywords)
        known = {field["name"] for field in parameters(f"tensorrt_llm.llmapi.{self.arguments_model}")}
        for key in bound.get("kwargs", {}):
            if key not in known | {"_mpi_session", "backend"}:
                raise ValueError(f"{type(self).__name__} got invalid argument: {key}")
        self.arguments = {**bound, **bound.pop("kwargs", {})}
        self.dead = self.closed = False
        self.running: set[RequestOutput] = set()
        self.requests: list[RequestOutput] = []
        self.salts: list[str | None] = []
        self.max_seq_len = self._load(Path(self.arguments["model"]))
        self._vocabulary = json.loads((Path(self.arguments["tokenizer"]) / "tokenizer.json").read_bytes())["model"][
            "vocab"
        ]
        self._texts = {number: text for text, number in self._vocabulary.items()}
        MADE.append(self)

    def _load(self, folder: Path) -> int:
        raise AssertionError(folder)

    def generate_async(self, *arguments: Any, **keywords: Any) -> RequestOutput:
        call = bind("LLM.generate_async", arguments, keywords)
        if self.closed:
            raise RuntimeError("LLM is shutting down")
        asyncio.get_running_loop()
        params, prompt = call["sampling_params"], call["inputs"]
        assert isinstance(params, SamplingParams)
        if not call["streaming"]:
            raise AssertionError("the lane streams every request")
        if len(prompt) + params.max_tokens > self.max_seq_len:
            raise ValueError(f"prompt length ({len(prompt)}) + max_tokens ({params.max_tokens}) > {self.max_seq_len}")
        self.salts.append(call.get("cache_salt"))
        output = RequestOutput(self, prompt, params)
        self.running.add(output)
        self.requests.append(output)
        return output

    def token_after(self, token: int) -> int:
        return (token + 1) % len(self._texts)

    def text_of(self, token: int) -> str:
        return self._texts[token].replace("Ġ", " ")

    def get_stats(self, *arguments: Any, **keywords: Any) -> list[dict[str, Any]]:
        bind("LLM.get_stats", arguments, keywords)
        return [{"kvCacheStats": {"usedNumBlocks": len(self.running), "maxNumBlocks": 100}}]

    def shutdown(self, *arguments: Any, **keywords: Any) -> None:
        bind("LLM.shutdown", arguments, keywords)
        self.closed = True

    def die(self) -> None:
        """Behave as if the worker process had died."""
        self.dead = True

    def _check_health(self) -> bool:
        return not self.dead and not self.closed


class TrtLLM(LLM):
    """The backend that loads compiled engines."""

    name = "tensorrt_llm._tensorrt_engine.LLM"
    arguments_model = "TrtLlmArgs"

    def _load(self, folder: Path) -> int:
        config = json.loads((folder / "config.json").read_bytes())
        if config["version"] != VERSION:
            raise RuntimeError(f"the engine was built by {config['version']}, this is {VERSION}")
        build = config["build_config"]
        for name in ("max_batch_size", "max_num_tokens", "max_input_len", "max_seq_len"):
            # TensorRT-LLM 1.2 would compare these with its defaults instead, so the lane passes them.
            if self.arguments[name] is None or self.arguments[name] > build[name]:
                raise ValueError(f"{name} {self.arguments[name]} against the engine's {build[name]}")
        if getattr(self.arguments["kv_cache_config"], "dtype", "auto") != "auto":
            raise AssertionError("KvCacheConfig.dtype must be auto for TRT engines")
        return int(build["max_seq_len"])


class TorchLLM(LLM):
    """The backend that loads Hugging Face folders."""

    name = "tensorrt_llm.LLM"
    arguments_model = "TorchLlmArgs"

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        own = set(entry("tensorrt_llm.llmapi.TrtLlmArgs")["own_fields"])
        if wrong := own & keywords.keys() - {field["name"] for field in parameters("tensorrt_llm.llmapi.TorchLlmArgs")}:
            raise ValueError(f"{wrong}: import from tensorrt_llm._tensorrt_engine")
        super().__init__(*arguments, **keywords)

    def _load(self, folder: Path) -> int:
        if "architectures" not in json.loads((folder / "config.json").read_bytes()):
            raise ValueError("the PyTorch backend loads Hugging Face folders")
        return int(self.arguments["max_seq_len"])
