"""What might make attention of many replies sooner; a try, which no server has. vLLM's workers import this module.

FlashAttention cuts prompts up where a batch is too small to fill the GPU, and puts the pieces together in a kernel of
its own: 0.2 ms of a step with 256 replies, which fill it anyway. vLLM has one number of pieces for all batches. Here a
batch of replies that has a block of work for each of the GPU's processors is not cut up. A graph is captured and
replayed with the same numbers of requests and tokens, so both agree on it, as long as replies have graphs of their own.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backends import flash_attn

from runtime.engines.vllm import worker

# Of a Hopper GPU.
PROCESSORS = 132


class Worker(worker.Worker):
    """As the runtime's."""


def _in_one_piece() -> None:
    builder = flash_attn.FlashAttentionMetadataBuilder
    own = builder.build

    def build(self: Any, common_prefix_len: int, about: Any, fast_build: bool = False) -> Any:
        most = self.max_num_splits
        replies = about.max_query_len == 1 and about.num_reqs == about.num_actual_tokens
        if most and replies and about.num_reqs * self.num_heads_kv >= PROCESSORS:
            self.max_num_splits = 1
        try:
            return own(self, common_prefix_len, about, fast_build)
        finally:
            self.max_num_splits = most

    builder.build = build


_in_one_piece()
