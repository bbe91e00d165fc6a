"""Covey's agent: the daemon on a device or at a partner, and the child programs that do its heavy work."""

__version__ = "0.1.0"
