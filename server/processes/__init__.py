"""The processes of one machine: supervisor, children, held ports, embedded Valkey, data folder."""
