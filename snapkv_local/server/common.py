"""What requests of every API may hold, once fields.py has read them."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StrictBool,
    model_validator,
)
from typing_extensions import Self

from snapkv_local.policies.scoring import MOST_SELF_WEIGHT, Aggregation, Pooling
from snapkv_local.server import fields

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    for _ in range(fields.MOST_LEVELS):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return value
    raise ValueError(f"is nested more than {fields.MOST_LEVELS} levels deep")


def _sampler(name: Any) -> Any:
    """llama.cpp's names of a sampler, as one."""
    if not isinstance(name, str):
        return name
    known = {"typical_p": "typ_p", "typical": "typ_p", "temp": "temperature"}
    return known.get(name.replace("-", "_"), name.replace("-", "_"))


# as JSON has them, a text: a token's id, or what its tokens spell
BiasedText = Annotated[str, Field(max_length=1000)]
# false is never
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] | Literal[False]
JsonObject = Annotated[dict[str, Any], AfterValidator(_shallow)]
SamplerName = Annotated[
    Literal[
        "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"
    ],
    BeforeValidator(_sampler),
]


class StreamOptions(BaseModel):
    """What a stream has beside the answer."""

    include_usage: StrictBool = False


class Overrides(BaseModel):
    """Settings of SnapKVConfig for one request. A budget above the server's finds no cells."""

    model_config = ConfigDict(extra="forbid")

    budget: Annotated[int, Field(ge=1, le=2**31)] | None = None
    keep_ratio: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    window_size: Annotated[int, Field(ge=1, le=2**31)] | None = None
    kernel_size: Annotated[int, Field(ge=1, le=2**31)] | None = None
    pooling: Pooling | None = None
    aggregation: Aggregation | None = None
    self_weight: Annotated[float, Field(ge=0, le=MOST_SELF_WEIGHT, allow_inf_nan=False)] | None = (
        None
    )
    n_sink: Annotated[int, Field(ge=0, le=2**31)] | None = None
    policy: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    protect_system: StrictBool | None = None


class ReadRequest(BaseModel):
    """A request that fields.py reads first."""

    table: ClassVar[dict[str, fields.Field]] = {}
    reader: ClassVar[type[fields.Reader]] = fields.Reader
    _ignored: list[str] = PrivateAttr(default_factory=list)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        reader = cls.reader()
        request = handler(reader.request(data, cls.table))
        request._ignored = reader.ignored
        return request

    @property
    def ignored(self) -> list[str]:
        """Places of fields that the server does not know."""
        return self._ignored


class CommonRequest(ReadRequest):
    """What all kinds of answers take; samplers are llama-server's, by its names."""

    model: str | None = Field(None, max_length=1000)
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    dynatemp_range: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    dynatemp_exponent: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Count | None = None
    min_p: Probability | None = None
    typical_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_n_sigma: Finite | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Field(ge=0.1, le=10, allow_inf_nan=False)] | None = None
    repeat_last_n: Count | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] | None = None
    dry_allowed_length: Count | None = None
    dry_penalty_last_n: Count | None = None
    dry_sequence_breakers: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=40)]], Field(max_length=32)]
        | None
    ) = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    min_keep: Count | None = None
    samplers: list[SamplerName] | None = Field(None, max_length=32)
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    logit_bias: (
        Annotated[dict[BiasedText, Bias], Field(max_length=1024)]
        | Annotated[list[tuple[TokenId | BiasedText, Bias]], Field(max_length=1024)]
        | None
    ) = Field(None, description="Added to the logits of tokens, by id or text; false is never.")
    ignore_eos: StrictBool = False
    grammar: Annotated[str, Field(max_length=2**20)] | None = Field(
        None, description="GBNF that the answer is held to."
    )
    json_schema: JsonObject | None = Field(
        None, description="A JSON schema that the answer is held to."
    )
    cache_prompt: StrictBool = Field(
        True,
        description="False: evaluate the whole prompt, whatever was evaluated before.",
    )
    id_slot: Annotated[int, Field(ge=-1, le=2**31 - 1)] = Field(
        -1, description="The sequence to answer in, of GET /slots; -1 for any."
    )
    timings_per_token: StrictBool = False
    return_progress: StrictBool = False
    verbose: StrictBool = False
    snapkv: Overrides | None = None

    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def biases(self) -> list[tuple[int | str, float]]:
        """Tokens, or texts whose tokens are meant, and what is added to their logits."""
        given = self.logit_bias or {}
        pairs = given.items() if isinstance(given, dict) else given
        return [
            (
                int(of) if isinstance(of, str) and of.isascii() and of.isdigit() else of,
                -math.inf if bias is False else bias,
            )
            for of, bias in pairs
        ]
