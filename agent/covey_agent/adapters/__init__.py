"""The agent's thin edges to the outside: one file for each of broker, database, child processes, sockets, clock, /proc."""
