"""The agent's child programs, each `python -m covey_agent.workers.<name>`, one job and out.

Heavy libraries (TUF, cryptography, numpy, a runtime, torch) live only here, so that the idle agent stays small and a crash in
one of them costs a child, not the agent. How agent and child talk: `covey_agent/core/jobs.py`; the child's end: `lines.py`.
"""
