"""One module a command of `covey-agent`; each has `add_arguments(parser)` and `run(options) -> exit code`, and is imported when used."""
