"""The server: fleet state, releases, rollouts, federated runs, the privacy ledger, telemetry, console, API and CLI."""

__version__ = "0.1.0"
