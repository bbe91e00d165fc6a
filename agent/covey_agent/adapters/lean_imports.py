"""Import this before paho: it keeps the standard library's HTTP and e-mail packages out of the idle process (2 MB of 30).

paho imports `urllib.request` for two functions that find a proxy, and calls them only where PySocks is installed. While paho is
imported, a module with just these two stands in; whoever imports `urllib.request` later gets the real one.
"""

import sys
import types
import urllib
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "urllib.request"


@contextmanager
def without_http() -> Iterator[None]:
    """Stand in for `urllib.request` within the block, unless the real one is loaded already."""
    if _NAME in sys.modules:
        yield
        return
    stand_in = types.ModuleType(_NAME)
    vars(stand_in).update(getproxies=dict, proxy_bypass=lambda _host: True)
    vars(urllib)["request"] = sys.modules[_NAME] = stand_in
    try:
        yield
    finally:
        del sys.modules[_NAME]
