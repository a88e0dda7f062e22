"""Models that another server of the Open Inference Protocol runs, behind ours."""
