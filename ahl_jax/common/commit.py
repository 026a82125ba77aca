"""The version of this code in its checkout."""

import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit of the checkout that this code is in; None if it is in none."""

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, cwd=folder
        )
        return done.stdout.strip()

    try:
        # An installed copy may lie in the checkout of another project.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        # Results that a command writes into the checkout make no other program of it.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/*.py")
        return git("describe", "--always") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
