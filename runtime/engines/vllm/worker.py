"""What this project changes in vLLM's workers, the processes that run the model.

On a CPU they ask for its matrix unit before they use it, multiply INT8 matrices in any shape and those in bfloat16 in
float32 where the CPU has only that, and bind their threads to cores where they were forked. And they find a compile
cache where the artifact has it: vLLM counts the model's folder into the key of its compile cache, so a cache that was
filled where an artifact was built would never be found where it is served. vLLM imports the module in every worker,
because `Worker` is named in its engine arguments.
"""

from __future__ import annotations

import os

from runtime.engines.vllm import contract, threads
from runtime.engines.vllm.lifeline import end_with_parent
from runtime.engines.vllm.memory_plan import Facts, key_of
from runtime.host import arithmetic, machine

# Stands in the key for the model's folder, wherever that is.
PLACEHOLDER_MODEL = "artifact"


# Threads that were bound here, each with its core.
_bound: list[tuple[int, int]] = []


class Worker:
    """Adds questions to vLLM's own worker."""

    _later: contract.LaterGraphs | None = None

    def model_key(self) -> str:
        """What this worker counts of the model into the key of its compile cache."""
        return contract.model_key(self)

    def memory_facts(self) -> Facts | None:
        """What this worker has beside its weights; none where its KV cache is not measured."""
        memory = contract.memory_of(self)
        if memory is None:
            return None
        here = machine.described()
        gpu = {"gpus": [(gpu.name, gpu.memory_bytes) for gpu in here.gpus[:1]], "driver": here.driver}
        packages = {"torch": here.packages.get("torch"), "cuda": here.torch_cuda}
        return Facts(key_of(contract.memory_factors(self) | gpu | packages), *memory)

    def expect_cache(self, sizes: list[int]) -> None:
        """Lay out a KV cache of this rank's size."""
        contract.give_cache(self, sizes[self.rank])  # type: ignore[attr-defined]

    def few_graphs_first(self, any_mode: bool) -> bool:
        """Leave most graphs for later, where that can be (`contract.later_graphs`); called before any is captured."""
        self._later = contract.later_graphs(self, any_mode=any_mode)
        return self._later is not None

    def next_graph(self) -> int:
        """Capture the graphs of one size that was left for later; tell how many are left, -1 where none ever was."""
        if self._later is None:
            return -1
        contract.finish_steps()
        return self._later.capture_next()

    def bound_threads(self) -> list[tuple[int, int]]:
        """Threads of this worker that were bound here, each with its core; none where OpenMP binds them."""
        return list(_bound)


if contract.seams.holds("cache key"):
    contract.key_model_as_at(PLACEHOLDER_MODEL)
    contract.key_size_as_measured()
    contract.key_no_places()
if not contract.on_cpu():
    contract.look_for_the_first_attention()
    contract.import_no_unused_kernels()
    if contract.seams.holds("weights on many cores"):
        contract.read_on_one_core_else()
    if contract.seams.holds("decoding graphs"):
        contract.decode_in_graphs_of_its_own()
    if contract.seams.holds("attention in one piece"):
        contract.full_batches_in_one_piece()
if contract.on_cpu():
    contract.ask_for_matrix_unit()
    contract.flatten_rows()
    arithmetic.multiply_in_float32()
    contract.multiply_integers_in_float()
    if contract.forked():
        # What the server has open is open here: nothing of it may outlive the engine.
        end_with_parent()
        _bound += threads.bind(threads.cores_of(os.environ), contract.say_threads, contract.start_threads)
