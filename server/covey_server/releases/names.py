"""Names in the TUF repository: which target paths exist, and which file a device's request may open. Pure.

A request comes from the network and ends at the file system, so it is matched against the few forms that exist instead of
being searched for what is dangerous.
"""

import re

from covey_contract.errors import InvalidIdError

# director.json, releases/<model>/<version>.json, tasks/<task>/<digest>.py, agents/covey-<version>-py3-none-any.whl
_WHEEL = r"covey-[0-9][0-9A-Za-z.]{0,39}-py3-none-any\.whl"
_TARGET = re.compile(r"(?:[a-z0-9][a-z0-9_-]{0,63}/){0,2}[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.(?:json|py)|agents/" + _WHEEL)
_METADATA = re.compile(r"timestamp\.json|[1-9][0-9]{0,8}\.(?:root|snapshot|targets)\.json")
_STORED_TARGET = re.compile(
    r"(?:[a-z0-9][a-z0-9_-]{0,63}/){0,2}[0-9a-f]{64}\.[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.(?:json|py)|agents/[0-9a-f]{64}\." + _WHEEL
)


def check_target_path(path: str) -> str:
    """Return `path` if a target may have it, or raise InvalidIdError."""
    if _TARGET.fullmatch(path) is None:
        raise InvalidIdError("target path", path, _TARGET.pattern)
    return path


def is_stored_name(name: str) -> bool:
    """Whether `name` (`metadata/...` or `targets/...`) has the form of a file that the repository may hold."""
    folder, _, rest = name.partition("/")
    match folder:
        case "metadata":
            return _METADATA.fullmatch(rest) is not None
        case "targets":
            return _STORED_TARGET.fullmatch(rest) is not None
        case _:
            return False
