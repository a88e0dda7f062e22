"""The people of the demo: Ada trains, Grace reviews. Everything goes through control's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import PermissionDeniedError
from headrace.times import format_us
from server.control.client import ControlClient
from server.control.upload import upload_bundle
from server.demo.experiment import Arm
from server.demo.findings import GovernanceEvent

AUTHOR = "ada"
REVIEWER = "grace"
_DIGEST_SHOWN = 8


@dataclass
class Governance:
    """Takes versions through review to release. `titles` names versions for people, by digest."""

    control: ControlClient
    model: str
    titles: dict[str, str]
    # What control said when Ada approved her own version; None: it let her.
    refusal: str | None = None
    tried_on: str | None = None

    def register(self, folder: Path, title: str, why: str) -> str:
        """Upload and register a bundle as Ada; return the version's digest."""
        _, digest = upload_bundle(self.control, folder)
        self.control.register(self.model, digest, AUTHOR, why)
        self.titles[digest] = title
        return digest

    def approve(self, digest: str, claim: str, seen: str) -> None:
        """Submit as Ada, review and approve as Grace; the first time Ada tries to approve too."""
        self.control.act(self.model, digest, "submit", AUTHOR, claim)
        self.control.act(self.model, digest, "review", REVIEWER, seen)
        if self.tried_on is None:
            self._try_own_approval(digest)
        self.control.act(self.model, digest, "approve", REVIEWER, seen)

    def _try_own_approval(self, digest: str) -> None:
        self.tried_on = digest
        try:
            self.control.act(self.model, digest, "approve", AUTHOR, "it is my own work")
        except PermissionDeniedError as error:
            # Its first sentence: what was expected and the mend are for the one who was refused.
            self.refusal = error.what.partition(" (")[0]

    def release(self, arms: Mapping[str, Arm], why: str) -> int:
        """Release versions (digest → its arm) as Grace; return the plan's number."""
        entries = [
            {"version": version, "role": arm.role, "weight": arm.weight, "arm": arm.arm}
            for version, arm in arms.items()
        ]
        return int(self.control.release(self.model, entries, REVIEWER, why)["plan"])

    def trail(self) -> list[GovernanceEvent]:
        """Return what the registry recorded of all versions and releases, oldest first."""
        found: list[tuple[int, int, GovernanceEvent]] = []
        for digest, title in self.titles.items():
            subject = f"{title} ({digest.removeprefix('sha256:')[:_DIGEST_SHOWN]})"
            for event in self.control.version(self.model, digest)["events"]:
                found.append((event["when_us"], len(found), _event(event, subject)))
                if event["action"] == "review" and digest == self.tried_on and self.refusal:
                    # Refusals change nothing, so that the registry's trail does not hold them.
                    refused = GovernanceEvent(
                        _when(event["when_us"]), AUTHOR, "approve", subject, self.refusal,
                        refused=True,
                    )  # fmt: skip
                    found.append((event["when_us"], len(found), refused))
        for release in self.control.releases(self.model):
            shares = ", ".join(
                self._share(entry, release["entries"]) for entry in release["entries"]
            )
            action = "roll back" if release.get("back_to") is not None else "release"
            event = GovernanceEvent(
                _when(release["when_us"]), release["by"], action, shares, release["why"]
            )
            found.append((release["when_us"], len(found), event))
        return [event for _, _, event in sorted(found, key=lambda item: item[:2])]

    def _share(self, entry: dict[str, Any], entries: list[dict[str, Any]]) -> str:
        total = sum(e["weight"] for e in entries if e["role"] != "shadow") or 1.0
        title = self.titles.get(entry["version"], entry["version"])
        return f"{title} {100 * entry['weight'] / total:.0f}\u202f%"


def _when(time_us: int) -> str:
    return format_us(time_us)[:19].replace("T", " ") + " UTC"


def _event(event: dict[str, Any], subject: str) -> GovernanceEvent:
    return GovernanceEvent(
        _when(event["when_us"]), event["actor"], event["action"], subject, event["why"]
    )
