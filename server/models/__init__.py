"""Models: Triton's repository layout, bundles under a release plan, and what a loaded one is."""
