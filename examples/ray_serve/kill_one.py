"""Ask many questions at once, kill the replica that answers one of them, and see that all are answered.

python examples/ray_serve/kill_one.py http://127.0.0.1:8000 --documents station
"""

import argparse
import asyncio
import json
import os
import signal
import sys

import httpx

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("url")
parser.add_argument("--documents", default="", help="names in GET /v1/documents, with commas")
parser.add_argument("--conversations", type=int, default=8)
parser.add_argument("--max-tokens", type=int, default=32)
parser.add_argument("--no-kill", action="store_true")
args = parser.parse_args()

DOCUMENTS = args.documents.split(",") if args.documents else [None]
PLACES = ("pump", "generator", "radio", "harbour", "kitchen", "workshop", "library", "garden")


class Conversation:
    """Asks two questions, the second one with the first answer before it."""

    def __init__(self, number: int) -> None:
        place = PLACES[number % len(PLACES)]
        self.document = DOCUMENTS[number % len(DOCUMENTS)]
        self.questions = [f"Where is the {place} of house {number}?", "Who works there?"]
        self.answers: list[str] = []
        self.replicas: list[int] = []
        self.pieces = 0
        self.has_ended = False

    async def ask(self, http: httpx.AsyncClient, question: str) -> None:
        said = zip(self.questions, self.answers, strict=False)
        messages = [
            {"role": role, "content": text}
            for pair in said
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        body = {
            "messages": [*messages, {"role": "user", "content": question}],
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
            "max_tokens": args.max_tokens,
        }
        if self.document:
            body["document"] = self.document
        text, is_whole = "", False
        self.pieces = 0
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise SystemExit((await response.aread()).decode())
            self.replicas.append(int(response.headers["x-replica"]))
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    is_whole = True
                elif line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise SystemExit(chunk["error"]["message"])
                    piece = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else ""
                    text, self.pieces = text + (piece or ""), self.pieces + bool(piece)
        if not is_whole:
            raise SystemExit(f"lost: {question}")
        self.answers.append(text)

    async def talk(self, http: httpx.AsyncClient) -> None:
        for question in self.questions:
            await self.ask(http, question)
        self.has_ended = True


async def kill_one(conversations: list[Conversation]) -> int:
    """Kill the replica that is in the middle of an answer; its process id."""
    while True:
        for each in conversations:
            if not each.has_ended and 2 <= each.pieces < args.max_tokens // 2:
                os.kill(each.replicas[-1], signal.SIGKILL)
                return each.replicas[-1]
        await asyncio.sleep(0.005)


async def main() -> int:
    """Once in peace, and once with a kill; 1 if an answer differs."""
    async with httpx.AsyncClient(base_url=args.url, timeout=300, trust_env=False) as http:
        first = [Conversation(number) for number in range(args.conversations)]
        await asyncio.gather(*(each.talk(http) for each in first))
        again = [Conversation(number) for number in range(args.conversations)]
        talks = asyncio.gather(*(each.talk(http) for each in again))
        if not args.no_kill:
            print(f"killed the replica in process {await kill_one(again)}")
        await talks
    together = sum(each.replicas[0] == each.replicas[1] for each in first)
    print(f"{together} of {len(first)} conversations stayed with one replica")
    wanted = [answer for each in first for answer in each.answers]
    got = [answer for each in again for answer in each.answers]
    whole = sum(map(bool, got))
    same = sum(a == b for a, b in zip(wanted, got, strict=True))
    print(f"{whole} of {len(wanted)} answers arrived, {same} as they were before")
    return int(whole != len(wanted))


sys.exit(asyncio.run(main()))
