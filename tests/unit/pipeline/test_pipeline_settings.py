"""The pipeline's environment: defaults, and everything wrong at once."""

from __future__ import annotations

from pipeline.settings import PipelineSettings, load


def test_defaults_are_what_no_environment_gives() -> None:
    loaded = load({})
    assert loaded.problems == ()
    assert loaded.settings == PipelineSettings()
    assert (loaded.settings.awq_nsamples, loaded.settings.awq_seqlen) == (64, 2048)


def test_every_wrong_variable_is_told_and_the_rest_still_counts() -> None:
    loaded = load({"AWQ_NSAMPLES": "-3", "AWQ_SEQLEN": "long", "CHAT_MAX_OUT": "200", "UNRELATED": "x"})
    assert [problem.where for problem in loaded.problems] == ["AWQ_NSAMPLES", "AWQ_SEQLEN"]
    assert loaded.settings.chat_max_out == 200
