"""Schema migrations (Alembic). `migrate.py` runs them; each file below `versions/` is one step."""
