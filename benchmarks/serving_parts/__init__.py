"""The parts of the serving benchmark."""
