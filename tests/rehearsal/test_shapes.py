"""Shapes of published models: they have the parameters that their publishers count."""

import math

import jax
import pytest

from polgrad.policies import TransformerNetwork
from polgrad.policies.hub.config_json import config_from_settings, settings_from_config
from polgrad.rehearsal import shapes

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    # These three come with one vision tower and a projector of 1152 rows and a norm.
    "gemma-3-4b": 4_300_079_472 - 416_866_032 - 1152 * (2560 + 1),
    "gemma-3-12b": 12_187_325_040 - 416_866_032 - 1152 * (3840 + 1),
    "gemma-3-27b": 27_432_406_640 - 416_866_032 - 1152 * (5376 + 1),
}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_parameters_are_those_that_are_published(name):
    network = TransformerNetwork(shapes.find(name.upper()))
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == PUBLISHED[name]


def test_settings_of_a_published_file_give_the_shape():
    # What the text part of the file says where it differs from the family's defaults.
    told = {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21_504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    assert config_from_settings(told, tied=True) == shapes.find("gemma-3-27b")
    told = {
        "model_type": "gemma2",
        "vocab_size": 256_000,
        "hidden_size": 4608,
        "intermediate_size": 36_864,
        "num_hidden_layers": 46,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    }
    assert config_from_settings(told, tied=True) == shapes.find("gemma-2-27b")
    # transformers refuses 144.0 where its own files have 144.
    written = settings_from_config(shapes.find("gemma-2-27b"))["query_pre_attn_scalar"]
    assert written == 144 and type(written) is int


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="policy is 'gpt-2', expected one of smollm2-135m"):
        shapes.find("gpt-2")
