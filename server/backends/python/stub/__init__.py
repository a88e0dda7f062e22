"""What runs in a model's process, beside the model.

Nothing here imports anything of ours: a model's own modules may be called `server` or `features`.
"""
