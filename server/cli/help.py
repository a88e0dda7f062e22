"""How help looks on a terminal: nothing is cut, and many options stand under headings.

Without rich, which would cost a third of the start-up, typer shows neither.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

# Of `headrace serve` and `headrace up`, by the names of their parameters.
SECTIONS = {
    "Models": (
        "model_repository", "model_control_mode", "load_model", "repository_poll_s", "registry",
        "strict_readiness", "exit_on_error",
    ),
    "Listening": (
        "host", "grpc_port", "http_port", "metrics_port", "metrics_host", "control_port",
        "transport", "connection_age_s",
    ),
    "Processes": ("workers", "nursery", "drain_s", "unready_s"),
    "Limits": ("run_timeout_s", "model_memory_mib", "rate_limit", "rate_limit_resource"),
    "Requests": ("cache_config", "shared_memory", "replay_scope"),
    "Data": ("data_dir", "redis"),
    "Encryption and access": ("tls_cert", "tls_key", "tls_client_ca", "access"),
    "Operators": ("admin_port", "admin_grpc_port", "admin_host", "admin_only"),
    "Logs and traces": ("log_format", "log_requests", "trace_endpoint", "trace_rate"),
}  # fmt: skip
_SUMMARY_LENGTH_MAX = 1000  # a first sentence ends before


class PlainGroup(TyperGroup):
    """Shows the first sentence of each command whole, on as many lines as it takes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([
                (name, command.get_short_help_str(_SUMMARY_LENGTH_MAX))
                for name, command in commands.items()
                if command is not None and not command.hidden
            ])  # fmt: skip


class ServingCommand(TyperCommand):
    """Shows its options under the headings of `SECTIONS`; the others come last."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options."""
        records = {each.name: each.get_help_record(ctx) for each in self.get_params(ctx)}
        listed = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in records if name not in listed)
        for title, names in (*SECTIONS.items(), ("Options", others)):
            rows = [records[name] for name in names if records.get(name) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
