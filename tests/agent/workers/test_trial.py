"""The variant is chosen by what was measured on this device: real files in real runtimes, each timed in a process of its own."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.children import Child
from tests.fakes.nats_broker import RunningBroker, running_broker
from tests.fakes.poison import ALWAYS, Behaviour, poison_file, poison_variant
from tests.fakes.tiny_releases import make_release, make_variant
from tests.fakes.tuf_repository import Director, TufRepository
from tests.fakes.wants_server import WantsServer

from covey_agent.core.jobs import BrokerAddress, ChildEvent, DeployJob, LinkRules, MeteredPolicy, Staged, VariantChosen, VariantsMeasured
from covey_agent.workers.choose import choose_variant
from covey_agent.workers.probe import probe
from covey_agent.workers.runtimes import list_providers
from covey_agent.workers.slotmodel import read_slot
from covey_agent.workers.trial import NEVER, is_worth_it, measure_apart, unmeasured, way
from covey_contract.codec import digest_of, encode
from covey_contract.messages import Capabilities, Desired, ReleaseRef
from covey_contract.release import Release, Runtime, Variant

DEVICE = "pi-1"
ABLE = Capabilities(
    arch="x86_64",
    memory=1 << 30,
    runtimes={"onnxruntime": "1.31.1", "litert": "2.3.0"},
    providers={"onnxruntime": ["CPUExecutionProvider"], "litert": ["XNNPACK", "builtin"]},
)
HEALTHY_INK = 2.0


def variant(behaviour: Behaviour, runtime: Runtime, ink: float) -> tuple[Variant, bytes]:
    data = poison_file(behaviour, runtime, ink=ink)
    return poison_variant(data, runtime), data


# -- measuring ---------------------------------------------------------------------------------------------------------


@pytest.mark.runtime
@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, Runtime.LITERT])
def test_each_provider_that_a_runtime_has_is_timed(tmp_path: Path, runtime: Runtime) -> None:
    described, data = variant(Behaviour.CRASH, runtime, HEALTHY_INK)
    (tmp_path / "model").write_bytes(data)
    for provider in list_providers(runtime):
        assert 0 < measure_apart(tmp_path / "model", described, provider) < 1000


@pytest.mark.runtime
def test_an_artifact_that_kills_its_process_is_never_chosen_and_hurts_nobody(tmp_path: Path) -> None:
    described, data = variant(Behaviour.CRASH_AT_LOAD, Runtime.ONNXRUNTIME, ALWAYS)
    (tmp_path / "model").write_bytes(data)
    assert measure_apart(tmp_path / "model", described, "") == NEVER


@pytest.mark.runtime
def test_a_provider_that_is_not_here_is_never_chosen(tmp_path: Path) -> None:
    described, data = variant(Behaviour.CRASH, Runtime.ONNXRUNTIME, HEALTHY_INK)
    (tmp_path / "model").write_bytes(data)
    assert measure_apart(tmp_path / "model", described, "CUDAExecutionProvider") == NEVER


@pytest.mark.runtime
def test_the_probe_lists_the_providers_that_compute_here() -> None:
    found = probe().capabilities
    assert found.providers["onnxruntime"][0] == "CPUExecutionProvider"
    assert "AzureExecutionProvider" not in found.providers["onnxruntime"]
    assert found.providers["litert"] == ["XNNPACK", "builtin"]


# -- choosing ----------------------------------------------------------------------------------------------------------


def named(name: str, length: int) -> Variant:
    runtime = Runtime.LITERT if name.startswith("tflite") else Runtime.ONNXRUNTIME
    return msgspec.structs.replace(make_variant(b"x", name=name, runtime=runtime), length=length)


FOUR = [named("onnx-float32", 400), named("onnx-int8", 110), named("tflite-float32", 390), named("tflite-int8", 100)]


def release(*variants: Variant) -> Release:
    return make_release(variants, inputs=np.zeros((1, 2), np.float32), outputs=np.zeros((1, 2), np.float32))


def ways() -> list[str]:
    return [way(v, p) for v in FOUR for p in ABLE.providers[v.needs.runtime.value]]


def test_the_fastest_here_is_chosen_with_its_provider_and_says_so() -> None:
    times = {
        "onnx-float32@CPUExecutionProvider": 2.0,
        "onnx-int8@CPUExecutionProvider": 3.0,
        "tflite-float32@XNNPACK": 4.0,
        "tflite-float32@builtin": 9.0,
        "tflite-int8@XNNPACK": 2.5,
        "tflite-int8@builtin": 1.0,
    }
    choice = choose_variant(release(*FOUR), ABLE, times)
    assert (choice.variant.name, choice.provider) == ("tflite-int8", "builtin")
    assert choice.reason.startswith("tflite-int8 by builtin: 1 ms measured here; ")
    assert "onnx-int8 3 ms" in choice.reason


def test_what_is_hardly_slower_and_smaller_is_preferred() -> None:
    times = dict.fromkeys(ways(), 1.05) | {"onnx-float32@CPUExecutionProvider": 1.0}
    assert choose_variant(release(*FOUR), ABLE, times).variant.name == "tflite-int8"
    times["onnx-float32@CPUExecutionProvider"] = 0.9
    assert choose_variant(release(*FOUR), ABLE, times).variant.name == "onnx-float32"


@given(st.dictionaries(st.sampled_from(ways()), st.floats(0.01, 1000) | st.just(NEVER)))
def test_the_choice_is_never_a_tenth_slower_than_the_fastest_and_never_what_cannot_run(times: dict[str, float]) -> None:
    choice = choose_variant(release(*FOUR), ABLE, times)
    best = {v.name: min((times.get(way(v, p), math.inf) for p in ABLE.providers[v.needs.runtime.value]), default=math.inf) for v in FOUR}
    known = {name: ms for name, ms in best.items() if ms < NEVER}
    if len(known) > 1:
        assert best[choice.variant.name] <= 1.1 * min(known.values())
        assert times[way(choice.variant, choice.provider)] == best[choice.variant.name]
    assert choice == choose_variant(release(*reversed(FOUR)), ABLE, times) or len(known) <= 1


def test_a_trial_is_for_a_choice_that_is_small_and_still_open() -> None:
    assert unmeasured(FOUR, ABLE, {}) == FOUR
    assert unmeasured(FOUR, ABLE, dict.fromkeys(ways(), 1.0)) == []
    assert is_worth_it(FOUR, FOUR, most_bytes=1000)
    assert not is_worth_it(FOUR, FOUR, most_bytes=999)
    assert not is_worth_it(FOUR[:1], FOUR[:1], most_bytes=1000)
    assert not is_worth_it(FOUR, [], most_bytes=1000)


# -- deploying ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker"), devices=[DEVICE]) as made:
        yield made


@pytest.mark.broker
@pytest.mark.runtime
def test_a_device_tries_each_variant_once_for_a_model_and_stages_the_fastest(broker: RunningBroker, tmp_path: Path) -> None:
    slow, slow_data = variant(Behaviour.SLOW, Runtime.ONNXRUNTIME, ALWAYS)
    fast, fast_data = variant(Behaviour.CRASH, Runtime.LITERT, HEALTHY_INK)
    director, repository = Director(), TufRepository()
    repository.add_target("director.json", director.public_document())
    refs = []
    for version in (1, 2):
        inputs, outputs = np.zeros((1, 1, 28, 28), np.float32), np.zeros((1, 10), np.float32)
        manifest = encode(make_release([slow, fast], inputs=inputs, outputs=outputs, model="tiny", version=version))
        repository.add_target(f"releases/tiny/{version}.json", manifest)
        refs.append(ReleaseRef(model="tiny", version=version, manifest=digest_of(manifest)))
    repository.publish()
    state_dir = repository.enrol(tmp_path / "state")
    files = broker.identity(DEVICE)
    address = BrokerAddress("127.0.0.1", broker.port, str(files.ca), str(files.certificate), str(files.key), DEVICE)
    with ExitStack() as stack:
        server = stack.enter_context(WantsServer(broker, repository, {digest_of(data): data for data in (slow_data, fast_data)}))

        def deploy(version: int, measured: dict[str, float], **changes: object) -> list[ChildEvent]:
            server.sent.clear()
            order = Desired(device=DEVICE, generation=version, issued_at=1, release=refs[version - 1])
            job = DeployJob(
                state_dir=str(state_dir),
                broker=address,
                order=encode(director.sign(order)),
                slot_dir=str(state_dir / "slots" / "B"),
                active_artifact="",
                capabilities=ABLE,
                quarantine=[],
                reserve_bytes=0,
                measured=measured,
                trial_bytes=1_000_000,
            )
            with Child("deploy", msgspec.structs.replace(job, **changes)) as child:
                events = child.rest(timeout_s=120)
                assert child.process.returncode == 0, child.log
                return events

        events = deploy(1, {})
        told = next(event for event in events if isinstance(event, VariantsMeasured))
        assert told.model == "tiny"
        assert set(told.latencies) == {"onnx-float32@CPUExecutionProvider", "tflite-float32@XNNPACK", "tflite-float32@builtin"}
        assert told.latencies["onnx-float32@CPUExecutionProvider"] > 10 * told.latencies["tflite-float32@XNNPACK"]
        chosen = next(event for event in events if isinstance(event, VariantChosen))
        assert (chosen.variant, isinstance(events[-1], Staged)) == ("tflite-float32", True)
        assert "measured here; onnx-float32" in chosen.reason
        slot = read_slot(state_dir / "slots" / "B").slot
        assert slot.provider in ("XNNPACK", "builtin")
        assert len(server.sent) == 2, "each artifact was fetched once"

        again = deploy(2, told.latencies)
        assert not any(isinstance(event, VariantsMeasured) for event in again)
        assert next(event for event in again if isinstance(event, VariantChosen)).variant == "tflite-float32"

        careful = deploy(1, {}, link=LinkRules(policy=MeteredPolicy.SMALL, small_bytes=10**6))
        assert not any(isinstance(event, VariantsMeasured) for event in careful)
