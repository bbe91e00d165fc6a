"""Make fleet.db.example from the database that a real demo run left.

    make demo ARGS="--workdir /tmp/covey-demo --exit"
    .venv/bin/python scripts/make_example_database.py /tmp/covey-demo/server/fleet.db fleet.db.example

What is secret (users, tokens, logins, invitations, certificates, signed orders) is taken out, everybody is offline, and moments
are kept as they were. A demo that ran for hours makes too large a file and is refused.
"""

import argparse
import shutil
import sqlite3
import sys
from pathlib import Path

_EMPTIED = ("users", "api_tokens", "logins", "idempotency_keys", "invitations", "certificates", "desired_states", "outbox", "counters")
_MAX_BYTES = 1_500_000


def main() -> int:
    """Copy, clean, shrink, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    draft = arguments.target.with_suffix(".draft")
    with sqlite3.connect(arguments.source) as source:
        source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(arguments.source, draft)
    database = sqlite3.connect(draft, isolation_level=None)
    database.execute("PRAGMA journal_mode=DELETE")
    for table in _EMPTIED:
        database.execute(f"DELETE FROM {table}")  # noqa: S608 - the names stand above
    database.execute("DELETE FROM live_events WHERE id <= (SELECT max(id) FROM live_events) - 100")
    database.execute("UPDATE devices SET presence = 'OFFLINE', supernode_public_key = '', supernode_id = '', certificate_serial = ''")
    database.execute("UPDATE runs SET held_out = ''")
    database.execute("VACUUM")
    database.close()
    size = draft.stat().st_size
    if size > _MAX_BYTES:
        draft.unlink()
        sys.stderr.write(f"expected at most {_MAX_BYTES} bytes, got {size}: use a shorter demo\n")
        return 1
    draft.replace(arguments.target)
    print(f"wrote {arguments.target}: {size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
