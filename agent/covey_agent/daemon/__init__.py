"""The parts of the idle process: each owns one concern, reacts to events of the one inbox, and acts through the ports."""
