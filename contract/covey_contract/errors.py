"""Errors of the wire contract, each with the data that a log line or a counter needs."""


class ContractError(Exception):
    """Something that crossed, or was about to cross, the wire breaks the contract."""

    reason = "contract"  # the label of the refusal counter


class InvalidIdError(ContractError):
    """An identifier does not match its pattern."""

    reason = "invalid_id"

    def __init__(self, kind: str, value: object, expected: str) -> None:
        super().__init__(f"{kind} must match {expected}, got {value!r:.80}")
        self.kind = kind
        self.value = value


class InvalidTopicError(ContractError):
    """A topic is not one of Covey's."""

    reason = "invalid_topic"


class PayloadTooLargeError(ContractError):
    """A payload is longer than the contract allows."""

    reason = "too_large"

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} has {size} bytes, at most {limit} are allowed")
        self.size = size
        self.limit = limit


class MalformedPayloadError(ContractError):
    """A payload does not decode to the message that its topic carries."""

    reason = "malformed"


class StaleMessageError(ContractError):
    """A message is older than one already handled, or past its expiry."""

    reason = "stale"
