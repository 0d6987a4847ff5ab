"""The front door: command line, config, order of the stages, messages."""
