"""Why a model answered what it answered: attributions of each feature, per row."""
