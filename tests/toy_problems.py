"""Three problems, and a server that answers them as it is told: for tests of the training stages."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BODIES = {"double": "n * 2", "triple": "n * 3", "square": "n * n"}


def problem(name: str) -> dict[str, Any]:
    value = {"double": 6, "triple": 9, "square": 9}[name]
    return {
        "task_id": f"t/{name}",
        "prompt": f'def {name}(n: int) -> int:\n    """The {name} of n."""\n',
        "entry_point": name,
        "test": f"def check(candidate):\n    assert candidate(3) == {value}\n    assert candidate(0) == 0\n",
        "canonical_solution": f"    return {BODIES[name]}\n",
    }


def write_problems(path: Path, *names: str) -> Path:
    path.write_text("".join(json.dumps(problem(name)) + "\n" for name in names or BODIES))
    return path


@dataclass
class Toy:
    """`knows`: problems that it solves; the others it answers with what fails their tests. `left`: answers
    until it is gone, None for ever. `refuses`: problems that are too long for it."""

    knows: tuple[str, ...] = tuple(BODIES)
    left: int | None = None
    refuses: tuple[str, ...] = ()
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        name = next(name for name in BODIES if f"def {name}" in text)
        # So that answers differ as samples do.
        body_of = BODIES[name] if name in self.knows else "n"
        code = f"def {name}(n):\n    seed = {body.get('seed', 0)}\n    return {body_of}"
        return f"Sure!\n```python\n{code}\n```"


@contextmanager
def serving(toy: Toy) -> Iterator[str]:
    """Its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            toy.keys.append(self.headers.get("Authorization"))
            self._send(200, {"data": [{"id": "toy-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            toy.asked.append(body)
            if toy.left is not None and len(toy.asked) > toy.left:
                self._send(401, {"error": "gone"})
                return
            if any(f"def {name}" in body["messages"][-1]["content"] for name in toy.refuses):
                self._send(400, {"error": {"message": "the prompt leaves no room in a context of 9"}})
                return
            choice = {"message": {"content": toy.answer(body)}, "finish_reason": "stop"}
            self._send(200, {"choices": [choice], "usage": {"completion_tokens": 11}})

        def _send(self, status: int, record: dict[str, Any]) -> None:
            payload = json.dumps(record).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
