"""The contract with vLLM: what is used of it, all in this room, and how.

vLLM promises little of what a server needs for speed. So each use is a seam: named in the `table` with what it needs,
looked at before an engine starts (`seams.check`), and used through the functions offered here, so that the names stand
in this room alone. A required seam that is broken is a refusal; any other is a warning, and vLLM's own way is gone
instead.

`tests/data/vllm_api.json` has all needs as several releases meet them. vLLM is imported inside the functions: it reads
the environment when it is imported, and that is prepared first. May import `engines`.
"""

from runtime.engines.vllm.contract.backlog import take_together
from runtime.engines.vllm.contract.life import (
    dead,
    forked,
    llm_class,
    on_cpu,
    preload,
    shut_down,
    start,
)
from runtime.engines.vllm.contract.options import (
    attention_backends,
    cache_types,
    compilation,
    engine_arguments,
    fusions,
    graph_modes,
    linear_backends,
)
from runtime.engines.vllm.contract.requests import (
    add,
    ask_core,
    begin_after,
    block_tokens,
    delta_parameters,
    ends_in_text,
    fast_text,
    outputs_of,
    refused,
    scoring_parameters,
    wake,
)
from runtime.engines.vllm.contract.step import (
    Core,
    Step,
    answer,
    arrival,
    batches,
    change_step,
    executors,
    lost_a_rank,
    nothing_to_schedule,
    scheduler_figures,
)
from runtime.engines.vllm.contract.table import (
    GRAPH_FIELD,
    GRAPH_LIST,
    RECORDED,
    SEAMS,
    seams,
)
from runtime.engines.vllm.contract.workers.attention import full_batches_in_one_piece
from runtime.engines.vllm.contract.workers.cache_key import (
    key_model_as_at,
    key_no_places,
    key_size_as_measured,
    model_key,
)
from runtime.engines.vllm.contract.workers.cpu import (
    ask_for_matrix_unit,
    flatten_rows,
    multiply_integers_in_float,
    say_threads,
    start_threads,
)
from runtime.engines.vllm.contract.workers.graphs import (
    LaterGraphs,
    decode_in_graphs_of_its_own,
    finish_steps,
    later_graphs,
    with_decoding,
)
from runtime.engines.vllm.contract.workers.loading import (
    import_no_unused_kernels,
    look_for_the_first_attention,
    read_on_one_core_else,
)
from runtime.engines.vllm.contract.workers.memory import (
    give_cache,
    memory_factors,
    memory_of,
)

__all__ = [
    "GRAPH_FIELD",
    "GRAPH_LIST",
    "RECORDED",
    "SEAMS",
    "Core",
    "LaterGraphs",
    "Step",
    "add",
    "answer",
    "arrival",
    "ask_core",
    "ask_for_matrix_unit",
    "attention_backends",
    "batches",
    "begin_after",
    "block_tokens",
    "cache_types",
    "change_step",
    "compilation",
    "dead",
    "decode_in_graphs_of_its_own",
    "delta_parameters",
    "ends_in_text",
    "engine_arguments",
    "executors",
    "fast_text",
    "finish_steps",
    "flatten_rows",
    "forked",
    "full_batches_in_one_piece",
    "fusions",
    "give_cache",
    "graph_modes",
    "import_no_unused_kernels",
    "key_model_as_at",
    "key_no_places",
    "key_size_as_measured",
    "later_graphs",
    "linear_backends",
    "llm_class",
    "look_for_the_first_attention",
    "lost_a_rank",
    "memory_factors",
    "memory_of",
    "model_key",
    "multiply_integers_in_float",
    "nothing_to_schedule",
    "on_cpu",
    "outputs_of",
    "preload",
    "read_on_one_core_else",
    "refused",
    "say_threads",
    "scheduler_figures",
    "scoring_parameters",
    "seams",
    "shut_down",
    "start",
    "start_threads",
    "take_together",
    "wake",
    "with_decoding",
]
