"""Benchmarks, as commands: `make bench` runs those that fit any machine; `tests/gpu/` holds those for a GPU.

All of them send the same work: unique prompts, so that the prefix cache cannot answer for one contender only, and the
same sampling. Ratios are taken between contenders measured in one run on one machine.
"""
