"""Covey's agent as a system service: its unit, its user, and what `install` writes."""
