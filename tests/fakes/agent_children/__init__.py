"""Child programs that misbehave, for the children adapter and the daemon: `python -m tests.fakes.agent_children.<name>`."""
