"""Texts that name policies."""

import dataclasses
import re

import pytest

from snapkv_local import policies
from snapkv_local.errors import ConfigError
from snapkv_local.policies.pyramid import Pyramid
from snapkv_local.policies.question import Question
from snapkv_local.policies.sentence import Sentence
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.value import Value


@pytest.mark.parametrize(
    ("text", "policy", "spec"),
    [
        ("snapkv", SnapKV(), "snapkv"),
        (" snapkv ", SnapKV(), "snapkv"),
        ("snapkv:kernel=5+pool=avg", SnapKV(), "snapkv"),
        (
            "snapkv:pool=max+kernel=13",
            SnapKV(kernel=13, pool="max"),
            "snapkv:kernel=13+pool=max",
        ),
        (
            "snapkv:window=16+pool=trim+reduce=max+own=0.250+kernel=21",
            SnapKV(kernel=21, own=0.25, pool="trim", reduce="max", window=16),
            "snapkv:kernel=21+own=0.25+pool=trim+reduce=max+window=16",
        ),
        ("snapkv:own=0+kernel=7", SnapKV(kernel=7), "snapkv:kernel=7"),
        ("question:own=1", Question(own=1.0), "question:own=1"),
        ("snapkv:window=8", SnapKV(window=8), "snapkv:window=8"),
        ("snapkv:window=None", SnapKV(), "snapkv"),
        ("pyramid:of=snapkv", Pyramid(), "pyramid"),
        ("pyramid:beta=2.5", Pyramid(beta=2.5), "pyramid:beta=2.5"),
        (
            "pyramid:beta=10+of=value:kind=caote+kernel=13",
            Pyramid(beta=10.0, of=Value(kind="caote", kernel=13)),
            "pyramid:beta=10+of=value:kernel=13+kind=caote",
        ),
        (
            "pyramid:of=sentence:block=32+of=snapkv:sinks=4",
            Pyramid(of=Sentence(block=32, of=SnapKV(sinks=4))),
            "pyramid:of=sentence:block=32+of=snapkv:sinks=4",
        ),
        ("sentence:of=snapkv", Sentence(of=SnapKV()), "sentence:of=snapkv"),
    ],
)
def test_a_text_and_its_canonical_form(text, policy, spec):
    parsed = policies.parse(text)
    assert parsed == policy
    assert parsed.spec == spec
    assert policies.parse(spec) == policy


@pytest.mark.parametrize("policy", policies.POLICIES.values(), ids=lambda policy: policy.name)
def test_every_option_survives_the_round_trip(policy):
    others = {
        "kernel": 7, "own": 0.1, "pool": "trim", "reduce": "max", "sinks": 3, "window": 9, "seed": 5,
        "beta": 0.1 + 2, "recent": 0.3, "kind": "caote", "weight": 1 / 3, "last": 12, "share": 0.95,
        "least": 0.0, "prefer": "question", "block": 24, "by": "max", "heads": "all",
        "of": Value(reduce="max", sinks=1),
    }  # fmt: skip
    assert policies.parse(policy.name) == policy()
    assert policy().spec == policy.name
    changed = {field.name: others[field.name] for field in dataclasses.fields(policy)}
    made = policy(**changed)
    assert policies.parse(made.spec) == made
    assert all(f"{name}=" in made.spec for name in changed)
    assert hash(policies.parse(made.spec)) == hash(made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "policy='best': no such policy; choose one of snapkv, streaming, random, h2o"),
        ("", "policy='': no such policy; choose one of snapkv"),
        (
            "snapkv:size=3",
            "policy='snapkv:size=3', 'size=3': is no option of snapkv; its options are kernel, own, "
            "pool, prefer, reduce, sinks, window",
        ),
        ("snapkv:", "'': is no option of snapkv"),
        ("snapkv:kernel", "'kernel': is no option of snapkv"),
        ("snapkv:of=value", "'of=value': is no option of snapkv"),
        ("streaming:kernel=3", "'kernel=3': is no option of streaming; its options are sinks"),
        (
            "pyramid:of=snapkv+beta=3",
            "policy='snapkv+beta=3': has an option without a colon before; write "
            "name:key=value+key=value, an outer policy's options before of=",
        ),
        ("pyramid:of=snapkv:kernel=3+beta=3", "'beta=3': is no option of snapkv"),
        ("pyramid:of=best", "policy='best': no such policy"),
        (
            "pyramid:of=adaptive",
            "is of the wrong type; give a policy that scores rows, such as snapkv",
        ),
        ("snapkv:kernel=3+kernel=3", "'kernel=3': is given twice"),
        ("snapkv:kernel=wide", "'kernel=wide': is no whole number from 1; give one"),
        ("snapkv:kernel=3.0", "'kernel=3.0': is no whole number"),
        ("snapkv:kernel=4", "policy snapkv, kernel=4: an even number has no middle"),
        ("snapkv:kernel=0", "policy snapkv, kernel=0: is no whole number from 1"),
        ("snapkv:kernel=-1", "kernel=-1: is no whole number"),
        ("snapkv:sinks=-1", "sinks=-1: is no whole number from 0"),
        ("snapkv:window=0", "window=0: is no whole number from 1; give one, or None"),
        ("snapkv:kernel=None", "'kernel=None': is no whole number"),
        ("snapkv:pool=mean", "pool='mean': is not known; choose one of avg, max, trim"),
        ("snapkv:own=-1", "own=-1.0: is no number from 0 to 1000"),
        ("snapkv:own=1001", "own=1001.0: is no number from 0 to 1000"),
        ("snapkv:own=nan", "own=nan: is no number from 0 to 1000"),
        ("snapkv:own=much", "'own=much': is no number from 0 to 1000"),
        ("snapkv:own=", "'own=': is no number"),
        ("snapkv:reduce=", "reduce='': is not known; choose one of sum, max"),
        ("value:kind=dropkv", "kind='dropkv': is not known; choose one of norm, caote"),
        ("pyramid:beta=0.5", "beta=0.5: is no number from 1 to 1000"),
        ("pyramid:beta=nan", "beta=nan: is no number from 1"),
        ("pyramid:beta=inf", "beta=inf: is no number from 1"),
        ("h2o:recent=1.5", "recent=1.5: is no number from 0 to 1"),
        ("adaptive:share=2", "share=2.0: is no number from 0 to 1"),
        ("sentence:block=0", "block=0: is no whole number from 1"),
    ],
)
def test_refuses(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        policies.parse(text)


@pytest.mark.parametrize("options", [{"kernel": 5.0}, {"kernel": True}, {"sinks": "3"}])
def test_refuses_values_of_another_type(options):
    with pytest.raises(ConfigError, match="is no whole number from"):
        SnapKV(**options)
