"""What this project changes in vLLM's workers, the processes that run the model.

On a CPU they ask for its matrix unit before they use it, and multiply INT8 matrices in any shape. And they find a
compile cache where the artifact has it: vLLM counts the model's folder into the key of its compile cache, so a cache
that was filled where an artifact was built would never be found where it is served. vLLM imports the module in every
worker, because `Worker` is named in its engine arguments.
"""

from __future__ import annotations

from runtime.engines.vllm import contract

# Stands in the key for the model's folder, wherever that is.
PLACEHOLDER_MODEL = "artifact"


class Worker:
    """Adds one question to vLLM's own worker."""

    def model_key(self) -> str:
        """What this worker counts of the model into the key of its compile cache."""
        return contract.model_key(self)


if contract.seams.holds("cache key"):
    contract.key_model_as_at(PLACEHOLDER_MODEL)
if contract.on_cpu():
    contract.ask_for_matrix_unit()
    contract.flatten_rows()
