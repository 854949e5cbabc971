"""An editor's side of the Language Server Protocol, over a program's standard streams.

Format: https://microsoft.github.io/language-server-protocol/specifications/base/0.9/specification/
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

SECONDS = 120.0  # for one answer


class LspClient:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to: IO[bytes] = process.stdin
        self._from: IO[bytes] = process.stdout
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._numbers = iter(range(1, 1_000_000))
        self._lock = threading.Lock()
        self.notices: list[dict[str, Any]] = []  # what the program told without being asked
        self.reader = threading.Thread(target=self._read, name="lsp-reader")
        self.reader.start()

    def request(self, method: str, parameters: object) -> Any:
        """Raises AssertionError on an error in place of a result, queue.Empty where no answer comes."""
        number = next(self._numbers)
        self._send({"id": number, "method": method, "params": parameters})
        while (answer := self._answers.get(timeout=SECONDS))["id"] != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def notify(self, method: str, parameters: object) -> None:
        self._send({"method": method, "params": parameters})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        with self._lock:
            self._to.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            self._to.flush()

    def _read(self) -> None:
        while header := self._from.readline():
            length = 0
            while header.strip():
                name, _, value = header.decode("ascii").partition(":")
                length = int(value) if name.lower() == "content-length" else length
                header = self._from.readline()
            message = json.loads(self._from.read(length))
            if "method" not in message:
                self._answers.put(message)
                continue
            self.notices.append(message)
            if "id" in message:  # it asks for something of the editor's: there is nothing
                self._send({"id": message["id"], "result": None})


@contextmanager
def language_server(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[LspClient]:
    with (
        (folder / "stderr.log").open("wb") as errors,
        subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        client = LspClient(process)
        try:
            yield client
        finally:
            process.terminate()
            process.wait(30)
            client.reader.join(30)
