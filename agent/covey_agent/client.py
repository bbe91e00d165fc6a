"""Ask the model on this device, from any Python program on it. Standard library only; numpy arrays are understood but not needed.

    from covey_agent.client import Client

    with Client("/var/lib/covey-agent/run/infer.sock") as client:
        result = client.infer(image)          # nested lists, or anything with .shape and .tobytes(), e.g. a numpy array
        print(result.label, result.confidence, result.slot)
        client.feedback("7", id=result.id)    # when the truth becomes known
        for result in client.stream(batches): # many batches: the next ones are on their way while the model works
            ...

One client is one kept-alive connection, for one thread. While the agent changes models, a connection may end: a request that got no
answer is sent again (inference changes nothing, so that is safe) until `timeout_s` is over.
From a shell: python -m covey_agent.client --socket run/infer.sock image.npy
"""

import argparse
import json
import math
import random
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from covey_agent.ahead import Ahead, Message
from covey_agent.errors import CoveyAgentError

_COMPACT = "application/x-covey-answer"  # a line of JSON with the outputs' shape, then the outputs as little-endian float32
_FIRST_PAUSE_S = 0.02
_MOST_PAUSE_S = 1.0
_MAX_HEAD_BYTES = 64 * 1024


class ClientError(CoveyAgentError):
    """Base of this module's errors."""


class UnavailableError(ClientError):
    """Nobody answered before the deadline: no agent, or no model in service."""


class BusyError(ClientError):
    """Too many requests wait for the model; try again after `retry_after_s`."""

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RequestError(ClientError):
    """The request cannot be answered; `problem` is the agent's RFC 9457 document, e.g. with the expected shape."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status}: {problem.get('detail', problem.get('title', 'no detail'))}")
        self.status = status
        self.problem = problem


class Tensor(Protocol):
    """What is needed of an array, e.g. of numpy's: float32 in C order after `astype`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def astype(self, dtype: str, /) -> "Tensor": ...

    def tobytes(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Result:
    """An answer. For a batch, `outputs`, `label` and `confidence` are lists, one entry a sample; without labels they are None."""

    id: str
    label: Any
    confidence: Any
    outputs: list[Any]
    model: str
    version: int
    variant: str
    slot: str


class Client:
    """A connection to the agent's local API, by Unix socket path or by loopback URL and token."""

    def __init__(self, address: str | Path, token: str = "", *, timeout_s: float = 10.0) -> None:
        """`address`: the path of a Unix socket, or http://127.0.0.1:port. `timeout_s` covers a request with all its repetitions."""
        self._address = str(address)
        self._timeout_s = timeout_s
        self._head = "Host: localhost\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")
        self._sock: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def infer(self, inputs: "Tensor | Sequence[Any]") -> Result:
        """One sample or a batch of float32 in the model's own layout."""
        shape, data = _to_tensor(inputs)
        return _to_result(self._request("POST", "/v1/infer", head=_describe(shape), body=data))

    def stream(self, batches: "Iterable[Tensor | Sequence[Any]]", *, ahead: int = 2) -> Iterator[Result]:
        """The answers to many samples or batches, in their order.

        Up to `ahead` of them are under way at once, so that the model does not wait for this program; no more are taken from `batches`
        than that, so memory is bounded however many there are. An error ends the stream at the batch that it is about. Uses a
        connection of its own.
        """
        if ahead < 1:
            raise ValueError(f"at least one batch must be under way, got {ahead}")
        source = iter(batches)
        waiting: deque[Message] = deque()
        connection: Ahead | None = None
        sock: socket.socket | None = None
        deadline, pause = time.monotonic() + self._timeout_s, 0.0
        try:
            while True:
                fresh = [self._to_message(each) for each in islice(source, ahead - len(waiting))]
                waiting += fresh
                if not waiting:
                    return
                try:
                    if sock is None or connection is None:
                        sock = _connect(self._address, timeout_s=max(deadline - time.monotonic(), 0.001))
                        connection, fresh = Ahead(sock), list(waiting)  # what got no answer is sent again
                    for message in fresh:
                        connection.send(message)
                    status, headers, body = connection.receive(deadline)
                    _check_it_arrived(status)
                except OSError as exc:
                    if sock is not None:
                        sock.close()
                    sock = connection = None
                    if time.monotonic() + pause >= deadline:
                        raise UnavailableError(f"no answer from {self._address} within {self._timeout_s:.1f} s: {exc}") from exc
                    time.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(max(pause * 2, _FIRST_PAUSE_S), _MOST_PAUSE_S)
                    continue
                waiting.popleft()
                deadline, pause = time.monotonic() + self._timeout_s, 0.0
                if headers.get("connection", "").lower() == "close":
                    sock.close()
                    sock = connection = None
                yield _to_result(_read_answer(status, headers, body))
        finally:
            if sock is not None:
                sock.close()

    def model(self) -> dict[str, Any]:
        """What is served: model, version, variant, labels, shapes."""
        return self._request("GET", "/v1/model")

    def health(self) -> dict[str, Any]:
        """Whether it is served."""
        return self._request("GET", "/v1/health")

    def feedback(self, label: str | Sequence[str], *, id: str | None = None) -> dict[str, Any]:  # noqa: A002 - the name in the API
        """Tell the true label of an answer (of the newest one without an id)."""
        said: dict[str, Any] = {"label": label if isinstance(label, str) else list(label)}
        if id is not None:
            said["id"] = id
        return self._request("POST", "/v1/feedback", head="Content-Type: application/json\r\n", body=json.dumps(said).encode())

    def _to_message(self, inputs: "Tensor | Sequence[Any]") -> Message:
        """Of a stream: a copy, since whoever makes the batches may use the same memory for the next one."""
        shape, data = _to_tensor(inputs)
        return self._message("POST", "/v1/infer", _describe(shape), bytes(data))

    def _request(self, method: str, path: str, *, head: str = "", body: bytes | memoryview = b"") -> dict[str, Any]:
        message = self._message(method, path, head, body)
        deadline = time.monotonic() + self._timeout_s
        pause = 0.0
        while True:
            try:
                status, headers, answer = self._exchange(message, deadline)
                break
            except OSError as exc:
                self.close()
                # The first repetition is immediate: most likely another worker is waiting on the same socket.
                if time.monotonic() + pause >= deadline:
                    raise UnavailableError(f"no answer from {self._address} within {self._timeout_s:.1f} s: {exc}") from exc
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(max(pause * 2, _FIRST_PAUSE_S), _MOST_PAUSE_S)
        return _read_answer(status, headers, answer)

    def _message(self, method: str, path: str, head: str, body: bytes | memoryview) -> Message:
        length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
        return f"{method} {path} HTTP/1.1\r\n{self._head}{head}{length}\r\n".encode(), body

    def _exchange(self, message: Message, deadline: float) -> tuple[int, dict[str, str], bytes]:
        if self._sock is None:
            self._sock = _connect(self._address, timeout_s=max(deadline - time.monotonic(), 0.001))
        self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
        _send(self._sock, *message)
        status, headers, answer = _receive(self._sock)
        _check_it_arrived(status)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return status, headers, answer


def _describe(shape: Sequence[int]) -> str:
    """The headers of a raw tensor."""
    sizes = ",".join(map(str, shape))
    return f"Content-Type: application/octet-stream\r\nX-Covey-Shape: {sizes}\r\nAccept: {_COMPACT}\r\n"


def _check_it_arrived(status: int) -> None:
    """408 means the same as a connection that ended: this program was held up in the middle of a request, which it may send again."""
    if status == 408:
        raise ConnectionError("the request took too long to arrive")


def _to_result(answer: dict[str, Any]) -> Result:
    return Result(**{name: answer[name] for name in Result.__slots__})


def _connect(address: str, *, timeout_s: float) -> socket.socket:
    if not address.startswith("http://"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock
    url = urlsplit(address)
    sock = socket.create_connection((url.hostname or "127.0.0.1", url.port or 80), timeout=timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _send(sock: socket.socket, head: bytes, body: bytes | memoryview) -> None:
    """Both at once and without joining them: a picture is not copied on its way to the kernel."""
    sent = sock.sendmsg([head, body])
    if sent < len(head):
        sock.sendall(head[sent:])
        sent = len(head)
    if sent < len(head) + len(body):
        sock.sendall(memoryview(body)[sent - len(head) :])


def _receive(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        part = sock.recv(65536)
        if not part or len(data) > _MAX_HEAD_BYTES:
            raise ConnectionError("the connection ended before an answer")
        data += part
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = data[end + 4 :]
    length = int(headers.get("content-length", "0"))
    while len(body) < length:
        part = sock.recv(min(length - len(body), 1024 * 1024))
        if not part:
            raise ConnectionError("the connection ended within an answer")
        body += part
    return int(first.split(" ")[1]), headers, body


def _read_answer(status: int, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    numbers = b""
    if headers.get("content-type") == _COMPACT:
        body, _, numbers = body.partition(b"\n")
    try:
        answer: dict[str, Any] = json.loads(body)
        if numbers:
            answer["outputs"] = _nest(_from_bytes(numbers), answer["shape"])
    except ValueError as exc:
        raise ClientError(f"expected JSON, got {len(body)} bytes with status {status}") from exc
    if status == 503:
        raise BusyError(str(answer.get("detail", "busy")), float(headers.get("retry-after", "1")))
    if status != 200:
        raise RequestError(status, answer)
    return answer


def _from_bytes(numbers: bytes) -> list[float]:
    flat = array("f", numbers)
    if sys.byteorder == "big":
        flat.byteswap()
    return flat.tolist()


def _nest(flat: list[Any], shape: Sequence[int]) -> list[Any]:
    for size in reversed(shape[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)]
    return flat


def _to_tensor(inputs: "Tensor | Sequence[Any]") -> tuple[tuple[int, ...], bytes | memoryview]:
    """Shape and little-endian float32 bytes; of an array that is so already, its own memory."""
    if isinstance(inputs, Sequence):
        flat: array[float] = array("f")
        shape = _flatten(inputs, flat)
        if sys.byteorder == "big":
            flat.byteswap()
        return shape, flat.tobytes()
    shape = tuple(inputs.shape)
    return shape, _memory_of(inputs) or inputs.astype("<f4").tobytes()


def _memory_of(inputs: object) -> memoryview | None:
    """None unless it lends float32 in C order that can be sent as it is."""
    try:
        view = memoryview(inputs)  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):  # e.g. an array of another kind, or of a type without a name
        return None
    fits = view.format == "f" and view.c_contiguous and view.nbytes > 0 and sys.byteorder == "little"
    return view.cast("B") if fits else None


def _flatten(rows: Sequence[Any], into: "array[float]") -> tuple[int, ...]:
    if not rows or isinstance(rows[0], int | float):
        try:
            into.extend(rows)
        except TypeError as exc:
            raise ValueError("inputs must be nested sequences of numbers, all rows of equal length") from exc
        return (len(rows),)
    shapes = {_flatten(row, into) for row in rows}
    if len(shapes) != 1:
        raise ValueError(f"all rows must have equal length, got the shapes {sorted(shapes)}")
    return (len(rows), *shapes.pop())


def _read_npy(path: Path) -> tuple[tuple[int, ...], list[Any]]:
    """A .npy file of float32, float64 or uint8 without numpy: version 1 or 2 of the format, C order."""
    data = path.read_bytes()
    if data[:6] != b"\x93NUMPY":
        raise ValueError(f"{path} is not a .npy file")
    size, start = (int.from_bytes(data[8:10], "little"), 10) if data[6] == 1 else (int.from_bytes(data[8:12], "little"), 12)
    header = data[start : start + size].decode("latin-1")
    code = next((code for name, code in (("'<f4'", "f"), ("'<f8'", "d"), ("'|u1'", "B")) if name in header), None)
    if code is None or "'fortran_order': False" not in header:
        raise ValueError(f"{path} must hold float32, float64 or uint8 in C order, its header is {header.strip()}")
    sizes = header[header.index("(") + 1 : header.index(")")].split(",")
    numbers = array(code, data[start + size :])
    return tuple(int(part) for part in sizes if part.strip()), numbers.tolist()


class _Flat:
    """A Tensor over plain numbers."""

    def __init__(self, shape: tuple[int, ...], numbers: list[Any]) -> None:
        if math.prod(shape) != len(numbers):
            raise ValueError(f"shape {shape} needs {math.prod(shape)} numbers, got {len(numbers)}")
        self.shape = shape
        self._numbers = numbers

    def astype(self, _dtype: str, /) -> "_Flat":
        return self

    def tobytes(self) -> bytes:
        return bytes(_to_tensor(self._numbers)[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: print the answer to one .npy file as JSON."""
    parser = argparse.ArgumentParser(prog="python -m covey_agent.client", description="Ask the model that this device serves.")
    parser.add_argument("--socket", default="run/infer.sock", help="path of the agent's Unix socket, or http://127.0.0.1:port")
    parser.add_argument("--token", default="", help="for http addresses")
    parser.add_argument("input", type=Path, help="a .npy file: one sample or a batch in the model's layout")
    options = parser.parse_args(arguments)
    try:
        with Client(options.socket, options.token) as client:
            result = client.infer(_Flat(*_read_npy(options.input)))
    except (ClientError, OSError, ValueError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    sys.stdout.write(json.dumps({name: getattr(result, name) for name in Result.__slots__}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
