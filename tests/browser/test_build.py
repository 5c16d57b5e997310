"""What the page of examples/browser is built from, and how it is served."""

import json
from urllib.request import urlopen

import pytest

from kornia_mvit import MobileViTClassifier, Preprocess, SSDLite
from kornia_mvit.weights.checkpoints import save_checkpoint
from tests.browser.browsers import EXAMPLE, build, make_classifier, serve, served


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """What npm would have installed."""
    folder = tmp_path / "node_modules"
    (folder / "onnxruntime-web" / "dist").mkdir(parents=True)
    (folder / "onnxruntime-web" / "package.json").write_text('{"version": "0.0.0"}')
    for name in build.RUNTIME:
        (folder / "onnxruntime-web" / "dist" / name).touch()
    monkeypatch.setattr(build, "fetch", lambda _: folder)


class TestBuild:
    def test_refuses_detectors(self, modules, tmp_path, capsys):
        model = SSDLite("xxs", num_classes=3)
        model.preprocess = Preprocess((128, 128))
        save_checkpoint(model, tmp_path / "boxes.pt")
        assert build.main([str(tmp_path / "boxes.pt"), "--out", str(tmp_path / "dist")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("build.py: error: ")
        assert "boxes.pt is for detection; the page has modes for classification and segmentation" in error

    def test_refuses_two_of_a_task(self, modules, tmp_path, capsys):
        paths = [str(tmp_path / name) for name in ("one.pt", "two.pt")]
        for path in paths:
            save_checkpoint(make_classifier(), path)
        assert build.main([*paths, "--out", str(tmp_path / "dist")]) == 2
        assert "one.pt and " in (error := capsys.readouterr().err)
        assert "are both for classification" in error

    def test_refuses_models_that_do_not_say_what_they_see(self, modules, tmp_path, capsys):
        save_checkpoint(MobileViTClassifier("xxs", num_classes=3), tmp_path / "bare.pt")
        assert build.main([str(tmp_path / "bare.pt"), "--out", str(tmp_path / "dist")]) == 2
        assert "bare.pt does not say how images are preprocessed" in capsys.readouterr().err

    def test_leaves_folders_of_others_alone(self, modules, tmp_path, capsys):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "one.jpg").touch()
        assert build.main(["--out", str(tmp_path / "photos")]) == 2
        assert "holds other files; give --out a new folder" in capsys.readouterr().err
        assert (tmp_path / "photos" / "one.jpg").exists()

    @pytest.mark.parametrize("name", ["missing.pt", "missing.onnx"])
    def test_missing_checkpoint(self, modules, tmp_path, capsys, name):
        assert build.main([str(tmp_path / name), "--out", str(tmp_path / "dist")]) == 2
        assert name in capsys.readouterr().err

    def test_without_npm(self, monkeypatch, tmp_path, capsys):
        (tmp_path / "package-lock.json").write_text('{"packages": {"": {}, "node_modules/x": {"integrity": "y"}}}')
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(build.BuildError, match=r"npm.*install Node\.js"):
            build.fetch(tmp_path)

    def test_lock_files_name_no_host(self):
        for folder in (EXAMPLE, EXAMPLE.parents[1] / "tests" / "browser"):
            packages = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
            assert all("integrity" in package for name, package in packages.items() if name)
            assert not any("resolved" in package for package in packages.values())


class TestServe:
    def test_headers_that_allow_threads(self, tmp_path):
        (tmp_path / "index.html").touch()
        (tmp_path / "app.mjs").touch()
        with served(tmp_path) as url, urlopen(f"{url}app.mjs") as response:
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert response.headers["Content-Type"] == "text/javascript"

    def test_exception(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"index\.html; build\.py"):
            serve.make_server(tmp_path, 0)
        (tmp_path / "index.html").touch()
        server = serve.make_server(tmp_path, 0)
        try:
            port = server.server_address[1]
            with pytest.raises(OSError, match=f"port {port}"):
                serve.make_server(tmp_path, port)
        finally:
            server.server_close()
