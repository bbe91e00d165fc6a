"""What devices and server say to each other: ids, topics, messages, the release manifest, limits.

This package is pure: it does no I/O, imports none of Covey's other packages, and needs only msgspec, because the idle
agent on a small device imports it. Everything that crosses the wire is defined here and nowhere else.
"""
