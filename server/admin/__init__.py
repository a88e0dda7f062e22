"""The admin port: what operators ask of a whole server, over HTTP."""
