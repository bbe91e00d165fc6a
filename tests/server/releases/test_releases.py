"""Releases from their artifacts to a signed manifest, and what is refused on the way."""

import base64
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import select
from tests.server.releases.bench import GOLDEN, QUALITY, TENSOR, Bench, import_spec, make_bench

from covey_contract.codec import decode_release, digest_of
from covey_contract.limits import CHUNK_BYTES
from covey_contract.release import Golden, Quality, Runtime
from covey_server.audit.models import AuditEvent
from covey_server.errors import ConflictError, InvalidInputError, NotFoundError, RefusedError, UnavailableError
from covey_server.outbox import LiveEvent
from covey_server.releases.imports import import_release, store_data, store_file
from covey_server.releases.models import Artifact, Release, ReleaseState, Variant
from covey_server.releases.requests import ImportSpec, decode_import_spec
from covey_server.releases.rules import Candidate, check_golden, judge_release, judge_variant
from covey_server.releases.service import get_release, id_of, list_releases, published_length, shippable_ref, withdraw_release

BAD = msgspec.structs.replace(QUALITY, accuracy=0.7, accuracy_drop=0.2)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def publish(bench: Bench, spec: ImportSpec, *, unmeasured: bool = False, content: bytes = b"model") -> Release:
    file = bench.parts.settings.path("artifact")
    files = {}
    for variant in spec.variants:
        file.write_bytes(content + variant.name.encode())
        files[variant.file] = store_file(file, bench.parts.blobs)
    with bench.parts.db.begin() as session:
        return import_release(
            session,
            spec,
            files,
            unmeasured=unmeasured,
            max_accuracy_drop=0.01,
            blobs=bench.parts.blobs,
            repository=bench.repository,
            now=bench.clock(),
            actor="token:test",
        )


def test_a_published_release_is_a_target_with_all_that_a_device_needs(bench: Bench) -> None:
    content = b"x" * (2 * CHUNK_BYTES)
    release = publish(bench, import_spec(), content=content)
    target = bench.repository.targets["releases/digits/1.json"]
    manifest = decode_release(target)
    (variant,) = manifest.variants
    artifact = content + b"onnx-int8"
    assert digest_of(target) == release.manifest_digest
    assert (manifest.model, manifest.version, manifest.labels, manifest.golden) == ("digits", 1, ["a", "b"], GOLDEN)
    assert (variant.artifact, variant.length) == (digest_of(artifact), len(artifact))
    assert variant.chunks == [digest_of(artifact[start : start + CHUNK_BYTES]) for start in (0, CHUNK_BYTES, 2 * CHUNK_BYTES)]
    assert bench.parts.blobs.read(release.manifest_digest) == target
    assert shippable_ref(release).manifest == digest_of(target)


def test_the_manifest_is_these_very_bytes(bench: Bench) -> None:
    publish(bench, import_spec())
    golden = Path(__file__).with_name("manifest.golden.json")
    assert bench.repository.targets["releases/digits/1.json"] == golden.read_bytes().rstrip(b"\n")


def test_versions_count_up_by_model_and_none_is_given_twice(bench: Bench) -> None:
    versions = [publish(bench, import_spec()).version, publish(bench, import_spec()).version, publish(bench, import_spec("other")).version]
    assert versions == [1, 2, 1]
    with pytest.raises(ConflictError, match="exists already; the newest is 2"):
        publish(bench, msgspec.structs.replace(import_spec(), version=1))


def test_a_variant_over_its_budget_is_left_out_with_the_reason(bench: Bench) -> None:
    release = publish(bench, import_spec(variants=(("onnx-int8", QUALITY), ("tflite-int8", BAD))))
    assert release.state is ReleaseState.PUBLISHED
    manifest = decode_release(bench.repository.targets["releases/digits/1.json"])
    assert [variant.name for variant in manifest.variants] == ["onnx-int8"]
    with bench.parts.db.read() as session:
        refused = session.exec(select(Variant).where(Variant.name == "tflite-int8")).one()
        assert (refused.accepted, refused.reason) == (False, "accuracy drops by 0.2000, the budget is 0.01")
        assert published_length(session, refused.artifact) is None


def test_a_release_without_a_variant_in_its_budget_fails_with_the_reasons(bench: Bench) -> None:
    release = publish(bench, import_spec(variants=(("onnx-int8", BAD),)))
    assert release.state is ReleaseState.FAILED
    assert release.reason == "no variant is within its budget (onnx-int8: accuracy drops by 0.2000, the budget is 0.01)"
    assert bench.repository.targets == {}
    with pytest.raises(ConflictError, match="only a published release"):
        shippable_ref(release)


def test_unmeasured_artifacts_need_the_callers_word_and_leave_a_trace(bench: Bench) -> None:
    spec = import_spec(variants=(("onnx-int8", None),))
    with pytest.raises(RefusedError, match="--unmeasured"):
        publish(bench, spec)
    release = publish(bench, spec, unmeasured=True)
    assert release.state is ReleaseState.PUBLISHED
    with bench.parts.db.read() as session:
        event = session.exec(select(AuditEvent).where(AuditEvent.action == "release.imported")).one()
        assert (event.actor, event.subject, event.detail) == ("token:test", "digits/1", {"measured": False})
        assert session.exec(select(Variant)).one().reason == "imported without measurement"


def test_publishing_fails_as_a_whole_if_the_repository_does(bench: Bench) -> None:
    bench.repository.fails = UnavailableError("no key")
    with pytest.raises(UnavailableError):
        publish(bench, import_spec())
    with bench.parts.db.read() as session:
        assert session.exec(select(Release)).all() == []
        assert session.exec(select(Artifact)).all() == []


def test_a_withdrawn_release_is_no_target_and_cannot_be_shipped_or_withdrawn_again(bench: Bench) -> None:
    release_id = id_of(publish(bench, import_spec()))
    with bench.parts.db.begin() as session:
        withdraw_release(session, release_id, repository=bench.repository, actor="user:x", reason="licence")
    assert bench.repository.targets == {}
    with bench.parts.db.begin() as session, pytest.raises(ConflictError, match="is withdrawn"):
        withdraw_release(session, release_id, repository=bench.repository, actor="user:x")
    with bench.parts.db.read() as session:
        assert get_release(session, release_id).reason == "licence"
        assert session.exec(select(LiveEvent)).all()[-1].data["state"] == "withdrawn"


def test_the_same_file_in_two_variants_is_one_artifact(bench: Bench) -> None:
    spec = import_spec(variants=(("onnx-int8", QUALITY), ("onnx-float32", QUALITY)))
    file = bench.parts.settings.path("artifact")
    file.write_bytes(b"one file")
    stored = store_file(file, bench.parts.blobs)
    with bench.parts.db.begin() as session:
        import_release(
            session,
            spec,
            {variant.file: stored for variant in spec.variants},
            unmeasured=False,
            max_accuracy_drop=0.01,
            blobs=bench.parts.blobs,
            repository=bench.repository,
            now=bench.clock(),
            actor="token:test",
        )
    with bench.parts.db.read() as session:
        assert published_length(session, stored.digest) == 8


def test_lists_go_by_model_state_and_page(bench: Bench) -> None:
    for _ in range(3):
        publish(bench, import_spec())
    publish(bench, import_spec("other", variants=(("onnx-int8", BAD),)))
    with bench.parts.db.read() as session:
        assert [release.version for release in list_releases(session, model="digits")] == [3, 2, 1]
        assert [release.model for release in list_releases(session, state=ReleaseState.FAILED)] == ["other"]
        newest = list_releases(session, limit=2)
        assert [release.id for release in list_releases(session, before=newest[-1].id)] == [2, 1]
        with pytest.raises(NotFoundError):
            get_release(session, 99)


def test_a_name_that_is_none_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidInputError):
        decode_import_spec(msgspec.json.encode(msgspec.structs.replace(import_spec(), model="../etc")))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"model":"x","surprise":1}', b"[" * 10_000])
def test_a_description_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        decode_import_spec(data)


def test_a_description_that_names_a_file_that_did_not_come_is_refused(bench: Bench) -> None:
    with bench.parts.db.begin() as session, pytest.raises(InvalidInputError, match=r"did not come: onnx-int8\.onnx"):
        import_release(
            session,
            import_spec(),
            {},
            unmeasured=False,
            max_accuracy_drop=0.01,
            blobs=bench.parts.blobs,
            repository=bench.repository,
            now=bench.clock(),
            actor="token:test",
        )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, ""),
        ({"inputs": "!!"}, "not base64"),
        ({"inputs": base64.b64encode(b"\0" * 7).decode()}, "need 8 bytes"),
        ({"outputs": ""}, "need 8 bytes"),
        ({"input_shape": []}, "must have a shape"),
        ({"input_shape": [0, 2]}, "must have a shape"),
        ({"input_shape": [65, 2]}, "must have a shape"),
        ({"output_shape": [2, 1]}, "1 golden inputs and 2 outputs"),
    ],
)
def test_goldens_are_checked(change: dict[str, object], fault: str) -> None:
    found = check_golden(msgspec.structs.replace(GOLDEN, **change))
    assert fault in found
    assert bool(found) == bool(fault)


def candidate(**changes: object) -> Candidate:
    values: dict[str, object] = {
        "name": "onnx-int8",
        "precision": "int8",
        "runtime": Runtime.ONNXRUNTIME,
        "min_runtime_version": "1.20",
        "artifact": "a" * 64,
        "length": 10,
        "input": TENSOR,
        "output": TENSOR,
        "golden_tolerance": 0.05,
        "quality": QUALITY,
    }
    return Candidate(**(values | changes))  # type: ignore[arg-type]  # a table of values of several types


def quality(**changes: float) -> Quality:
    return msgspec.structs.replace(QUALITY, **changes)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (candidate(), ""),
        (candidate(quality=None), ""),
        (candidate(quality=quality(accuracy_drop=0.01)), ""),
        (candidate(quality=quality(accuracy_drop=-0.5)), ""),
        (candidate(quality=quality(accuracy_drop=0.011)), "accuracy drops by 0.0110"),
        (candidate(quality=quality(accuracy=float("nan"))), "not a number"),
        (candidate(quality=quality(relative_error=float("inf"))), "not a number"),
        (candidate(length=0), "has 0 bytes"),
        (candidate(artifact=""), "could not be made"),
        (candidate(input=None), "could not be made"),
        (candidate(accepted=False, reason="NaN in the outputs"), "NaN in the outputs"),
    ],
)
def test_the_quality_gate(variant: Candidate, reason: str) -> None:
    judged = judge_variant(variant, max_accuracy_drop=0.01)
    assert judged.accepted is (reason == "")
    assert reason in judged.reason


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1))
def test_the_gate_never_passes_a_drop_over_the_budget(drop: float, budget: float) -> None:
    judged = judge_variant(candidate(quality=quality(accuracy_drop=drop)), max_accuracy_drop=budget)
    assert not judged.accepted or drop <= budget + 1e-6


def test_a_release_needs_a_variant_and_not_too_many() -> None:
    assert judge_release([]) == "no variant was made"
    assert judge_release([candidate()]) == ""
    assert "33 variants" in judge_release([candidate(name=f"v{number}") for number in range(33)])


def test_a_golden_that_does_not_fit_fails_the_release_and_not_the_device(bench: Bench) -> None:
    golden = Golden(input_shape=[1, 2], output_shape=[1, 2], inputs="", outputs="")
    with pytest.raises(InvalidInputError, match="need 8 bytes"):
        publish(bench, msgspec.structs.replace(import_spec(), golden=golden))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK"])
def test_data_that_is_no_npz_is_refused_before_a_worker_sees_it(bench: Bench, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"not an \.npz"):
        store_data(path, bench.parts.blobs)
    with pytest.raises(InvalidInputError, match="there is no data file"):
        store_data(tmp_path / "nowhere.npz", bench.parts.blobs)
