"""The doctor in a repository to which everything it knows has really happened: what it says, and what it mends."""

import hashlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path

import psutil
import pytest
from helpers.failing_servers import refusing
from helpers.repo import Repo, plant
from ruamel.yaml import YAML

from pipeline import doctor as verb

HEALTHY = "doctor: nothing to mend\n"
ENDLESS = "num_epochs=100000"


@pytest.fixture(scope="module")
def repo(tmp_path_factory, small_mnist):
    """After an experiment that has been committed; each test hands it on healthy."""
    repo = plant(tmp_path_factory.mktemp("doctor"), small_mnist, {"OMP_NUM_THREADS": "1"}, num_epochs=1)
    repo.run("dvc", "exp", "run", "-n", "narrow", "-S", "z_dim=2")
    repo.commit()
    return repo


@pytest.fixture(autouse=True)
def nothing_goes_on(request):
    """Where a test has failed, what it has begun does not go on beside the next."""
    yield
    if "repo" in request.fixturenames:
        for process in working(request.getfixturevalue("repo")):
            with suppress(psutil.Error):
                process.kill()


def doctor(repo: Repo, *arguments: str, ok: bool = False, apart: bool = False) -> list[str]:
    """What it says, a line each, after a look that nothing in it is this machine's.

    In this process, which has imported MLflow, or `apart` in one of its own: where the store's file changes places.
    """
    if apart:
        said = repo.run("python", "-m", "pipeline.commands.doctor", *arguments, ok=ok)
    else:
        out, status = io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            patch.setattr(sys, "argv", ["doctor", *arguments])
            patch.chdir(repo.root)
            try:
                verb.main()
            except SystemExit as end:
                status = end.code
        said = out.getvalue()
        assert (status == 0) is ok, said
    assert "Traceback" not in said and str(repo.root) not in said and socket.gethostname() not in said
    assert all(line.startswith("doctor: ") for line in said.splitlines()), said
    return said.splitlines()


def look(repo: Repo, ok: bool = False, apart: bool = False) -> list[str]:
    """What it says without --fix, after a look that nothing has changed; the summing-up left out."""
    before = at_rest(repo.root)
    said = doctor(repo, ok=ok, apart=apart)
    after = sums(repo.root)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()
    assert re.fullmatch(r"doctor: (nothing to mend|\d+ found, 0 mended)", said[-1])
    return said[:-1]


def healthy(repo: Repo, apart: bool = False) -> bool:
    return [line for line in look(repo, ok=True, apart=apart) if not line.startswith("doctor: note: ")] == []


def type_in(repo: Repo, line: str) -> str:
    """Do as a line of the doctor's says."""
    return repo.run("bash", "-c", line.rpartition(": ")[2])


def sums(root: Path) -> dict[str, str]:
    """Every file, git's and DVC's own among them."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".venv" not in path.parts
    }


def at_rest(root: Path) -> dict[str, str]:
    """The sums, once nobody who was just killed or has just ended writes there any longer."""
    seen: list[dict[str, str]] = [{}]

    def same() -> bool:
        with suppress(FileNotFoundError):  # it was there a moment ago
            seen.append(sums(root))
        return len(seen) > 2 and seen[-1] == seen[-2]

    wait_for(same, seconds=60)
    return seen[-1]


def begin(repo: Repo, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=repo.root, env=repo.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def wait_for(what: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def working(repo: Repo, *parts: str) -> list[psutil.Process]:
    """The processes at work in the repository that have all of these in their command."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if Path(process.info["cwd"] or "/").is_relative_to(repo.root) and all(part in command for part in parts):
            found.append(process)
    return found


def kill(repo: Repo, *parts: str) -> None:
    """kill -9 what `working` finds, and wait until it is gone."""
    found = working(repo, *parts)
    assert found, parts
    for process in found:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(found, timeout=10)


def status(repo: Repo, name: str) -> str:
    run = repo.runs().get(name)
    return run.info.status if run else ""


def clean(repo: Repo) -> None:
    """As it was committed, and nothing left to go on from."""
    repo.run("git", "checkout", "-q", "HEAD", ".")
    repo.run("git", "clean", "-qfd", "reports")
    shutil.rmtree(repo.root / ".dvc/tmp/checkpoints", ignore_errors=True)


def test_it_takes_one_argument(repo):
    assert (
        repo.run("python", "-m", "pipeline.commands.doctor", "--mend", ok=False)
        == "usage: python -m pipeline.commands.doctor [--fix | --verify]\n"
    )


def test_a_healthy_repository_has_nothing_to_mend(repo, tmp_path):
    assert look(repo, ok=True, apart=True) == []
    assert repo.run("python", "-m", "pipeline.commands.doctor", "--fix") == HEALTHY
    repo.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Repo(tmp_path / "clone", repo.mirror, repo.env)
    assert look(clone, ok=True, apart=True) == [], "and a fresh clone gets no store by it"


def test_a_killed_experiment(repo):
    """The mirror is killed, then DVC, and the training dies with it: HEAD, a lock and a run are in nobody's hands."""
    readme = repo.root / "README.md"
    readme.write_text(edited := readme.read_text(encoding="utf-8") + "An edit.\n", encoding="utf-8")
    begin(repo, "dvc", "exp", "run", "-n", "killed", "-S", ENDLESS)
    wait_for(lambda: status(repo, "killed") == "RUNNING")
    assert repo.run("python", "-m", "pipeline.commands.doctor", "--fix") == HEALTHY, "while it trains it is left alone"

    kill(repo, "-m pipeline.tracking.follower")
    kill(repo, "dvc exp run")
    wait_for(lambda: not working(repo, "-m pipeline.stages.train"))

    *left, head, lock, run = look(repo)
    assert [line.split()[1] for line in left] in ([], ["note:"]), "a checkpoint, where an epoch had come to its end"
    put_back = "git symbolic-ref HEAD refs/heads/master && git update-ref -d refs/exps/exec/EXEC_BASELINE"
    assert head.startswith("doctor: HEAD is detached, as a killed `dvc exp run` left it") and head.endswith(put_back)
    assert lock == "doctor: .dvc/tmp/rwlock holds only what a killed DVC has locked: rm .dvc/tmp/rwlock"
    assert run == "doctor: run killed is RUNNING, but nobody trains it: python -m pipeline.commands.doctor --fix"

    *mended, last = doctor(repo, "--fix", ok=True)
    assert [line.split()[1] for line in mended if line not in left] == ["mended:"] * 3
    assert last == "doctor: 3 found, 3 mended"
    assert healthy(repo) and status(repo, "killed") == "KILLED"
    assert repo.run("git", "symbolic-ref", "HEAD") == "refs/heads/master\n"
    assert readme.read_text(encoding="utf-8") == edited
    assert ENDLESS.replace("=", ": ") in (repo.root / "params.yaml").read_text(), "as DVC leaves an experiment's values"
    clean(repo)


def test_a_stage_that_no_dvc_has_started(repo):
    """What the doctor says where a stage did not die with its DVC: where there is no prctl."""
    repo.set(num_epochs=100_000)
    begin(repo, "env", "DVC_STAGE=train", "python", "-m", "pipeline.stages.train")
    wait_for(lambda: working(repo, "-m pipeline.tracking.follower"))
    (train,) = working(repo, "-m pipeline.stages.train")
    assert f"doctor: train goes on, but the DVC that started it is gone: kill {train.pid}" in doctor(repo)
    type_in(repo, f": kill {train.pid}")
    wait_for(lambda: not working(repo, "-m pipeline."))
    clean(repo)
    doctor(repo, "--fix", ok=True)  # where the mirror had no time left to close its run
    assert healthy(repo)


def test_an_experiment_that_is_killed_while_it_has_edits_set_aside(repo):
    """The first second of `dvc exp run`: they are neither in the files nor in a commit of the person's."""
    readme, params = repo.root / "README.md", repo.root / "params.yaml"
    edits = {path: path.read_text(encoding="utf-8") + "# An edit.\n" for path in (readme, params)}
    for path, text in edits.items():
        path.write_text(text, encoding="utf-8")
    repo.run("git", "add", "README.md")
    process = begin(repo, "dvc", "exp", "run", "-n", "early", "-S", ENDLESS)
    end = time.monotonic() + 120
    while not (repo.root / ".git/refs/stash").exists():  # without a pause: it is there for less than a second
        assert process.poll() is None and time.monotonic() < end
    process.kill()
    process.wait()

    lines = look(repo)
    (stash,) = [line for line in lines if line.startswith("doctor: your edits are in `git stash`")]
    left = doctor(repo, "--fix")
    assert [line for line in left if "mended:" not in line] == [
        stash,
        f"doctor: {len(lines)} found, {len(lines) - 1} mended",
    ]
    type_in(repo, stash)
    assert {path: path.read_text(encoding="utf-8") for path in edits} == edits
    assert repo.run("git", "diff", "--cached", "--name-only") == "README.md\n"
    assert healthy(repo)
    repo.run("git", "checkout", "-q", "HEAD", ".")
    if (repo.root / ".git/refs/stash").exists():  # what was half done
        repo.run("git", "stash", "drop", "-q")


def test_a_killed_worker_of_the_queue(repo):
    """The worker alone is killed, then what it was computing; another task waits."""
    for name in ("queued", "waiting"):
        repo.run("dvc", "exp", "run", "--queue", "-n", name, "-S", ENDLESS)
    assert look(repo, ok=True) == [], "a queue that nobody has started is none that has stopped"
    assert begin(repo, "dvc", "queue", "start").wait() == 0
    wait_for(lambda: status(repo, "queued") == "RUNNING")
    assert doctor(repo, "--fix", ok=True) == [HEALTHY.strip()]

    kill(repo, "dvc exp queue-worker")
    wait_for(lambda: len(working(repo, "dvc queue start")) == 0)
    collect, start, _ = doctor(repo)
    assert collect == "doctor: queued goes on, but its worker is gone and nobody will collect it: dvc queue kill queued"
    assert start == "doctor: 1 wait in the queue, and its worker was killed: dvc queue start"
    kill(repo, "-m pipeline.tracking.follower")
    kill(repo, "dvc exp exec-run")
    wait_for(lambda: not working(repo, "-m pipeline.stages.train"))

    task, start, folder, *checkpoint, run = look(repo)
    # Where nobody takes note of a process's end, its number stays taken, and DVC would kill that.
    assert re.fullmatch(
        r"doctor: queued is Running in the queue, but its worker is gone: (rm \S+ && )?dvc queue kill --force queued",
        task,
    )
    assert re.match(
        r"doctor: note: \.dvc/tmp/exps/tmp\w+ is what a killed experiment has left: rm -r \.dvc/tmp", folder
    )
    assert run == "doctor: run queued is RUNNING, but nobody trains it: python -m pipeline.commands.doctor --fix"
    doctor(repo, "--fix")
    assert look(repo) == [task, start, folder, *checkpoint] and status(repo, "queued") == "KILLED"
    for line in checkpoint:
        type_in(repo, line)
    type_in(repo, task)
    assert look(repo) == [start, folder]
    type_in(repo, folder)
    assert look(repo) == [start]
    assert start.endswith(": dvc queue start")
    repo.run("dvc", "queue", "remove", "--queued")
    assert look(repo, ok=True) == []


@pytest.mark.parametrize("text", ["", '{"write": {"', "[]"])
def test_a_torn_lock(repo, text):
    lock = repo.root / ".dvc/tmp/rwlock"
    lock.write_text(text)
    assert look(repo) == ["doctor: .dvc/tmp/rwlock is torn: rm .dvc/tmp/rwlock"]
    assert doctor(repo, "--fix", ok=True)[-1] == "doctor: 1 found, 1 mended"
    assert healthy(repo) and not lock.exists()


def test_a_stale_mlruns(repo):
    """Renamed, and not over one that was renamed before."""
    for aside in ("mlruns.aside", "mlruns.aside1"):
        (repo.root / "mlruns/0").mkdir(parents=True)
        (repo.root / "mlruns/0/meta.yaml").write_text("name: Default\n")
        default = repo.run("python", "-c", "import mlflow; print(mlflow.get_tracking_uri())")
        assert "mlruns" in default, "what it does to MLflow"
        (line,) = look(repo)
        assert line.endswith(f": mv mlruns {aside}")
        doctor(repo, "--fix", ok=True)
        assert healthy(repo) and (repo.root / aside / "0/meta.yaml").exists()
    for aside in ("mlruns.aside", "mlruns.aside1"):
        shutil.rmtree(repo.root / aside)


def test_artifacts_whose_folder_is_gone(repo):
    shutil.rmtree(repo.root / "mlartifacts" / repo.runs()["narrow"].info.run_id)
    (line,) = look(repo)
    assert line.startswith("doctor: run narrow has lost artifacts: python -m pipeline.stages.log --all (or, ")
    assert doctor(repo, "--fix")[0] == line, "not the doctor's to mend"
    repo.run("python", "-m", "pipeline.stages.log", "--all")
    assert healthy(repo)


def test_a_repository_that_has_moved_or_lost_its_store(repo, tmp_path):
    """Moved, its store still names the folder in which it was made; and a store is not made by looking."""
    moved = Repo(tmp_path / "moved", repo.mirror, repo.env)
    repo.root.rename(moved.root)
    try:
        (line,) = look(moved, apart=True)
        assert line.startswith("doctor: mlflow.db is another folder's") and "mv mlflow.db mlflow.db.aside && " in line
        (moved.root / "mlflow.db").rename(moved.root / "mlflow.db.aside")
        assert look(moved, apart=True) == ["doctor: experiment narrow has no run: python -m pipeline.stages.log --all"]
        assert doctor(moved, "--fix", apart=True)[-1] == "doctor: 1 found, 0 mended"
        moved.run("python", "-m", "pipeline.stages.log", "--all")
        assert healthy(moved, apart=True)
        (moved.root / "mlflow.db.aside").replace(moved.root / "mlflow.db")
    finally:
        moved.root.rename(repo.root)
    assert healthy(repo)


def test_a_store_that_cannot_be_used_hides_nothing_else(repo):
    lock, store = repo.root / ".dvc/tmp/rwlock", repo.root / "mlflow.db"
    lock.write_text("")
    with refusing() as address:
        repo.env["MLFLOW_TRACKING_URI"] = address.replace("//", "//somebody:s3cr3t@")
        try:
            torn, away = look(repo, apart=True)
        finally:
            del repo.env["MLFLOW_TRACKING_URI"]
    assert "rwlock" in torn and "s3cr3t" not in away and "127.0.0.1" not in away
    assert away.startswith("doctor: MLflow's store cannot be used (the server that MLFLOW_TRACKING_URI names cannot be")
    lock.unlink()
    whole = store.read_bytes()
    store.write_bytes(b"no database" * 100)
    try:
        (damaged,) = look(repo, apart=True)
        assert "mlflow.db" in damaged and "mv mlflow.db mlflow.db.aside && python -m pipeline.stages.log --all" in damaged
    finally:
        store.write_bytes(whole)
    assert healthy(repo)


def test_an_experiment_that_was_deleted_in_mlflow(repo):
    """No run can be made in it and no other has its name: `log --all` is no way out, and a new store loses runs."""
    store = repo.store()
    store.delete_experiment(store.get_experiment_by_name("mnist-vae").experiment_id)
    (line,) = look(repo)
    assert line == (
        "doctor: the experiment mnist-vae was deleted in MLflow; this restores it and its runs: "
        "MLFLOW_TRACKING_URI=sqlite:///mlflow.db mlflow experiments restore --experiment-id 1"
    )
    assert doctor(repo, "--fix")[0] == line, "whoever deleted it may have meant it"
    type_in(repo, line)
    assert healthy(repo) and status(repo, "narrow") == "FINISHED"


def flip(path: Path) -> None:
    """One bit, as a disk does it: the times, the size and the mode stay as they are."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as file:  # the same inode
        file.write(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cached(repo: Repo, path: str, revision: str = "HEAD") -> Path:
    """The object of DVC's cache that stands for a file in a commit."""
    lock = YAML(typ="safe").load(repo.run("git", "show", f"{revision}:dvc.lock"))
    (name,) = {out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", []) if out["path"] == path}
    return repo.root / ".dvc/cache/files/md5" / name[:2] / name[2:]


def verify(repo: Repo, ok: bool = False) -> list[str]:
    return doctor(repo, "--verify", ok=ok)


WHOLE = ["doctor: every byte is what DVC recorded"]


def test_a_flipped_bit_is_found_wherever_it_is(repo):
    """DVC itself says that everything is up to date; the command that is named brings the bytes back."""
    repo.run("dvc", "exp", "run", "--temp", "-n", "other", "-S", "seed=3")
    repo.run("dvc", "repro")
    assert verify(repo, ok=True) == WHOLE
    model = repo.root / "data/model/vae.safetensors"
    right = model.read_bytes()
    flip(cached(repo, "data/model/vae.safetensors"))
    assert "up to date" in repo.run("dvc", "status")
    line, last = verify(repo)
    assert "is damaged, which DVC would give out as data/model/vae.safetensors: rm -rf " in line
    assert last == "doctor: 1 found, 0 mended"
    type_in(repo, line)
    assert model.read_bytes() == right and verify(repo, ok=True) == WHOLE

    for name in (
        "data/raw/train-labels-idx1-ubyte",
        "reports/metrics.json",
        "reports/per_image.parquet",
        "reports/samples/generated-epoch-0001.png",
    ):
        path = repo.root / name
        right = path.read_bytes()
        flip(path)
        assert "up to date" in repo.run("dvc", "status"), name
        line, _ = verify(repo)
        assert line.endswith("and DVC does not see it: " + line.rpartition(": ")[2]) and name.startswith(
            line.split()[1]
        )
        type_in(repo, line)
        assert path.read_bytes() == right and verify(repo, ok=True) == WHOLE, name

    other = cached(repo, "data/model/vae.safetensors", repo.experiment("other"))
    flip(other)
    line, _ = verify(repo)
    assert "which another commit or experiment has: rm -f .dvc/cache" in line
    type_in(repo, line)
    assert verify(repo, ok=True) == WHOLE and not other.exists()
    repo.run("dvc", "exp", "remove", "other")
    repo.store().delete_run(repo.runs()["other"].info.run_id)
    repo.run("python", "-m", "pipeline.stages.log", "--all")  # of what was executed again to get it back


def test_a_flipped_bit_in_a_cache_that_lies_elsewhere(tmp_path, small_mnist):
    """As one that is shared: the command finds it from here."""
    (tmp_path / "repo").mkdir()
    repo = plant(tmp_path / "repo", small_mnist, num_epochs=1)
    repo.run("dvc", "config", "cache.dir", str(tmp_path / "a shared cache"))
    repo.run("dvc", "repro", "train")
    model = repo.root / "data/model/vae.safetensors"
    right = model.read_bytes()
    (cached,) = (path for path in (tmp_path / "a shared cache/files/md5").glob("??/*") if path.read_bytes() == right)
    flip(cached)
    (line, _) = repo.run("python", "-m", "pipeline.commands.doctor", "--verify", ok=False).splitlines()
    assert "rm -rf '../a shared cache/" in line
    type_in(repo, line.removesuffix("dvc repro") + "dvc repro train")
    assert model.read_bytes() == right == cached.read_bytes()


def test_a_checkpoint_that_is_left_is_a_remark(repo):
    path = repo.root / ".dvc/tmp/checkpoints/0123456789abcdef.checkpoint"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    (line,) = look(repo, ok=True)
    assert line.startswith("doctor: note: ") and "goes on from" in line
    type_in(repo, line)
    assert look(repo, ok=True) == []


def test_a_run_whose_experiment_is_gone_is_a_remark(repo):
    repo.run("dvc", "exp", "remove", "narrow")
    (line,) = look(repo, ok=True)
    assert line.startswith("doctor: note: run narrow: DVC no longer has the experiment, its files are in the run; ")
    assert doctor(repo, "--fix", ok=True) == [line, HEALTHY.strip()]
    type_in(repo, line)
    assert look(repo, ok=True) == [] and "narrow" not in repo.runs()
