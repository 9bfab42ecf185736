"""What a person runs on one machine: the commands, the simulation, the report."""
