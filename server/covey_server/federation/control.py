"""Flower's control API, which has no login and is therefore bound to loopback: keys, runs, logs.

Internal modules of flwr 1.41.0, pinned exactly; `tests/server/federation/` runs this against a real SuperLink.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from covey_server.errors import InvalidInputError, UnavailableError
from covey_server.settings import Settings


@dataclass(frozen=True, slots=True)
class FlowerStatus:
    """How a Flower run stands."""

    state: str  # pending, starting, running, finished
    outcome: str  # completed, failed, stopped; empty until finished
    detail: str

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state == "finished"


class FlowerControl(Protocol):
    """What the worker needs of Flower. Every method raises UnavailableError when the SuperLink does not answer."""

    def admit(self, public_key: str, *, name: str) -> str:
        """Let the SuperNode with this OpenSSH key in; its node id. Admitting twice is admitting once."""
        ...

    def expel(self, node_id: str) -> None:
        """Let it in no longer."""
        ...

    def start(self, config: Mapping[str, str | int | float | bool]) -> str:
        """Start the ServerApp with this configuration; the id of the Flower run."""
        ...

    def status(self, flower_run: str) -> FlowerStatus | None:
        """How a run stands; None if Flower does not know it."""
        ...

    def stop(self, flower_run: str) -> None:
        """Stop a run."""
        ...


class SuperLinkControl:
    """FlowerControl over HTTPS to the SuperLink on loopback."""

    def __init__(self, address: str, *, ca: bytes, app_dir: Path) -> None:
        from flwr.supercore.control import ControlHttpClient  # noqa: PLC0415 - flwr takes a second; only the worker needs it
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor  # noqa: PLC0415 - see above

        self._app_dir = app_dir
        self._client: Any = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=ca,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="covey")],
        )

    @classmethod
    def open(cls, settings: Settings) -> "SuperLinkControl":
        """To the SuperLink that these settings describe."""
        return cls(
            f"127.0.0.1:{settings.flower.port}",
            ca=settings.path("pki", "ca.crt").read_bytes(),
            app_dir=Path(__file__).parent / "flower_app",
        )

    def close(self) -> None:
        """Close the connection; a SuperLink waits half a minute for it when it stops."""
        self._client.close()

    def admit(self, public_key: str, *, name: str) -> str:
        """Register a key, or find the node that it is registered for."""
        from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest  # noqa: PLC0415 - see __init__
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes  # noqa: PLC0415 - see __init__

        try:
            key = load_ssh_public_key(public_key.encode())
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise InvalidInputError(f"the SuperNode key of {name} is not an OpenSSH public key") from exc
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidInputError(f"the SuperNode key of {name} is not an elliptic curve key")
        raw = public_key_to_bytes(key)
        with _translated("listing nodes"):
            for node in self._client.ListNodes(ListNodesRequest()).nodes_info:
                if node.public_key == raw and node.status != "unregistered":
                    return str(node.node_id)
        with _translated("registering a node"):
            return str(self._client.RegisterNode(RegisterNodeRequest(public_key=raw, name=name)).node_id)

    def expel(self, node_id: str) -> None:
        """Unregister a node; one that is not there is gone already."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest  # noqa: PLC0415 - see __init__

        with _translated("unregistering a node", gone_is_fine=True):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=int(node_id)))

    def start(self, config: Mapping[str, str | int | float | bool]) -> str:
        """Ship our ServerApp and start it."""
        from flwr.cli.build import build_fab_from_disk  # noqa: PLC0415 - see __init__
        from flwr.common.serde import fab_to_proto, user_config_to_proto  # noqa: PLC0415 - see __init__
        from flwr.proto.control_pb2 import StartRunRequest  # noqa: PLC0415 - see __init__
        from flwr.supercore.fab import Fab  # noqa: PLC0415 - see __init__

        bundle = build_fab_from_disk(self._app_dir)
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto(dict(config)),
            federation="",
        )
        with _translated("starting a run"):
            return str(self._client.StartRun(request).run_id)

    def status(self, flower_run: str) -> FlowerStatus | None:
        """Ask Flower."""
        from flwr.proto.control_pb2 import ListRunsRequest  # noqa: PLC0415 - see __init__

        ident = int(flower_run)
        with _translated("asking for a run", gone_is_fine=True):
            runs = self._client.ListRuns(ListRunsRequest(run_id=ident)).run_dict
            if ident in runs:
                status = runs[ident].status
                return FlowerStatus(state=status.status, outcome=status.sub_status, detail=status.details)
        return None

    def stop(self, flower_run: str) -> None:
        """Stop a run; one that is over stays over."""
        from flwr.proto.control_pb2 import StopRunRequest  # noqa: PLC0415 - see __init__

        with _translated("stopping a run", gone_is_fine=True):
            self._client.StopRun(StopRunRequest(run_id=int(flower_run)))

    def nodes(self) -> dict[str, str]:
        """Node id -> online, offline or registered."""
        from flwr.proto.control_pb2 import ListNodesRequest  # noqa: PLC0415 - see __init__

        with _translated("listing nodes"):
            return {str(node.node_id): str(node.status) for node in self._client.ListNodes(ListNodesRequest()).nodes_info}

    def logs(self, flower_run: str, *, after: float = 0.0) -> Iterator[tuple[float, str]]:
        """What a ServerApp logged: (time, text)."""
        from flwr.proto.control_pb2 import StreamLogsRequest  # noqa: PLC0415 - see __init__

        with _translated("reading logs"):
            for part in self._client.StreamLogs(StreamLogsRequest(run_id=int(flower_run), after_timestamp=after)):
                yield float(part.latest_timestamp), str(part.log_output)


@contextmanager
def _translated(what: str, *, gone_is_fine: bool = False) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as exc:
        status = exc.response.status_code
        if gone_is_fine and status in {httpx.codes.NOT_FOUND, httpx.codes.PRECONDITION_FAILED, httpx.codes.CONFLICT}:
            return
        raise UnavailableError(f"{what}: the SuperLink answered {status}: {exc.response.text[:200]}") from exc
    except (httpx.HTTPError, OSError, RuntimeError) as exc:
        raise UnavailableError(f"{what}: the SuperLink does not answer: {exc}") from exc
