"""Whole folders of models, planned by the command: what cannot work is one line and exit 64 before any work."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings as pipeline_settings
from pipeline import source
from pipeline.checkpoint.tensors import Tensor
from pipeline.plan import BuildPlan, BuildRequest, planner, tool_plan
from pipeline.plan.chat.chat_plan import CPU_HEAD_SIZES
from pipeline.problem import WrongRequestError
from runtime.host.machine import Gpu, Machine
from tests.harness.builds.plans import CPU, GIB, HOPPER, LLAMA_8B, Row, hardware, make, model
from tests.harness.models import tiny

EIGHT_GPUS = hardware(
    Machine(
        gpus=tuple(Gpu("H100", 90, 80 * GIB, 80 * GIB) for _ in range(8)),
        memory_bytes=900 * GIB,
        packages={"vllm": "0.30.0", "tensorrt-llm": "1.2.1"},
    )
)
ROOT = Path(__file__).resolve().parents[4]


def plan(folder: Path, method: str = "awq", lane: str = "cpu", **env: str) -> BuildPlan | list[str]:
    """The plan of a folder, or its problems, as the command makes them; any other exception fails the test."""
    facts = source.with_known_config(source.read_facts(str(folder), "CHAT_MODEL"), "CHAT_MODEL")
    facts = source.with_prompt_format(facts, think=False)
    values = pipeline_settings.load({"CHAT_MAX_LEN": "512", "CHAT_MAX_OUT": "128", **env}).settings
    here = CPU if lane == "cpu" else HOPPER
    try:
        return planner.make_plan(
            BuildRequest(chat=str(folder), lanes=(lane,), method=method), values, facts, None, here
        )
    except WrongRequestError as error:
        return [str(problem) for problem in error.problems]


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tiny.llama(tmp_path / "llama")
    change(folder, max_position_embeddings=8192)
    return folder


def only(found: BuildPlan | list[str]) -> str:
    assert isinstance(found, list), "it was planned"
    assert len(found) == 1, found
    return found[0]


def planned(found: BuildPlan | list[str]) -> BuildPlan:
    assert isinstance(found, BuildPlan), found
    return found


def test_a_plan_counts_the_weights_that_are_there(llama: Path) -> None:
    made = planned(plan(llama))
    assert made.chat is not None
    assert made.chat.layers is not None
    assert made.chat.layers.from_headers
    stored = sum(tensor.elements for tensor in made.chat.source.tensors.values())
    assert made.chat.parameters == made.chat.layers.parameters == stored


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": [4, "x"]}, "num_attention_heads"),
        ({"text_config": [1]}, "text_config"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures"),
        ({"model_type": None}, "model_type"),
        ({"model_type": "a-model-of-next-year"}, "a-model-of-next-year"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.Mine"}}, "auto_map"),
        ({"quantization_config": "awq"}, "quantization_config"),
        ({"quantization_config": {"quant_method": ["awq"]}}, "quant_method"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": [1]}}, "config_groups"),
    ],
)
def test_what_cannot_be_understood_is_one_line(llama: Path, changes: dict[str, Any], told: str) -> None:
    change(llama, **changes)
    line = only(plan(llama))
    assert line.startswith("CHAT_MODEL: expected ")
    assert told in line
    assert line.isprintable()


def test_values_per_layer_and_sections_of_null_are_planned() -> None:
    lists = {"intermediate_size": [14336] * 32, "num_key_value_heads": [8] * 31 + [4], "text_config": None}
    nested = {"model_type": "gemma3n", "architectures": ["Gemma3nForConditionalGeneration"]}
    for config in (LLAMA_8B | lists, nested | {"text_config": LLAMA_8B | lists}):
        made = make(Row("lists", lane="vllm", method="8bit", on=HOPPER, chat=model(config), tool=None))
        assert made.chat is not None


def test_a_width_that_no_group_divides_is_kept_in_float_where_it_is_rare_and_told_where_it_is_not(llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(llama / "model.safetensors")
    import torch

    save_file(weights | {"model.layers.0.extra.weight": torch.zeros(4, 18)}, llama / "model.safetensors")
    made = planned(plan(llama, "gptq"))
    assert made.chat is not None
    assert r"re:.*\.extra$" in made.chat.kept_in_float
    assert any(decision.name == "kept in float" and "18" in decision.reason for decision in made.decisions)
    save_file(weights | {"model.layers.0.extra.weight": torch.zeros(4096, 18)}, llama / "model.safetensors")
    assert "expected widths that 32 divides" in only(plan(llama, "gptq"))
    planned(plan(llama, "8bit"))


def test_a_group_never_crosses_the_cut_between_gpus() -> None:
    qwen = LLAMA_8B | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192, "num_hidden_layers": 80}
    large = model(qwen | heads | {"intermediate_size": 29568})

    def row(parallel: str, method: str, lane: str = "vllm", chat: Any = large, **env: str) -> Row:
        variables = {"TENSOR_PARALLEL_SIZE": parallel, **env}
        return Row(parallel, lane=lane, method=method, on=EIGHT_GPUS, chat=chat, tool=None, env=variables)

    made = make(row("2", "4bit"))
    assert made.chat is not None
    assert made.chat.group_size == 64
    with pytest.raises(WrongRequestError, match=r"expected a number that leaves groups of 32 whole in .*down_proj"):
        make(row("8", "4bit"))
    assert make(row("8", "fp8")).chat is not None
    # gate and up have as many outputs as down has inputs.
    with pytest.raises(WrongRequestError, match="expected a divisor of the 29570 inputs"):
        make(row("4", "fp8", chat=model(qwen | heads | {"intermediate_size": 29570})))


@pytest.mark.parametrize(
    ("heads", "key_value", "parallel", "told"),
    [
        (28, 4, 8, "a divisor of the model's 28 heads"),
        (14, 2, 4, "a divisor of the model's 14 heads"),
        (32, 8, 8, None),
        (32, 4, 8, None),  # a head of keys and values on two GPUs
        (24, 6, 4, "a divisor or a multiple of the model's 6 heads of keys and values"),
        ([32, 12], 4, 8, "a divisor of the model's 12 heads"),
        (32, [8, 3], 4, "a divisor or a multiple of the model's 3 heads"),
    ],
)
@pytest.mark.parametrize("lane", ["vllm", "trt"])
def test_heads_are_shared_as_the_engines_share_them(
    heads: Any, key_value: Any, parallel: int, told: str | None, lane: str
) -> None:
    config = LLAMA_8B | {"num_attention_heads": heads, "num_key_value_heads": key_value, "head_dim": 128}
    env = {"TENSOR_PARALLEL_SIZE": str(parallel), "TRT_MAX_BATCH_SIZE": "8"}
    row = Row("heads", lane=lane, method="8bit", on=EIGHT_GPUS, chat=model(config), tool=None, env=env)
    if told is None:
        assert make(row).chat is not None
        return
    with pytest.raises(WrongRequestError) as error:
        make(row)
    (line,) = [str(problem) for problem in error.value.problems]
    assert line.startswith(f"TENSOR_PARALLEL_SIZE: expected {told}")
    assert "set it to 1" in line


def test_one_vector_for_all_heads_is_on_every_gpu() -> None:
    config = LLAMA_8B | {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_key_value_heads": 3}
    env = {"TENSOR_PARALLEL_SIZE": "8"}
    assert make(Row("latent", lane="vllm", method="fp8", on=EIGHT_GPUS, chat=model(config), tool=None, env=env)).chat


def test_vision_and_its_projector_stay_in_float(tmp_path: Path) -> None:
    from tests.harness.models.families import BY_SLUG

    folder = BY_SLUG["mistral-3--vision"].write(tmp_path / "model")
    made = planned(plan(folder, "gptq"))
    assert made.chat is not None
    kept = made.chat.kept_in_float
    assert {r"re:.*vision_tower\..*", r"re:.*multi_modal_projector\..*"} <= set(kept)
    assert all("vision" not in layer.name and "projector" not in layer.name for layer in made.chat.layers.linear)  # type: ignore[union-attr]
    assert made.chat.group_size == 32


def test_a_tokenizer_that_is_sentencepiece_alone_is_planned(llama: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    text = llama.parent / "text.txt"
    text.write_text("\n".join(f"the cat number {n} sat on the mat and said hello to you" for n in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(llama / "tokenizer"), vocab_size=120, model_type="bpe", minloglevel=2
    )
    (llama / "tokenizer.vocab").unlink()
    (llama / "tokenizer.json").unlink()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    (llama / "tokenizer_config.json").write_text(json.dumps(special))
    found = plan(llama)
    # Planned, or told in one line: never a surprise after the weights were loaded.
    if isinstance(found, list):
        assert "tokenizer" in only(found)


def rewrite(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r"layers\.1\.mlp\.down_proj", "found no model.layers.1.mlp.down_proj.weight"),
        (r"layers\.1\.", "expected 2 layers"),
    ],
)
@pytest.mark.parametrize("method", ["none", "8bit", "awq"])
def test_a_model_that_lacks_weights_is_told_before_anything_is_made_up(
    llama: Path, pattern: str, told: str, method: str
) -> None:
    rewrite(llama, lambda weights: {name: w for name, w in weights.items() if not re.search(pattern, name)})
    assert told in only(plan(llama, method))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 1}, "expected 1 layers"),
        ({"num_hidden_layers": 3}, "expected 3 layers"),
        ({"vocab_size": 300}, "expected an embedding of 300 tokens"),
        ({"tie_word_embeddings": False}, "expected a head of its own"),
        ({"dtype": "int8"}, "found 'int8'"),
        ({"dtype": "BF17"}, "found 'BF17'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5, "rope_theta": 1e4}}, "rope_parameters.factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "x"}}, "rope_scaling.factor"),
        ({"rope_parameters": {"full": {"rope_type": "linear", "factor": 0.5}}}, "rope_parameters.factor"),
    ],
)
def test_a_config_of_another_model_is_told(llama: Path, changes: dict[str, Any], told: str) -> None:
    change(llama, **changes)
    assert told in only(plan(llama))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "float64"])
def test_weights_that_no_engine_computes_with_are_told(llama: Path, dtype: str) -> None:
    import torch

    rewrite(llama, lambda weights: {name: w.float().to(getattr(torch, dtype)) for name, w in weights.items()})
    line = only(plan(llama))
    assert "quantization_config" in line or "float64 in " in line


@pytest.mark.parametrize(
    "stated",
    [
        {"quant_method": "awq", "bits": 4, "group_size": 32},
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {"quant_method": "fp8"},
        {"quant_method": "mxfp4"},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"load_in_8bit": True, "llm_int8_threshold": 6.0},
        {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}},
        {"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}}},
        {"quant_method": "compressed-tensors", "bits": 4},
    ],
)
@pytest.mark.parametrize("lane", ["cpu", "vllm"])
def test_a_config_that_calls_float_weights_quantized_is_told(llama: Path, stated: dict[str, Any], lane: str) -> None:
    change(llama, quantization_config=stated)
    line = only(plan(llama, lane=lane))
    assert line.startswith("CHAT_MODEL: expected ")
    assert line.endswith("remove quantization_config from config.json, or bring the weights that it speaks of")


def test_shards_without_an_index_are_told(llama: Path) -> None:
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    (llama / "model.safetensors").rename(llama / first)
    assert "and all 2 shards" in only(plan(llama))
    (llama / second).write_bytes((llama / first).read_bytes())
    assert f"found none, and {first} to {second}" in only(plan(llama))
    index = {"weight_map": {"model.norm.weight": first, "lm_head.bias": second}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "found none for lm_head.bias" in only(plan(llama))
    index["weight_map"] = {"model.norm.weight": first}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    planned(plan(llama))


def test_what_is_thrown_away_does_not_fail(llama: Path) -> None:
    change(llama, "generation_config.json", do_sample=False, temperature=0.9, top_p=0.6)
    planned(plan(llama))
    (llama / "picture.png").write_bytes(b"png")
    (llama / "picture.png").chmod(0)
    (llama / "dangling").symlink_to("nowhere")
    planned(plan(llama))


@pytest.mark.parametrize(
    ("lane", "stated", "told"),
    [
        ("vllm", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "found bitsandbytes"),
        ("vllm", {"quant_method": "gptq", "bits": 3}, "W3A16"),
        ("vllm", {"quant_method": "gptq", "bits": 4, "sym": False}, "sym: false"),
        ("vllm", {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, "of modelopt, vllm loads FP8"),
        ("cpu", {"quant_method": "mxfp4"}, "found mxfp4"),
        ("cpu", {"quant_method": "fp8"}, "found fp8"),
    ],
)
def test_a_source_in_a_format_without_kernels_is_refused(lane: str, stated: dict[str, Any], told: str) -> None:
    row = Row("format", lane=lane, on=HOPPER if lane == "vllm" else CPU, tool=None)
    chat = model(LLAMA_8B | {"quantization_config": stated}, name="org/Model-AWQ", weights=5 * GIB)
    with pytest.raises(WrongRequestError) as error:
        make(Row(**{field: getattr(row, field) for field in ("name", "lane", "on", "tool")}, chat=chat))
    (line,) = [str(problem) for problem in error.value.problems]
    assert told in line
    assert line.endswith("name the float model")


def test_groups_that_came_quantized_are_whole_on_every_gpu() -> None:
    stated = {"quant_method": "awq", "bits": 4, "group_size": 128}
    qwen = LLAMA_8B | {"intermediate_size": 29568, "hidden_size": 8192, "num_attention_heads": 64}
    chat = model(qwen | {"quantization_config": stated}, name="org/qwen", weights=40 * GIB)
    for parallel, told in (("1", None), ("2", r"groups of 128 whole in .*down_proj \(29568 inputs\)")):
        env = {"TENSOR_PARALLEL_SIZE": parallel}
        row = Row("groups", lane="vllm", on=EIGHT_GPUS, chat=chat, tool=None, env=env)
        if told is None:
            assert make(row).chat
        else:
            with pytest.raises(WrongRequestError, match=told):
                make(row)


def test_what_another_engine_needs_is_not_fetched(tmp_path: Path) -> None:
    checkpoint = {"architecture": "LlamaForCausalLM", "dtype": "float16", "quantization": {"quant_algo": "FP8"}}
    sizes = {"config.json": 1, "model.safetensors": GIB, "trt-llm/checkpoints/config.json": 1}
    sizes |= {
        "tokenizer.json": 1,
        "trt-llm/checkpoints/rank0.safetensors": GIB,
        "original/consolidated.safetensors": GIB,
    }
    both = replace(model(LLAMA_8B), sizes=sizes, checkpoint=checkpoint)
    made = make(Row("vllm", lane="vllm", method="8bit", on=HOPPER, chat=both, tool=None))
    assert made.chat is not None
    assert set(made.chat.source.wanted) == {"config.json", "model.safetensors", "tokenizer.json"}
    env = {"TRT_MAX_BATCH_SIZE": "8"}
    made = make(Row("trt", lane="trt", on=EIGHT_GPUS, chat=both, tool=None, env=env))
    assert made.chat is not None
    inside = {"trt-llm/checkpoints/config.json", "trt-llm/checkpoints/rank0.safetensors"}
    assert set(made.chat.source.wanted) == {"config.json", "tokenizer.json", *inside}


def test_gpt_oss_as_published_is_served_as_it_is() -> None:
    stated = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    config = LLAMA_8B | {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "quantization_config": stated}
    chat = model(config, name="org/gpt-oss", weights=12 * GIB)
    made = make(Row("gpt-oss", lane="vllm", on=HOPPER, chat=chat, tool=None))
    assert made.chat is not None
    assert (made.chat.scheme, made.chat.calibration) == ("MXFP4", None)
    assert made.chat.prequantized is not None
    assert made.chat.prequantized.kept == ("model.layers.*.self_attn", "lm_head")


def test_experts_that_the_quantizer_cannot_take_apart_are_told() -> None:
    config = LLAMA_8B | {"model_type": "jetmoe", "architectures": ["JetMoeForCausalLM"], "num_local_experts": 8}
    config |= {"num_hidden_layers": 2}
    with pytest.raises(WrongRequestError, match="cannot take apart the experts of jetmoe"):
        make(Row("experts", lane="vllm", method="fp8", on=HOPPER, chat=model(config), tool=None))
    assert make(Row("experts", lane="vllm", method="none", on=HOPPER, chat=model(config), tool=None)).chat


@pytest.mark.parametrize("name", ["a b c", "模型", "x[b]y", "two\nlines", "~tilde", "per%cent", "-dash"])
def test_any_name_of_a_folder_is_planned_or_told_in_one_line(llama: Path, name: str) -> None:
    folder = llama.rename(llama.parent / name)
    change(folder, hidden_size="wide")
    line = only(plan(folder))
    assert line.isprintable()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "an empty file"),
        (b"[]", "found []"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"model_type": "llama"}'.encode("utf-16"), "another encoding"),
        (b"[" * 200_000, "nested too deeply"),
    ],
    ids=["empty", "list", "BOM", "UTF-16", "nested"],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_the_command_ends_in_one_line_and_exit_64(llama: Path, name: str, content: bytes, told: str) -> None:
    (llama / name).write_bytes(content)
    found = only(plan(llama))
    assert told in found
    if (name, content) == ("config.json", b"[]"):
        command = [sys.executable, "-m", "pipeline", "plan", "--cpu", "8bit", str(llama)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 64
        assert "Traceback" not in done.stderr
        assert found in done.stderr.replace("\n", " ") or "JSON object" in done.stderr


def test_conv1d_is_told_before_anything_is_downloaded() -> None:
    gpt2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12}
    config = gpt2 | {"vocab_size": 50257, "n_positions": 8192}
    with pytest.raises(WrongRequestError, match="expected linear layers, to be quantized, found transformers' Conv1D"):
        make(Row("gpt2", method="8bit", chat=model(config), tool=None))
    assert make(Row("gpt2", method="none", chat=model(config), tool=None)).chat


@pytest.mark.parametrize(("lane", "method"), [("cpu", "awq"), ("trt", "4bit")])
def test_calibration_reads_no_more_than_the_context(lane: str, method: str) -> None:
    config = LLAMA_8B | {"max_position_embeddings": 1024}
    env = {"CHAT_MAX_LEN": "512", "CHAT_MAX_OUT": "128", "TRT_MAX_BATCH_SIZE": "8", "TRT_CALIB_SEQLEN": "4096"}
    here = CPU if lane == "cpu" else EIGHT_GPUS
    made = make(Row("context", lane=lane, method=method, on=here, chat=model(config), tool=None, env=env))
    assert made.chat is not None
    assert made.chat.calibration is not None
    assert made.chat.calibration.sequence_length == 1024
    assert any("the model was made for 1024 tokens" in decision.reason for decision in made.decisions)


def with_tensors(facts: Any, *names: str) -> Any:
    tensors = {name: Tensor("I32" if name.endswith("qweight") else "BF16", (512, 4096), 1) for name in names}
    return replace(facts, tensors=tensors)


def test_what_the_headers_say_goes_before_a_name() -> None:
    layer = "model.layers.0.mlp.up_proj"
    named = model(name="org/Model-AWQ", weights=5 * GIB)
    in_float = with_tensors(named, f"{layer}.weight")
    made = make(Row("float", lane="vllm", method="fp8", on=HOPPER, chat=in_float, tool=None))
    assert made.chat is not None
    assert made.chat.prequantized is None
    packed = with_tensors(named, f"{layer}.qweight", f"{layer}.scales")
    made = make(Row("packed", lane="vllm", on=HOPPER, chat=packed, tool=None))
    assert made.chat is not None
    assert made.chat.prequantized is not None


def test_quantized_weights_of_which_no_config_speaks_are_told() -> None:
    layer = "model.layers.0.mlp.up_proj"
    silent = with_tensors(model(name="org/model", weights=5 * GIB), f"{layer}.qweight", f"{layer}.scales")
    with pytest.raises(WrongRequestError, match=rf"for weights that came quantized, found none, and {layer}.qweight"):
        make(Row("silent", lane="vllm", method="fp8", on=HOPPER, chat=silent, tool=None))


def test_an_encoder_with_a_decoder_is_no_chat_model() -> None:
    t5 = LLAMA_8B | {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    with pytest.raises(WrongRequestError, match="expected a decoder alone"):
        make(Row("t5", lane="vllm", method="fp8", on=HOPPER, chat=model(t5), tool=None))


@pytest.mark.parametrize("head", tool_plan.HEADS)
@pytest.mark.parametrize(("outputs", "stated"), [(2, 2), (3, 2), (1, 2), (2, 3)])
def test_a_classifier_has_a_label_for_each_output(head: str, outputs: int, stated: int) -> None:
    """Transformers loads no head of another size; most of all none of a config that names no labels."""
    names = ("chat", "take_screenshot", "play_music")[:stated]
    config = {"architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(names))}
    layers = {"encoder.layer.0.self_attn.out_proj.weight": Tensor("F32", (32, 32), 4096)}
    weights = {**layers, head: Tensor("F32", (outputs, 32), 128)}
    facts = source.SourceFacts("org/tool", "hub", "org/tool", config=config, tensors=weights)
    request = BuildRequest(tool="org/tool", lanes=("cpu",))
    values = pipeline_settings.load({}).settings
    told = f"TOOL_MODEL: expected a label for each of the {outputs} outputs of org/tool, found {stated} labels"
    try:
        planner.make_plan(request, values, None, facts, CPU)
        assert outputs == stated
    except WrongRequestError as error:
        problems = [str(problem) for problem in error.problems]
        assert any(problem.startswith(told) for problem in problems) is (outputs != stated), problems


@pytest.mark.parametrize(
    ("lane", "config", "told"),
    [
        ("cpu", {"head_dim": 16}, True),
        ("cpu", {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}, True),
        ("cpu", {"hidden_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}, True),
        ("cpu", {"head_dim": 128}, False),
        ("cpu", {}, False),
        ("cpu", {"head_dim": 16, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, False),
        ("vllm", {"head_dim": 16}, False),
    ],
)
def test_heads_that_the_cpu_has_no_kernel_for_are_told_before_anything_is_built(
    lane: str, config: dict[str, int], told: bool
) -> None:
    on = CPU if lane == "cpu" else HOPPER
    plan = make(Row("heads", lane=lane, method="none", on=on, chat=model(LLAMA_8B | config), tool=None))
    reasons = [decision.reason for decision in plan.decisions if decision.name == "head size"]
    assert [("another lane" in reason) for reason in reasons] == [True] * told


def test_the_sizes_of_heads_are_those_of_the_installed_engine() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("needs vLLM")
    text = (Path(spec.origin).parent / "v1/attention/backends/cpu_attn.py").read_text("utf-8")
    listed = re.search(r"def get_supported_head_sizes.*?return \[([\d, ]+)\]", text, re.DOTALL)
    assert listed
    assert tuple(map(int, listed[1].split(","))) == CPU_HEAD_SIZES
