"""How the server shows itself: logs, /metrics, /healthz, /readyz."""
