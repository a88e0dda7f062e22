"""Who may do what, and how much of it: access files, credentials, scopes, limits."""
