"""What every stage stands on: options, run folder, progress, processes."""
