"""Private training at a participant: noise, clipping, the task's code, and one process that is a Flower SuperNode."""
