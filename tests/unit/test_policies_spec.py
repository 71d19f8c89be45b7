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
from snapkv_local.policies.snapkv_paper import SnapKVPaper
from snapkv_local.policies.value import Value


@pytest.mark.parametrize(
    ("text", "policy", "spec"),
    [
        ("snapkv", SnapKV(), "snapkv"),
        (" snapkv ", SnapKV(), "snapkv"),
        ("snapkv:observation=question+pooling=nosink", SnapKV(), "snapkv"),
        ("snapkv:observation=16", SnapKV(observation=16), "snapkv:observation=16"),
        ("snapkv-paper", SnapKVPaper(), "snapkv-paper"),
        ("snapkv-paper:kernel_size=5+pooling=avg", SnapKVPaper(), "snapkv-paper"),
        (
            "snapkv-paper:pooling=max+kernel_size=13",
            SnapKVPaper(kernel_size=13, pooling="max"),
            "snapkv-paper:kernel_size=13+pooling=max",
        ),
        (
            "snapkv-paper:observation=16+pooling=nosink+aggregation=max+self_weight=0.250+kernel_size=21",
            SnapKVPaper(
                kernel_size=21,
                self_weight=0.25,
                pooling="nosink",
                aggregation="max",
                observation=16,
            ),
            "snapkv-paper:kernel_size=21+self_weight=0.25+pooling=nosink+aggregation=max+observation=16",
        ),
        (
            "snapkv-paper:self_weight=0+kernel_size=7",
            SnapKVPaper(kernel_size=7),
            "snapkv-paper:kernel_size=7",
        ),
        ("question:self_weight=1", Question(self_weight=1.0), "question:self_weight=1"),
        ("snapkv-paper:observation=8", SnapKVPaper(observation=8), "snapkv-paper:observation=8"),
        ("snapkv-paper:observation=window", SnapKVPaper(), "snapkv-paper"),
        ("pyramid:of=snapkv-paper", Pyramid(), "pyramid"),
        ("pyramid:of=snapkv", Pyramid(of=SnapKV()), "pyramid:of=snapkv"),
        ("pyramid:beta=2.5", Pyramid(beta=2.5), "pyramid:beta=2.5"),
        (
            "pyramid:beta=10+of=value:kind=caote+kernel_size=13",
            Pyramid(beta=10.0, of=Value(kind="caote", kernel_size=13)),
            "pyramid:beta=10+of=value:kernel_size=13+kind=caote",
        ),
        (
            "pyramid:of=sentence:block=32+of=snapkv-paper:n_sink=4",
            Pyramid(of=Sentence(block=32, of=SnapKVPaper(n_sink=4))),
            "pyramid:of=sentence:block=32+of=snapkv-paper:n_sink=4",
        ),
        ("sentence:of=snapkv-paper", Sentence(of=SnapKVPaper()), "sentence:of=snapkv-paper"),
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
        "kernel_size": 7, "self_weight": 0.1, "pooling": "max", "n_sink": 3, "observation": 9,
        "seed": 5, "beta": 0.1 + 2, "recent": 0.3, "kind": "caote", "weight": 1 / 3, "share": 0.95,
        "least": 0.0, "epsilon": 0.1, "block": 24, "by": "max", "heads": "all",
        "of": Value(aggregation="max", n_sink=1),
    }  # fmt: skip
    assert policies.parse(policy.name) == policy()
    assert policy().spec == policy.name
    fields = {field.name: field.default for field in dataclasses.fields(policy)}
    others["aggregation"] = "sum" if fields.get("aggregation") == "max" else "max"
    changed = {name: others[name] for name in fields}
    made = policy(**changed)
    assert policies.parse(made.spec) == made
    assert all(f"{name}=" in made.spec for name in changed)
    assert hash(policies.parse(made.spec)) == hash(made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "best",
            "policy='best': is not a policy; choose one of snapkv, snapkv-paper, streaming, random, h2o",
        ),
        ("", "policy='': is not a policy; choose one of snapkv"),
        (
            "snapkv-paper:size=3",
            "policy='snapkv-paper:size=3', 'size=3': is not an option of snapkv-paper; its options are "
            "aggregation, kernel_size, n_sink, observation, pooling, self_weight",
        ),
        ("snapkv:", "'': is not an option of snapkv"),
        ("snapkv-paper:kernel_size", "'kernel_size': is not an option of snapkv-paper"),
        ("snapkv-paper:of=value", "'of=value': is not an option of snapkv"),
        (
            "streaming:kernel_size=3",
            "'kernel_size=3': is not an option of streaming; its options are n_sink",
        ),
        (
            "pyramid:of=snapkv+beta=3",
            "policy='snapkv+beta=3': has an option without a colon before it; write "
            "name:key=value+key=value, an outer policy's options before of=",
        ),
        ("pyramid:of=snapkv-paper:kernel_size=3+beta=3", "'beta=3': is not an option of snapkv"),
        ("pyramid:of=best", "policy='best': is not a policy"),
        (
            "pyramid:of=adaptive",
            "is of the wrong type; give a policy that scores rows, such as snapkv",
        ),
        ("snapkv-paper:kernel_size=3+kernel_size=3", "'kernel_size=3': is given twice"),
        (
            "snapkv-paper:kernel_size=wide",
            "'kernel_size=wide': is not a whole number from 1; give one",
        ),
        ("snapkv-paper:kernel_size=3.0", "'kernel_size=3.0': is not a whole number"),
        (
            "snapkv-paper:kernel_size=4",
            "policy snapkv-paper, kernel_size=4: an even number has no middle",
        ),
        (
            "snapkv-paper:kernel_size=0",
            "policy snapkv-paper, kernel_size=0: is not a whole number from 1",
        ),
        ("snapkv-paper:kernel_size=-1", "kernel_size=-1: is not a whole number"),
        ("snapkv-paper:n_sink=-1", "n_sink=-1: is not a whole number from 0"),
        (
            "snapkv-paper:observation=0",
            "observation=0: is not a whole number from 1; give one, or question, or window",
        ),
        ("snapkv-paper:kernel_size=None", "'kernel_size=None': is not a whole number"),
        (
            "snapkv-paper:pooling=mean",
            "pooling='mean': is not known; choose one of avg, max, nosink",
        ),
        ("snapkv-paper:self_weight=-1", "self_weight=-1.0: is not a number from 0 to 1000"),
        ("snapkv-paper:self_weight=1001", "self_weight=1001.0: is not a number from 0 to 1000"),
        ("snapkv-paper:self_weight=nan", "self_weight=nan: is not a number from 0 to 1000"),
        ("snapkv-paper:self_weight=much", "'self_weight=much': is not a number from 0 to 1000"),
        ("snapkv-paper:self_weight=", "'self_weight=': is not a number"),
        ("snapkv-paper:aggregation=", "aggregation='': is not known; choose one of sum, max"),
        ("value:kind=dropkv", "kind='dropkv': is not known; choose one of norm, caote"),
        ("pyramid:beta=0.5", "beta=0.5: is not a number from 1 to 1000"),
        ("pyramid:beta=nan", "beta=nan: is not a number from 1"),
        ("pyramid:beta=inf", "beta=inf: is not a number from 1"),
        ("h2o:recent=1.5", "recent=1.5: is not a number from 0 to 1"),
        ("adaptive:share=2", "share=2.0: is not a number from 0 to 1"),
        ("sentence:block=0", "block=0: is not a whole number from 1"),
    ],
)
def test_refuses(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        policies.parse(text)


@pytest.mark.parametrize("options", [{"kernel_size": 5.0}, {"kernel_size": True}, {"n_sink": "3"}])
def test_refuses_values_of_another_type(options):
    with pytest.raises(ConfigError, match="is not a whole number from"):
        SnapKVPaper(**options)
