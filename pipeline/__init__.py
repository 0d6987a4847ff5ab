"""The front door: command line, configuration, the plan of stages, the run folder."""
