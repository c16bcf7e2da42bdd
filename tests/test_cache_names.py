"""By what name models take and give their cache."""

from __future__ import annotations

import inspect

import pytest
from transformers import Cache

from conftest import Row, make_inputs
from zooprune.cache_names import CACHE, cache_of


def test_models_take_and_give_the_cache_by_that_name(llava):
    decoder = llava.get_decoder()
    for module in (llava, decoder, decoder.layers[0], decoder.layers[0].self_attn):
        assert CACHE in inspect.signature(module.forward).parameters
    assert isinstance(llava(**make_inputs(Row(1, 6)), use_cache=True)[CACHE], Cache)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_found_by_either_name(name):
    cache = object()
    assert cache_of({"cache": None, "past_key_values": None} | {name: cache}) is cache
    assert cache_of({name: cache}) is cache
    assert cache_of({"use_cache": True}) is None
