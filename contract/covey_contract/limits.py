"""Numbers that both sides of the wire must agree on."""

MAX_PAYLOAD_BYTES = 128 * 1024  # MQTT payload, the smallest limit among the supported brokers (AWS IoT)
MAX_INFLATED_BYTES = 4 * 1024 * 1024  # a compressed payload may not unpack to more
MAX_TOPIC_LEVELS = 8
CHUNK_BYTES = 64 * 1024  # one artifact chunk; at 1 Mbit/s it holds the link for half a second
GROUP_CHUNKS = 16  # chunks asked for and answered together
METADATA_PART_BYTES = 64 * 1024  # one part of a metadata reply
MAX_METADATA_BYTES = 5_000_000  # one TUF metadata file, as python-tuf's own limit
MAX_MANIFEST_BYTES = 2_000_000  # one release manifest
MAX_ARTIFACT_BYTES = 2 * 1024**3
MAX_READINGS_PER_BATCH = 2000
MAX_VALUES_PER_READING = 64
MAX_VARIANTS = 32
MAX_GOLDEN_INPUTS = 64
MAX_COUNT = 2**63 - 1  # what a database's integer holds
MAX_MILLIS = 253_402_300_799_999  # the end of the year 9999, the last that a date can be
MAX_CSR_CHARS = 16_384  # a certificate request or certificate, PEM
MAX_REASON_CHARS = 500  # a human-readable reason in a message


def chunk_count(length: int) -> int:
    """How many chunks an artifact of `length` bytes has."""
    return (length + CHUNK_BYTES - 1) // CHUNK_BYTES


def group_count(length: int) -> int:
    """How many chunk groups an artifact of `length` bytes has."""
    return (chunk_count(length) + GROUP_CHUNKS - 1) // GROUP_CHUNKS
