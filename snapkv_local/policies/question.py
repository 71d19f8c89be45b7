"""SnapKV whose votes are the question's alone, wherever in the prompt it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snapkv_local.errors import ConfigError
from snapkv_local.policies.view import PromptView
from snapkv_local.policies.voting import Voting


@dataclass(frozen=True)
class Question(Voting):
    """The rows that the words of the question attend to.

    A chat template ends the prompt with tokens of its own, which vote in SnapKV's window as much as
    the question does. Here the last user turn's own words are the observation window of Li et al.,
    arXiv 2404.14469, section 4; the rows that stay as the window are the prompt's last ones.
    """

    name: ClassVar[str] = "question"
    source: ClassVar[str] = "arXiv 2404.14469, section 4"

    def asks(self) -> bool:
        """Yes."""
        return True

    def voters(self, prompt: PromptView) -> tuple[int, int]:
        """The question's words."""
        return question_of(prompt, self.name)


def question_of(prompt: PromptView, policy: str) -> tuple[int, int]:
    """[begin, end) of the question.

    Raises:
        ConfigError: the prompt has none, or it is not within the prompt.
    """
    if prompt.question is None:
        raise ConfigError(
            f"policy {policy}",
            "the prompt has no question",
            "ask in a chat's last user turn, say where it is with Llama.set_question(), or choose "
            "snapkv",
        )
    begin, end = prompt.question
    if not 0 <= begin < end <= prompt.n_prompt:
        raise ConfigError(
            f"question [{begin}, {end})",
            f"is not a span of the prompt of {prompt.n_prompt} tokens",
            "give [begin, end) positions of its words",
        )
    return begin, end
