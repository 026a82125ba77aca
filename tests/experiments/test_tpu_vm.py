"""The script for TPU VMs, with a gcloud that notes its arguments."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments/tpu_vm.sh"

GCLOUD = r"""#!/usr/bin/env bash
printf '%s\0' "$@" >> "$NOTES"
printf '\n' >> "$NOTES"
line="$*"
if [[ $line == *describe* ]]; then
  tail -n "$(grep -c describe "$NOTES")" <<< "$STATES" | head -n 1
fi
if [[ $line == *scp*--worker=0* ]]; then echo 0.9 > "${!#}/metrics"; fi
[[ -z $FAILS || $line != *$FAILS* ]] || exit 7
"""


def start(
    folder: Path, *options: str, fails: str = "", states: str = "ACTIVE\nWAITING_FOR_RESOURCES"
) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """What came of it, and the arguments of every gcloud; states are the last first."""
    (folder / "bin").mkdir()
    (folder / "bin/gcloud").write_text(GCLOUD)
    (folder / "bin/gcloud").chmod(0o755)
    (folder / "notes").touch()
    (folder / "my data").mkdir()
    done = subprocess.run(
        [SCRIPT, "ahl", "--zone", "z", "--type", "v5litepod-8", *options],
        cwd=folder,
        env={
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "NOTES": str(folder / "notes"),
            "FAILS": fails, "STATES": states, "TPU_VM_POLL": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    notes = (folder / "notes").read_text().split("\0\n")[:-1]
    return done, [line.split("\0") for line in notes]


def verbs(calls: list[list[str]]) -> list[str]:
    return [call[3] for call in calls]


WHOLE = ["create", "describe", "describe", "scp", "ssh", "scp", "ssh", "scp", "delete"]
COMMAND = ("--", "ahl", "train", "data", "--workdir", "runs/it's $HOME; here")


def test_it_goes_from_nothing_to_results_and_deletes_the_tpu(tmp_path: Path) -> None:
    done, calls = start(tmp_path, "--data", "my data", "--spot", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == WHOLE
    assert "--spot" in calls[0]
    assert calls[5][-2:] == ["my data", "ahl:ahl_jax/data"]
    assert "--force" in calls[-1]
    assert all("--zone=z" in call for call in calls)
    # A shell there has the words that were given here.
    (there,) = [word for word in calls[6] if word.startswith("--command=")]
    assert shlex.split(there.partition("activate && ")[2]) == list(COMMAND[1:])
    assert (tmp_path / "tpu-ahl/metrics").read_text() == "0.9\n"


@pytest.mark.parametrize(
    ("fails", "said", "made"),
    [
        ("create", "create the TPU", WHOLE[:1]),
        ("ahl:ahl_jax.tar.gz", "copy the repository", [*WHOLE[:4], "delete"]),
        ("uv venv", "install", [*WHOLE[:5], "delete"]),
        # What it wrote before it failed is fetched.
        ("activate", "run", [*WHOLE[:5], "ssh", "scp", "delete"]),
    ],
)
def test_a_step_that_fails_is_named_and_the_last(
    tmp_path: Path, fails: str, said: str, made: list[str]
) -> None:
    done, calls = start(tmp_path, *COMMAND, fails=fails)
    assert done.returncode == 7
    assert f"stopped at: {said}\n" in done.stderr
    assert verbs(calls) == made


@pytest.mark.parametrize("option", [(), ("--keep",)])
def test_a_request_that_is_not_granted_is_deleted_unless_it_is_kept(
    tmp_path: Path, option: tuple[str, ...]
) -> None:
    done, calls = start(tmp_path, *option, *COMMAND, states="FAILED")
    assert done.returncode == 1
    assert "stopped at: wait for the TPU" in done.stderr
    assert verbs(calls) == ["create", "describe", *([] if option else ["delete"])]
    assert ("ahl is kept, and costs" in done.stderr) == bool(option)


def test_results_that_could_not_be_fetched_are_not_deleted(tmp_path: Path) -> None:
    done, calls = start(tmp_path, *COMMAND, fails="--worker=0")
    assert done.returncode == 1
    assert "stopped at: fetch runs" in done.stderr
    assert "delete ahl --zone=z --force" in done.stderr
    assert "delete" not in verbs(calls)


def test_nothing_is_fetched_where_results_are_elsewhere(tmp_path: Path) -> None:
    done, calls = start(tmp_path, "--results", "", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == [*WHOLE[:5], "ssh", "delete"]


def test_a_deletion_that_fails_is_a_failure(tmp_path: Path) -> None:
    done, _ = start(tmp_path, *COMMAND, fails="delete")
    assert done.returncode == 1
    assert "ahl could not be deleted, and costs" in done.stderr


def test_a_dry_run_prints_the_commands_alone(tmp_path: Path) -> None:
    done, calls = start(tmp_path, "--data", "my data", "--dry-run", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert calls == []
    assert not (tmp_path / "tpu-ahl").exists()
    printed = [line[2:] for line in done.stderr.splitlines() if line.startswith("+ gcloud")]
    assert [shlex.split(line)[4] for line in printed] == [WHOLE[0], *WHOLE[2:]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--data", "nowhere", *COMMAND), "--data nowhere is no folder"),
        (("--to", "my data", *COMMAND), "my data exists; move it away"),
        (("--fast", *COMMAND), "there is no option --fast; see --help"),
        (("train",), "train follows the name ahl; write -- before the command"),
        (("--zone",), "--zone needs a value"),
        ((), "there is no command; write it after --"),
    ],
)
def test_bad_options_are_refused_before_anything_costs(
    tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    done, calls = start(tmp_path, *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"tpu_vm.sh: {sentence}")
    assert calls == []
