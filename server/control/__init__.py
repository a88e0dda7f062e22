"""Control: the registry by HTTP, the release plan feed, and the ingester and monitor roles."""
