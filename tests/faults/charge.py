"""A small program for the kill harness: opens a state directory as the agent does and charges some rounds, saying each one that is done.

python -m tests.faults.charge STATE_DIR ROUNDS
"""

import sys
from pathlib import Path

from covey_agent.adapters.ledger_file import LEDGER_NAME, LedgerFile
from covey_agent.adapters.store_sqlite import DATABASE_NAME, SqliteState, open_database
from covey_agent.core.policy import LedgerEntry
from covey_contract.messages import PrivacyPlan

PLAN = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.1, steps=10, delta=1e-5)


def main() -> None:
    """Charge every round that is not in the ledger yet."""
    state_dir, rounds = Path(sys.argv[1]), int(sys.argv[2])
    database = open_database(state_dir / DATABASE_NAME)
    state = SqliteState(database, LedgerFile(state_dir / LEDGER_NAME))
    charged = {entry.round for entry in state.charges()}
    for number in range(1, rounds + 1):
        if number not in charged:
            state.append_charge(LedgerEntry(run="run", round=number, dataset="digits", plan=PLAN, at=number))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
    database.close()


if __name__ == "__main__":
    main()
