"""What answers: wire, protocols, models, execution, processes, control and the command line."""
