"""`msf models pull`: models copied from folders and web servers into a repository."""

from __future__ import annotations

import fcntl
import importlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner, Result

from msf_cli import model_pull
from msf_cli.main import main
from msf_engine.repository import read_version
from msf_engine.repository_scan import scan

WEIGHTS = "residual.safetensors"


def pull(source: object, repository: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["models", "pull", str(source), "--model-repo", str(repository), *options])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def source(repository: Path, tmp_path: Path) -> Path:
    """A copy of the session's repository, with a model card."""
    copy = shutil.copytree(repository, tmp_path / "source")
    (copy / "tiny" / "README.md").write_text("A tiny model.\n")
    return copy


@dataclass
class WebServer:
    """Serves `folder`; `ranges` are the Range headers of its GET requests by file name."""

    folder: Path
    accepts_ranges: bool = True
    url: str = ""
    ranges: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def web(source: Path) -> Iterator[WebServer]:
    server = WebServer(source)

    class _Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            file = Path(self.translate_path(self.path))
            requested = self.headers.get("Range")
            server.ranges.append((file.name, requested))
            if requested is None or not server.accepts_ranges or not file.is_file():
                return super().do_GET()
            first, _, last = requested.removeprefix("bytes=").partition("-")
            content = file.read_bytes()[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{file.stat().st_size}")
            self.end_headers()
            self.wfile.write(content)
            return None

        def log_message(self, *_: object) -> None:
            """Keep tests quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(source))) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield server
        http.shutdown()
        thread.join()


def check(repository: Path, name: str = "tiny") -> None:
    """Assert a complete version 1 and nothing left over but the lock file."""
    version = read_version(repository, name)
    version.verify()
    assert (repository / name / "README.md").read_text() == "A tiny model.\n"
    assert {path.name for path in repository.iterdir()} == {name, f".pull-{name}.lock"}


@pytest.mark.parametrize("folder", ["tiny", "tiny/1", "tiny/1/"])
def test_a_model_is_copied_from_a_folder(source: Path, target: Path, folder: str) -> None:
    result = pull(f"{source}/{folder}", target)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{target / 'tiny' / '1'}\n"
    assert f"{WEIGHTS}  0." in result.stderr
    check(target)


@pytest.mark.parametrize("accepts_ranges", [True, False])
def test_a_model_is_copied_from_a_web_server(
    web: WebServer, target: Path, accepts_ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.accepts_ranges = accepts_ranges
    monkeypatch.setattr(model_pull, "CHUNK_BYTES", 50_000)  # several requests per file
    result = pull(f"{web.url}/tiny/1", target, "--name", "other")
    assert result.exit_code == 0, result.output
    check(target, "other")


@pytest.fixture
def two_models(source: Path) -> Path:
    """The source with a second version, and a second model whose weights are damaged."""
    shutil.copytree(source / "tiny" / "1", source / "tiny" / "2")
    shutil.copytree(source / "tiny", source / "broken")
    shutil.rmtree(source / "broken" / "2")
    (source / "broken" / "1" / WEIGHTS).write_bytes(b"no weights")
    (source / "notes").mkdir()
    return source


def check_two_models(result: Result, target: Path) -> None:
    """Assert that both versions of one model were copied, and nothing of the damaged one."""
    assert result.exit_code == 1
    assert result.stdout == f"{target / 'tiny' / '1'}\n{target / 'tiny' / '2'}\n"
    [problem] = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert f"{WEIGHTS} of " in problem
    assert "broken/1 is damaged" in problem
    assert scan(target).versions == [("tiny", "1"), ("tiny", "2")]
    for version in ("1", "2"):
        read_version(target, "tiny", version).verify()


def test_a_repository_is_copied_but_for_its_damaged_versions(two_models: Path, target: Path) -> None:
    check_two_models(pull(two_models, target), target)
    shutil.rmtree(two_models / "broken")
    assert pull(two_models, target).exit_code == 0  # nothing is left to do


def test_a_repository_is_copied_from_a_web_server(two_models: Path, web: WebServer, target: Path) -> None:
    check_two_models(pull(web.url, target), target)


def test_a_repository_is_copied_from_another_file_system_of_fsspec(two_models: Path, target: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{two_models}/", "/bucket/models/", recursive=True)
    try:
        check_two_models(pull("memory://bucket/models", target), target)
        assert "has several models" in pull("memory://bucket/models", target, "--name", "other").stderr
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_repository_is_copied_from_s3(
    two_models: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setattr(model_pull, "CHUNK_BYTES", 50_000)
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.mkdir("bucket")
        bucket.put(f"{two_models}/", "bucket/models/", recursive=True)
        check_two_models(pull("s3://bucket/models", target), target)
        assert pull("s3://bucket/models/tiny/1", tmp_path / "one").exit_code == 0
        check(tmp_path / "one")
    finally:
        server.stop()


def test_pulling_again_fetches_nothing(web: WebServer, target: Path) -> None:
    assert pull(f"{web.url}/tiny/1", target).exit_code == 0
    web.ranges.clear()
    assert pull(f"{web.url}/tiny/1", target).exit_code == 0
    assert {name for name, _ in web.ranges} == {"SHA256SUMS"}


def test_an_interrupted_pull_resumes_where_it_stopped(
    web: WebServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(file: str, num_bytes: int, size: int) -> None:
        if file == WEIGHTS:
            raise KeyboardInterrupt

    monkeypatch.setattr(model_pull, "CHUNK_BYTES", 50_000)
    [version] = model_pull.open_sources(f"{web.url}/tiny/1")
    with pytest.raises(KeyboardInterrupt):
        model_pull.pull(version, target, "tiny", interrupt)
    assert not (target / "tiny").exists()

    web.ranges.clear()
    assert pull(f"{web.url}/tiny/1", target).exit_code == 0
    check(target)
    weights = [requested for name, requested in web.ranges if name.endswith(".safetensors")]
    assert weights[0] is not None
    assert weights[0].startswith("bytes=50000-")
    assert not [name for name, _ in web.ranges if name.endswith(".safetensors") and name != WEIGHTS]


def test_a_damaged_file_is_named_and_fetched_again(source: Path, target: Path) -> None:
    weights = source / "tiny" / "1" / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"x")
    result = pull(source / "tiny", target)
    assert result.exit_code == 1
    assert f"{WEIGHTS} of {source / 'tiny' / '1'} is damaged" in result.stderr
    assert not (target / "tiny").exists()
    weights.write_bytes(content)
    assert pull(source / "tiny", target).exit_code == 0
    check(target)


def test_a_model_with_other_content_is_not_replaced(source: Path, target: Path) -> None:
    assert pull(source / "tiny", target).exit_code == 0
    config = target / "tiny" / "config.json"
    before = config.read_text()
    config.write_text(before + " ")
    result = pull(source / "tiny", target)
    assert result.exit_code == 1
    assert f"{config} exists and differs from the source" in result.stderr
    (source / "tiny" / "1").rename(source / "tiny" / "2")
    assert f"{config} exists and differs" in pull(source / "tiny", target).stderr
    config.write_text(before)
    assert pull(source / "tiny", target).exit_code == 0
    assert sorted(path.name for path in (target / "tiny").iterdir() if path.is_dir()) == ["1", "2"]


@pytest.mark.parametrize("name", ["residual.safetensors", "../config.json", "../labels.json"])
def test_an_incomplete_source_is_refused(source: Path, target: Path, name: str) -> None:
    sums = source / "tiny" / "1" / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if not line.endswith(f"{name}\n")))
    result = pull(source / "tiny", target)
    assert result.exit_code == 1
    assert f"does not list {name}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not target.exists()


def test_invalid_labels_are_refused(source: Path, target: Path) -> None:
    labels, sums = source / "tiny" / "labels.json", source / "tiny" / "1" / "SHA256SUMS"
    digest = model_pull._digest(labels)
    labels.write_text(json.dumps(["one"]))
    sums.write_text(sums.read_text().replace(digest, model_pull._digest(labels)))
    result = pull(source / "tiny", target)
    assert result.exit_code == 1
    assert f"{source / 'tiny' / '1'} is not a valid model: " in result.stderr
    assert not (target / "tiny").exists()


@pytest.mark.parametrize("name", [WEIGHTS, "SHA256SUMS", "../labels.json"])
def test_an_incomplete_version_is_not_reported_as_complete(source: Path, target: Path, name: str) -> None:
    assert pull(source / "tiny", target).exit_code == 0
    (target / "tiny" / "1" / name).unlink()
    result = pull(source / "tiny", target)
    assert result.exit_code == 1
    assert f"{target / 'tiny' / '1'} exists without {Path(name).name}" in result.stderr
    shutil.rmtree(target / "tiny" / "1")
    assert pull(source / "tiny", target).exit_code == 0
    check(target)


def test_a_second_pull_of_a_model_is_refused(source: Path, target: Path) -> None:
    target.mkdir()
    with (target / ".pull-tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = pull(source / "tiny", target)
        assert result.exit_code == 1
        assert "Another pull of tiny" in result.stderr
        assert pull(source / "tiny", target, "--name", "other").exit_code == 0
    assert pull(source / "tiny", target).exit_code == 0


def test_an_unreadable_readme_does_not_block_a_pull(source: Path, target: Path) -> None:
    readme = source / "tiny" / "README.md"
    readme.unlink()
    readme.mkdir()
    result = pull(source / "tiny", target)
    assert result.exit_code == 0, result.output
    assert not (target / "tiny" / "README.md").exists()


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "../README.md", "a/b", ".hidden"])
def test_a_file_outside_the_model_is_refused(source: Path, target: Path, name: str) -> None:
    with (source / "tiny" / "1" / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    result = pull(source / "tiny", target)
    assert result.exit_code == 1
    assert "Invalid line" in result.stderr
    assert not target.exists()


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("nope://host/tiny/1", (), "Invalid source 'nope://host/tiny/1'"),
        ("/no/such/folder", (), "Cannot list /no/such/folder"),
        ("/no/such/folder/1", (), "No SHA256SUMS in /no/such/folder/1"),
        ("{source}/tiny/1/..", ("--name", "a/b"), "Invalid model name 'a/b'"),
        ("{source}/none", (), "No model version in "),
        ("{source}/tiny", ("--name", "a/b"), "Invalid model name 'a/b'"),
        ("http://127.0.0.1:1/tiny/1", (), "Cannot read http://127.0.0.1:1/tiny/1/SHA256SUMS"),
    ],
)
def test_an_unusable_source_is_one_line(
    source: Path, target: Path, url: str, options: tuple[str, ...], message: str
) -> None:
    (source / "none").mkdir()
    result = pull(url.format(source=source), target, *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("hf", "huggingface_hub")])
def test_a_missing_package_of_a_scheme_is_named(
    target: Path, scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: Any = None  # an import of it fails
    monkeypatch.setitem(sys.modules, package, missing)
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.delitem(registry._registry, scheme, raising=False)  # of an earlier test
    result = pull(f"{scheme}://models/tiny/1", target)
    assert result.exit_code == 1
    assert f"{scheme}:// needs another package: " in result.stderr
    assert package in result.stderr
