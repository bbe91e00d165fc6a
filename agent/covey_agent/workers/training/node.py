"""A whole Flower SuperNode in this process, which runs no code but ours.

    with FleetLink.join(address, ca=pem, key=private_key, clock=time.monotonic) as link:
        serve(link, handle=answer_round, stop=event)

Flower's own SuperNode starts a second program, and a third for each message, and runs in it what the server sends. Here messages
are pulled, answered by an installed function and pushed; the server's app bundle is never asked for. Measured against the
stock programs: a third of the time of a round and of the memory.

This uses internal modules of flwr 1.41.0, pinned exactly; `tests/server/federation/` runs it against a real SuperLink.

Rules:
- A node that died without a word stays "online" at the SuperLink until its heartbeats are missed, and may not join before. So
  heartbeats are short here, and joining is tried again for longer than that.
- A server that is away or restarting is waited for; one that does not know this key is an answer, and final.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf, make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, inflate_object_from_contents, pull_objects
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from covey_agent.workers.errors import NetworkError, RefusedError

logger = logging.getLogger(__name__)
Handler = Callable[[Message], Message]
T = TypeVar("T")

_HEARTBEAT_S = 10.0  # the least that the SuperLink accepts; it waits for two
_BEAT_EVERY_S = 4.0
_POLL_S = 0.4
_JOIN_PATIENCE_S = 90.0  # longer than stock heartbeats (2 x 30 s), should another program have used this key before
_AWAY_PATIENCE_S = 600.0  # how long a server may be away in the middle of a run
_RETRY_S = (0.5, 1.0, 2.0, 3.0)


class FleetLink:
    """An activated node: pull a message, push its reply."""

    def __init__(self, client: FleetHttpClient, node: Node) -> None:
        self._client = client
        self._node = node
        self._stopped = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beats.start()

    @classmethod
    def join(cls, address: str, *, ca: bytes, key: ec.EllipticCurvePrivateKey, patience_s: float = _JOIN_PATIENCE_S) -> Self:
        """Activate the node of this key. Raises RefusedError for a key that is not registered, NetworkError if nobody answers."""
        client = _connect(address, ca=ca, key=key)
        request = ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=_HEARTBEAT_S)
        begin = time.monotonic()
        for wait in _waits():
            try:
                with _translated("joining the fleet edge"):
                    return cls(client, Node(node_id=client.ActivateNode(request).node_id))
            except (RefusedError, NetworkError) as exc:
                # A registered node that died without a word gets the same refusal as an unknown one, until it is seen as offline.
                if time.monotonic() - begin >= patience_s:
                    client.close()
                    raise
                logger.info("not joined yet, trying again in %.1f s: %s", wait, exc)
            time.sleep(wait)
        raise AssertionError("the waits never end")

    @property
    def node_id(self) -> str:
        """Flower's name for this node."""
        return str(self._node.node_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave: the SuperLink sees the node offline at once."""
        self._stopped.set()
        self._beats.join()
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except (httpx.HTTPError, RuntimeError) as exc:
            logger.info("the fleet edge did not hear the goodbye: %s", exc)
        self._client.close()

    def pull(self) -> Message | None:
        """The next message for this node, whole, or None. Raises NetworkError, RefusedError."""
        with _translated("pulling a message"):
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return None
            shell, tree = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
            run_id, message_id = shell.metadata.run_id, shell.metadata.message_id
            contents = pull_objects(
                [node.object_id for node in iterate_object_tree(tree)],
                pull_object_fn=make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id),
            )
            self._client.ConfirmMessageReceived(ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=message_id))
        message = inflate_object_from_contents(message_id, contents)
        message.metadata.__dict__["_message_id"] = message_id  # the id is not part of what was signed over; Flower sets it so too
        whole: Message = message
        return whole

    def push(self, reply: Message, *, seconds: float) -> None:
        """Send a reply. Raises NetworkError, RefusedError."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with _translated("sending a reply"), no_object_id_recompute():
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            shell = remove_content_from_message(reply) if reply.has_content() else reply
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node, messages_list=[message_to_proto(shell)], message_object_trees=[tree], clientapp_runtime_list=[seconds]
                )
            )
            push = make_push_object_fn_protobuf(self._client.PushObject, self._node, reply.metadata.run_id, response.session_id)
            for object_id in response.objects_to_push:
                push(object_id, objects[object_id].deflate())

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_HEARTBEAT_S)
        while not self._stopped.wait(_BEAT_EVERY_S):
            try:
                self._client.SendNodeHeartbeat(request)
            except (httpx.HTTPError, RuntimeError) as exc:
                logger.debug("heartbeat not heard: %s", exc)


def serve(link: FleetLink, *, handle: Handler, stop: threading.Event) -> None:
    """Answer messages until `stop` is set. Raises NetworkError when the server stays away, RefusedError when it shuts the door."""
    away_since: float | None = None
    waits = _waits()
    while not stop.is_set():
        try:
            message = link.pull()
            if message is not None:
                begin = time.monotonic()
                reply = handle(message)
                _push_patiently(link, reply, seconds=time.monotonic() - begin, stop=stop)
            away_since, waits = None, _waits()
        except RunOverError as exc:
            logger.info("dropped a message: %s", exc)
        except NetworkError as exc:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > _AWAY_PATIENCE_S:
                raise
            logger.warning("the fleet edge does not answer: %s", exc)
            stop.wait(next(waits))
            continue
        if message is None:
            stop.wait(_POLL_S)


class RunOverError(NetworkError):
    """The Flower run of a message is no longer running; the reply is not wanted."""


def _push_patiently(link: FleetLink, reply: Message, *, seconds: float, stop: threading.Event) -> None:
    """A contribution is expensive: try again while the server restarts. Its run may be over by then; then it is dropped."""
    begin = time.monotonic()
    for wait in _waits():
        try:
            return link.push(reply, seconds=seconds)
        except RunOverError:
            raise
        except NetworkError:
            if stop.is_set() or time.monotonic() - begin > _AWAY_PATIENCE_S:
                raise
            stop.wait(wait)
    return None


def _connect(address: str, *, ca: bytes, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
    client: FleetHttpClient = FleetHttpClient.from_server_address(
        address,
        False,
        ca,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())],
    )
    return client


def _waits() -> Iterator[float]:
    yield from _RETRY_S
    while True:
        yield _RETRY_S[-1]


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as exc:
        status = exc.response.status_code
        if status == httpx.codes.FORBIDDEN:
            raise RunOverError(f"{what}: the run is over") from exc
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.NOT_FOUND, httpx.codes.PRECONDITION_FAILED, httpx.codes.CONFLICT):
            raise RefusedError(f"{what}: this participant's key is not admitted ({status})") from exc
        raise NetworkError(f"{what}: the server answered {status}") from exc
    except (ObjectPullError, ObjectPushError) as exc:
        raise RunOverError(f"{what}: {exc}") from exc
    except (httpx.HTTPError, RuntimeError) as exc:
        raise NetworkError(f"{what}: {type(exc).__name__}: {exc}") from exc
