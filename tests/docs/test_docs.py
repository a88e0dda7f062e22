"""The guides are run as they stand.

In docs/*.md, a fenced block that follows `<!-- file: NAME -->` is written to NAME, and the `bash`
blocks run in order as one script, in an empty folder, with the project's commands on the path.
`<!-- skip -->` before a block says that it is not run (it never ends, say).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>file: (?P<file>\S+)|skip) -->\n)?```(?P<kind>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
GUIDES = sorted(path for path in (ROOT / "docs").glob("*.md") if "```bash" in path.read_text())
TIMEOUT_S = 110


def script_of(text: str, folder: Path) -> str:
    """Write the files of a guide into `folder`; return its bash blocks as one script."""
    commands = []
    for match in BLOCK.finditer(text):
        if match["mark"] == "skip":
            continue
        if match["file"]:
            target = folder / match["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(match["body"])
        elif match["kind"] == "bash":
            commands.append(match["body"])
    return "\n".join(commands)


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_a_guide_runs_as_it_stands(guide: Path, tmp_path: Path) -> None:
    script = script_of(guide.read_text(), tmp_path)
    assert script, "a guide without a command is no guide"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # A distribution of its own, which the project's environment does not install.
        "PYTHONPATH": f"{ROOT / 'client'}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
    }
    # A guide may start servers in the background: they drain when its script ends.
    script = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n" + script
    output = tmp_path / "output"
    with output.open("w") as sink:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path, env=environment, stdout=sink, stderr=sink, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 0, output.read_text()


def test_every_link_between_documents_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
