"""The OpenAPI document: made-up requests find no failure of the server.

SNAPKV_FUZZ_EXAMPLES=200 makes more of them, SNAPKV_FUZZ_URL names a server that runs already.
"""

import contextlib
import os
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis

EXAMPLES = int(os.environ.get("SNAPKV_FUZZ_EXAMPLES", "12"))
# what others are made of gets most of them
OLDEST = ("/v1/chat/completions", "/v1/completions")
PHASES = [hypothesis.Phase.explicit, hypothesis.Phase.generate]


@pytest.mark.parametrize(
    "mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
)
def test_made_up_requests_do_not_break_the_server(tiny: httpx.Client, mode: Any) -> None:
    schema = schemathesis.openapi.from_dict(tiny.get("/openapi.json").json())
    statuses: dict[str, set[int]] = {}

    for result in schema.get_all_operations():
        operation = result.ok()
        statuses[operation.path] = set()

        @hypothesis.settings(
            max_examples=EXAMPLES if operation.path in OLDEST else max(1, EXAMPLES // 3),
            deadline=None,
            database=None,
            derandomize=True,
            phases=PHASES,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            # short answers: most of the time would go into text that says nothing
            most = "max_output_tokens" if "responses" in case.operation.path else "max_tokens"
            if isinstance(case.body, dict) and isinstance(case.body.get(most, 1), int):
                case.body[most] = 1
                case.body.pop("max_completion_tokens", None)
            response = case.call(base_url=str(tiny.base_url), timeout=300)
            statuses[case.operation.path].add(response.status_code)
            assert response.status_code < 500 or response.status_code == 501, response.text

        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing of it can be wrong
            send()
    print(mode, statuses)

    assert 200 in statuses["/v1/models"] or not mode.is_positive
    assert 400 in statuses["/v1/chat/completions"] or mode.is_positive
    assert tiny.get("/health").json() == {"status": "ok"}
