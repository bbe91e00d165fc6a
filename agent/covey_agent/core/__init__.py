"""The agent's rules, pure: they are fed with values and a time, and answer with values. Standard library and contract only."""
